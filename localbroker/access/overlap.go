package access

import "strings"

// overlap returns the filter that matches what both of two filters match, if
// there is such a name. Filters that overlap always have one in common.
func overlap(a, b string) (common string, ok bool) {
	if wild(a) && dollar(b) || wild(b) && dollar(a) { // MQTT 5 §4.7.2
		return "", false
	}
	var levels []string
	for {
		x, restX, moreX := strings.Cut(a, "/")
		y, restY, moreY := strings.Cut(b, "/")
		switch {
		case x == "#":
			return strings.Join(append(levels, b), "/"), true
		case y == "#":
			return strings.Join(append(levels, a), "/"), true
		case x == "+":
			levels = append(levels, y)
		case y == "+" || x == y:
			levels = append(levels, x)
		default:
			return "", false
		}
		if !moreX || !moreY {
			common = strings.Join(levels, "/")
			// a/# matches a as well; but /# does not match "", which is no name.
			return common, common != "" && (!moreX && !moreY || restX == "#" || restY == "#")
		}
		a, b = restX, restY
	}
}

// covers reports whether wide matches all that narrow matches.
func covers(wide, narrow string) bool {
	if wild(wide) && dollar(narrow) {
		return false
	}
	for {
		x, restX, moreX := strings.Cut(wide, "/")
		y, restY, moreY := strings.Cut(narrow, "/")
		switch {
		case x == "#":
			return true
		case y == "#", x != "+" && x != y:
			return false
		case !moreY:
			return !moreX || restX == "#"
		case !moreX:
			return false
		}
		wide, narrow = restX, restY
	}
}

func coveredBy(wide []string, narrow string) bool {
	for _, w := range wide {
		if covers(w, narrow) {
			return true
		}
	}
	return false
}

// wild reports whether a filter begins with a wildcard.
func wild(filter string) bool { return filter[0] == '+' || filter[0] == '#' }

// dollar reports whether what a filter matches begins with $.
func dollar(filter string) bool { return filter[0] == '$' }
