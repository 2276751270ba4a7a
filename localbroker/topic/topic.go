// Package topic knows how MQTT topics are written: names, filters, which
// filter matches which name, sets of filters and of names that answer that
// question quickly, and templates that take a topic apart and put another one
// together. It knows no broker, no packet and no device.
package topic

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxBytes is the longest name or filter, MQTT 5 §4.7.3.
const MaxBytes = 65535

// sharePrefix begins a shared subscription, MQTT 5 §4.8.2.
const sharePrefix = "$share/"

var (
	errEmpty    = errors.New("it is empty")
	errTooLong  = fmt.Errorf("it is longer than %d bytes", MaxBytes)
	errUTF8     = errors.New("it is not UTF-8")
	errNull     = errors.New("it contains U+0000")
	errWildcard = errors.New("it contains a wildcard")
	errPlus     = errors.New("+ does not stand alone in its level")
	errHash     = errors.New("# is not the whole last level")
	errGroup    = errors.New("its share name is empty or contains a wildcard")
)

// CheckName says what is wrong with name as the topic of a publish, MQTT 5
// §4.7. More than maxLevels levels are refused; 0 is no limit.
func CheckName(name string, maxLevels int) error {
	if err := check(name, maxLevels); err != nil {
		return fmt.Errorf("topic name: %w", err)
	}
	if strings.ContainsAny(name, "+#") {
		return fmt.Errorf("topic name: %w", errWildcard)
	}
	return nil
}

// CheckFilter says what is wrong with filter as the filter of a subscription,
// MQTT 5 §4.7; those that begin with $share/ must be a right shared
// subscription, §4.8.2. More than maxLevels levels, not counting those of the
// share, are refused; 0 is no limit.
func CheckFilter(filter string, maxLevels int) error {
	if strings.HasPrefix(filter, sharePrefix) {
		group, inner, _ := strings.Cut(filter[len(sharePrefix):], "/")
		if group == "" || strings.ContainsAny(group, "+#") {
			return fmt.Errorf("topic filter: %w", errGroup)
		}
		filter = inner
	}
	if err := check(filter, maxLevels); err != nil {
		return fmt.Errorf("topic filter: %w", err)
	}
	for i := range len(filter) {
		alone := i == 0 || filter[i-1] == '/'
		last := i == len(filter)-1
		switch filter[i] {
		case '+':
			if !alone || !last && filter[i+1] != '/' {
				return fmt.Errorf("topic filter: %w", errPlus)
			}
		case '#':
			if !alone || !last {
				return fmt.Errorf("topic filter: %w", errHash)
			}
		}
	}
	return nil
}

// check has the rules that names and filters share.
func check(s string, maxLevels int) error {
	switch {
	case s == "":
		return errEmpty
	case len(s) > MaxBytes:
		return errTooLong
	case maxLevels > 0 && Levels(s) > maxLevels:
		return fmt.Errorf("it has more than %d levels", maxLevels)
	case strings.IndexByte(s, 0) >= 0:
		return errNull
	case !utf8.ValidString(s):
		return errUTF8
	}
	return nil
}

// Levels is the number of levels of a name or filter.
func Levels(s string) int { return strings.Count(s, "/") + 1 }

// SplitShared takes the filter of a shared subscription apart. For any other
// filter group is empty and inner is the filter. The filter has passed
// CheckFilter.
func SplitShared(filter string) (group, inner string) {
	rest, ok := strings.CutPrefix(filter, sharePrefix)
	if !ok {
		return "", filter
	}
	group, inner, _ = strings.Cut(rest, "/")
	return group, inner
}

// Match reports whether filter, without a share, matches name. Both are valid.
// A wildcard in the first level matches no name that begins with $, MQTT 5
// §4.7.2.
func Match(filter, name string) bool {
	if hidden(name) && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		want, filterRest, filterMore := strings.Cut(filter, "/")
		if want == "#" {
			return true
		}
		level, nameRest, nameMore := strings.Cut(name, "/")
		switch {
		case want != "+" && want != level:
			return false
		case !nameMore:
			return !filterMore || filterRest == "#" // a/# matches a
		case !filterMore:
			return false
		}
		filter, name = filterRest, nameRest
	}
}

// hidden reports whether wildcards in the first level pass name over.
func hidden(name string) bool { return name != "" && name[0] == '$' }
