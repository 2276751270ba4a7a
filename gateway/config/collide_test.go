package config

import (
	"strings"
	"testing"
)

func TestShapesMeet(t *testing.T) {
	shape := func(s string) []string {
		levels := strings.Split(s, "/")
		for i, l := range levels {
			if l == "#" {
				levels[i] = rest
				continue
			}
			levels[i] = strings.ReplaceAll(l, "+", free)
		}
		return levels
	}
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a/b", "a/b", true},
		{"a/b", "a/c", false},
		{"a/+", "a/c", true},
		{"a/+", "a/c/d", false},
		{"a/#", "a/c/d", true},
		{"a/#", "a", true},
		{"a/#/z", "a/b/c/z", true},
		{"a/#/z", "a/b/c/y", false},
		{"#/z", "a/#", true},
		{"a/x-+", "a/y-+", false},
		{"a/x-+", "a/x-1", true},
		{"a/x-+", "a/+-y", true},
		{"a/+-x", "a/+-y", false},
		{"a/+-x", "a/1-x", true},
		{"acme/raw/+/#", "acme/zone-a/pump/p-1/#", false},
	} {
		for range 2 {
			if got := meet(shape(tt.a), shape(tt.b)); got != tt.want {
				t.Errorf("%s and %s meet: %t", tt.a, tt.b, got)
			}
			tt.a, tt.b = tt.b, tt.a
		}
	}
}
