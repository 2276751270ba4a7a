package command

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fieldferry/fieldferry/adapters"
)

// check says what of a command is not possible or not allowed. Nothing was sent by
// then.
func (d *Device) check(c *adapters.Command) error {
	switch c.Action {
	case GetConfig:
		return nil
	case Read:
		if d.Reader == nil {
			return fmt.Errorf("the device %s cannot be read when asked", d.Name)
		}
		for _, p := range c.Points {
			if _, there := d.Points[p]; !there {
				return d.noPoint(p)
			}
		}
		if d.Checker != nil {
			return d.Checker.CheckRead(d.Name, c.Points)
		}
		return nil
	case Write:
		for _, a := range c.Values {
			may, there := d.Points[a.Point]
			switch {
			case !there:
				return d.noPoint(a.Point)
			case !may:
				return fmt.Errorf("%s: may not be written; write: {} in the site file allows it", a.Point)
			}
		}
		return d.checkWrite(c.Values)
	}
	steps, there := d.Actions[c.Action]
	if !there {
		known := slices.Concat([]string{Write, Read}, slices.Sorted(maps.Keys(d.Actions)))
		return fmt.Errorf("action: the device %s has no action %s; there are %s", d.Name, c.Action, strings.Join(known, ", "))
	}
	if len(c.Values) > 0 || len(c.Points) > 0 {
		return fmt.Errorf("action: %s takes neither values nor points", c.Action)
	}
	for i, s := range steps {
		if len(s.Write) == 0 {
			continue
		}
		if err := d.checkWrite(s.Write); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

func (d *Device) checkWrite(values []adapters.Assignment) error {
	switch {
	case d.Writer == nil:
		return fmt.Errorf("the device %s cannot be written", d.Name)
	case len(values) == 0:
		return errors.New("values: are missing")
	case d.Checker != nil:
		return d.Checker.CheckWrite(d.Name, values)
	}
	return nil
}

func (d *Device) noPoint(name string) error {
	return fmt.Errorf("%s: the device %s has no such point", name, d.Name)
}
