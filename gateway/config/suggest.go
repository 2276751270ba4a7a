package config

import (
	"maps"
	"slices"
	"strings"
)

// suggest is ` (did you mean "x"?)` with the nearest of the known words, or
// nothing if none is near.
func suggest(word string, known []string) string {
	if w := nearest(word, known); w != "" {
		return ` (did you mean "` + w + `"?)`
	}
	return ""
}

// suggestKey is suggest for keys that a file may have many of: it is not worth
// comparing all of them for each of many mistakes.
func suggestKey[V any](d *decoder, word string, known map[string]V) string {
	if len(d.problems) > 100 || len(known) > 2_000 {
		return ""
	}
	return suggest(word, keysOf(known))
}

// nearest is the known word with the fewest typing mistakes from word, at most
// one for each three letters, or else one that word is the beginning of; of
// several the first. It is "" if there is none.
func nearest(word string, known []string) string {
	if len(word) > 64 {
		return ""
	}
	best, least := "", 1+max(1, len(word)/3)
	for _, k := range known {
		if k == word || len(k) > 64 {
			continue
		}
		if max(len(k)-len(word), len(word)-len(k)) >= least {
			continue
		}
		if n := distance(plainWord(word), plainWord(k)); n < least {
			best, least = k, n
		}
	}
	if best == "" && len(word) >= 3 {
		if i := slices.IndexFunc(known, func(k string) bool { return k != word && strings.HasPrefix(k, word) }); i >= 0 {
			return known[i]
		}
	}
	return best
}

// plainWord leaves out what is often taken for one another in keys.
func plainWord(s string) string { return wordBreaks.Replace(strings.ToLower(s)) }

var wordBreaks = strings.NewReplacer("-", "_", " ", "_")

// distance is how many letters must be put in, left out, replaced or swapped
// with their neighbour to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func keysOf[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// distinct are the words, each once.
func distinct(words []string) []string {
	var out []string
	for _, w := range words {
		if !slices.Contains(out, w) {
			out = append(out, w)
		}
	}
	return out
}

// oneOf lists words: "a, b or c".
func oneOf(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
