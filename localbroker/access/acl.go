package access

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/fieldferry/fieldferry/localbroker/topic"
)

// right is what a line of an acl_file gives.
type right byte

const (
	deny  right = 0
	read  right = 1
	write right = 2
)

// rule is a line of an acl_file: a right to the topics that a filter matches.
type rule struct {
	filter string
	right  right
	line   int
}

// ACL is an acl_file. It is safe for concurrent use.
type ACL struct {
	anonymous *rules
	users     map[string]*rules
	patterns  []rule // denials first
}

// rules are those of one user, denials first.
type rules struct {
	line    int // where the user is named first
	list    []rule
	filters topic.Filters[right]
}

func (r *rules) add(l rule) {
	r.list = append(r.list, l)
	r.filters.Add(l.filter, l.right)
}

// ReadACL reads an acl_file. The ACL is nil if a problem is no warning.
func ReadACL(path string) (*ACL, []Problem) {
	data, _, err := readFile(path, "create it, or take acl_file out")
	if err != nil {
		return nil, []Problem{{File: path, Text: err.Error()}}
	}
	return ParseACL(path, data)
}

// ParseACL is ReadACL of what a file holds.
func ParseACL(file string, data []byte) (*ACL, []Problem) {
	r := report{file: file}
	a := &ACL{anonymous: new(rules), users: make(map[string]*rules)}
	whose := a.anonymous
	for n, line := range r.lines(data) {
		word, rest, _ := strings.Cut(line, " ")
		rest = strings.TrimSpace(rest)
		switch word {
		case "user":
			if rest == "" {
				r.mistake(n, "user names nobody; write user NAME")
				whose = new(rules) // so that what follows is nobody's
				continue
			}
			if whose = a.users[rest]; whose == nil {
				whose = &rules{line: n}
				a.users[rest] = whose
			}
		case "topic":
			if l, ok := r.rule(n, word, rest); ok {
				whose.add(l)
			}
		case "pattern":
			if l, ok := r.rule(n, word, rest); ok {
				a.patterns = append(a.patterns, l)
			}
		default:
			r.mistake(n, "a line cannot begin with %s; write user, topic or pattern, and # before a comment", quote(word))
		}
	}
	if r.failed {
		return nil, r.all()
	}
	if len(a.users) == 0 && len(a.anonymous.list) == 0 && len(a.patterns) == 0 {
		r.warn(0, "it grants nothing, so nobody may publish or read anything")
	}
	sortRules(a.patterns)
	sortRules(a.anonymous.list)
	for _, u := range a.users {
		sortRules(u.list)
	}
	return a, r.all()
}

// sortRules puts the denials first.
func sortRules(rules []rule) {
	slices.SortStableFunc(rules, func(a, b rule) int { return cmp.Compare(min(a.right, read), min(b.right, read)) })
}

var rights = map[string]right{"read": read, "write": write, "readwrite": read | write, "deny": deny}

// rule reads what stands behind topic or pattern: [read|write|readwrite|deny] FILTER.
func (r *report) rule(n int, word, rest string) (rule, bool) {
	kind, filter, two := strings.Cut(rest, " ")
	filter = strings.TrimSpace(filter)
	right, known := rights[kind]
	switch {
	case rest == "":
		r.mistake(n, "%s names no topic; write %s read FILTER", word, word)
		return rule{}, false
	case !two:
		filter, right = kind, read|write
		if known {
			r.warn(n, "this grants a topic of the name %s, for reading and writing; name the topic behind it", quote(filter))
		}
	case !known:
		r.mistake(n, "%s is no right; write read, write, readwrite or deny (and one of them before a topic with a space in it)", quote(kind))
		return rule{}, false
	}
	if err := topic.CheckFilter(filter, 0); err != nil {
		hint := ""
		if strings.Contains(filter, " #") {
			hint = "; a comment stands on a line of its own"
		}
		r.mistake(n, "%s is no %v%s", quote(filter), strings.TrimPrefix(err.Error(), "topic "), hint)
		return rule{}, false
	}
	switch named := strings.Contains(filter, "%c") || strings.Contains(filter, "%u"); {
	case word == "topic" && named:
		r.warn(n, "topic takes %%c and %%u as they stand; for the client's id or user name, write pattern")
	case strings.HasPrefix(filter, "$share/"):
		r.warn(n, "rights are those to topics, and no topic begins with $share/; write the filter behind the share")
	}
	return rule{filter, right, n}, true
}

// Users are the users that the file names, and the lines where it does first.
func (a *ACL) Users() iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for user, own := range a.users {
			if !yield(user, own.line) {
				return
			}
		}
	}
}

// A Grant is a right to all topics, those that begin with $ aside.
type Grant struct {
	User     string // "" is anonymous clients
	Everyone bool   // by a pattern: all clients
	Line     int
}

// Grants are the rights to all topics that the file gives.
func (a *ACL) Grants() []Grant {
	var all []Grant
	add := func(g Grant, list []rule) {
		for _, l := range list {
			if l.right != deny && l.filter == "#" {
				g.Line = l.line
				all = append(all, g)
			}
		}
	}
	add(Grant{}, a.anonymous.list)
	add(Grant{Everyone: true}, a.patterns)
	for user, own := range a.users {
		add(Grant{User: user}, own.list)
	}
	return all
}

// Rights are what a client with this id may do. An anonymous one has no user name: "".
func (a *ACL) Rights(clientID, user string) *Rights {
	own := a.anonymous
	if user != "" {
		own = a.users[user]
	}
	return &Rights{own: own, patterns: a.expand(clientID, user)}
}

// expand puts a client's names into the patterns. A name must not make a
// pattern wider than whoever wrote it meant: with a wildcard in one of the names no
// pattern grants anything, and one that would become another level, or a $-topic,
// does not grant. Denials stay.
func (a *ACL) expand(clientID, user string) []rule {
	if strings.ContainsAny(clientID, "+#") || strings.ContainsAny(user, "+#") {
		return nil
	}
	var out []rule
	for i, l := range a.patterns {
		c, u := strings.Contains(l.filter, "%c"), strings.Contains(l.filter, "%u")
		if !c && !u {
			if out != nil {
				out = append(out, l)
			}
			continue
		}
		if out == nil { // until here they are everybody's
			out = append(make([]rule, 0, len(a.patterns)), a.patterns[:i]...)
		}
		if u && user == "" {
			continue
		}
		filter := strings.NewReplacer("%c", clientID, "%u", user).Replace(l.filter)
		deeper := topic.Levels(filter) != topic.Levels(l.filter)
		if filter == "" || l.right != deny && (deeper || filter[0] == '$' && l.filter[0] != '$') {
			continue
		}
		out = append(out, rule{filter, l.right, l.line})
	}
	if out == nil {
		return a.patterns
	}
	return out
}
