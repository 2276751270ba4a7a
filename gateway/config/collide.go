package config

import (
	"slices"
	"strings"
)

// In a shape of topics a level is text in which free stands for anything, and the
// level rest stands for any number of levels.
const (
	free = "\x00"
	rest = "\x00\x00"
)

// shape is what topics a template makes.
func (t *template) shape(restField string, value func(field string) (string, bool)) []string {
	levels := slices.Clone(t.levels)
	for i, level := range levels {
		if level == "{"+restField+"}" {
			levels[i] = rest
			continue
		}
		for _, f := range t.fields {
			v, ok := value(f)
			if !ok {
				v = free
			}
			level = strings.ReplaceAll(level, "{"+f+"}", v)
		}
		levels[i] = level
	}
	return levels
}

// meet reports whether two shapes have a topic in common.
func meet(a, b []string) bool {
	switch {
	case len(a) == 0 && len(b) == 0:
		return true
	case len(a) > 0 && a[0] == rest:
		return meet(a[1:], b) || len(b) > 0 && meet(a, b[1:])
	case len(b) > 0 && b[0] == rest:
		return meet(b, a)
	case len(a) == 0 || len(b) == 0:
		return false
	}
	return levelsMeet(a[0], b[0]) && meet(a[1:], b[1:])
}

// levelsMeet is meet for a level. What is between two free parts is taken to fit.
func levelsMeet(a, b string) bool {
	beforeA, _, freeA := strings.Cut(a, free)
	beforeB, _, freeB := strings.Cut(b, free)
	if !freeA && !freeB {
		return a == b
	}
	if !freeA {
		beforeA = a
	}
	if !freeB {
		beforeB = b
	}
	afterA, afterB := a[strings.LastIndex(a, free)+1:], b[strings.LastIndex(b, free)+1:]
	begins := freeA && strings.HasPrefix(beforeB, beforeA) || freeB && strings.HasPrefix(beforeA, beforeB)
	ends := freeA && strings.HasSuffix(afterB, afterA) || freeB && strings.HasSuffix(afterA, afterB)
	return begins && ends
}

// checkCollisions reports forward rules that could put what they carry on the
// upstream topic of something else, and, of those down, what comes for which of two
// nobody could tell.
func (d *decoder) checkCollisions(c *Config, b *Bridge, t *template) {
	gateway := func(field string) (string, bool) {
		switch field {
		case "gateway":
			return c.Gateway.ID, true
		case "org":
			return c.Gateway.Org, true
		case "site":
			return c.Gateway.Site, true
		}
		return "", false
	}
	var shapes [][]string
	for i := range b.Forward {
		f := &b.Forward[i]
		var shape []string
		if ft, err := parseTemplate(f.Upstream, topicFixed, "#"); err == nil && !f.broken {
			shape = ft.shape("#", gateway)
		}
		for j, before := range shapes {
			if g := &b.Forward[j]; shape != nil && before != nil && f.Down == g.Down && f.Local != g.Local && meet(shape, before) {
				d.problem(f.upstreamPos, "upstream: %s and the rule %s, %s, can make the same topic; change one so that a level differs", quote(f.Upstream), g.Pos.from(f.Pos), quote(g.Upstream))
				break
			}
		}
		shapes = append(shapes, shape)
		if dev := firstMeeting(c, t, shape, gateway); dev != nil {
			d.problem(f.upstreamPos, "upstream: %s can make a topic of the device %s; change it so that a level differs", quote(f.Upstream), quote(dev.ID))
		}
	}
}

// firstMeeting is the first device of which a topic may have the shape.
func firstMeeting(c *Config, t *template, shape []string, gateway func(string) (string, bool)) *Device {
	if shape == nil || t == nil {
		return nil
	}
	for i := range c.Adapters {
		for j := range c.Adapters[i].Devices {
			dev := &c.Adapters[i].Devices[j]
			if dev.broken {
				continue
			}
			of := t.shape("data", func(field string) (string, bool) {
				if v, ok := gateway(field); ok {
					return v, true
				}
				return strings.ReplaceAll(dev.field(field), "*", free), true
			})
			if meet(of, shape) {
				return dev
			}
		}
	}
	return nil
}
