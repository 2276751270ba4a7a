package config

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// maxName is the most bytes of a name: several make up a topic.
const maxName = 128

// reservedNames cannot be names of the kind: they mean something else in the
// same place.
var reservedNames = map[string][]string{
	"point": {"timestamp", "clock", "bad", "seq"}, // keys of every payload
	"id":    deviceWords,
	"zone":  deviceWords,
	"type":  deviceWords,
	"org":   deviceWords,
	"site":  deviceWords,
}

// deviceWords are levels of the topics around a device.
var deviceWords = []string{"devices", "requests", "responses", "telemetry", "heartbeat", "status", "alerts", "commands", "config", "firmware"}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
}

// name is a key's name that becomes a level of topics.
func (d *decoder) name(o *object, key string) string {
	s := o.text(key, "")
	if s == "" || !d.checkName(key, o.n.value(key), key) {
		return ""
	}
	return s
}

// checkName reports what is wrong with a name of a kind, of which what it is
// called says more.
func (d *decoder) checkName(what string, n *node, kind string) bool {
	if n.broken {
		return false
	}
	if wrong := nameError(n.text, kind); wrong != "" {
		d.problem(n.pos(), "%s: %s", what, wrong)
		return false
	}
	if strings.ContainsFunc(n.text, unicode.IsUpper) {
		d.warn(n.pos(), "%s: %s has upper case, which topics distinguish and people do not; write %s", what, n.quote(), quote(strings.ToLower(n.text)))
	}
	return true
}

func nameError(s, kind string) string {
	switch {
	case s == "":
		return "the name is empty; give it one"
	case len(s) > maxName:
		return fmt.Sprintf("%s is longer than %d bytes", quote(s), maxName)
	case strings.ContainsAny(s, "+#"):
		return fmt.Sprintf("%s has a wildcard of MQTT in it; use letters, digits and hyphens", quote(s))
	case strings.Contains(s, "/"):
		return fmt.Sprintf("%s has a slash in it, which separates the levels of a topic; use letters, digits and hyphens", quote(s))
	case strings.Contains(s, "*"):
		return fmt.Sprintf("%s is a pattern; only devices of an mqtt adapter can have one", quote(s))
	case strings.ContainsAny(s, "{}"):
		return fmt.Sprintf("%s is neither a name nor a range; write a range as {01..20}", quote(s))
	case strings.Trim(s, ".") == "", slices.Contains(reservedNames[kind], s):
		return fmt.Sprintf("%s is a reserved word; choose another name", quote(s))
	}
	for _, r := range s {
		if !nameRune(r) {
			return fmt.Sprintf("%s has %s in it; use letters, digits and hyphens", quote(s), quote(string(r)))
		}
	}
	return ""
}
