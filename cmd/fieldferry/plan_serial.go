package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// askPlan is what a serial device is asked, or that it talks unasked.
type askPlan struct {
	Device  string   `json:"device"`
	Request string   `json:"request"` // with escapes; empty: it talks unasked
	EveryMs float64  `json:"everyMs"` // 0: as it talks
	Points  []string `json:"points"`
}

// planSerial is the plan of a serial adapter. How long answers are, and so which share
// of the line they take, is not known.
func planSerial(a *config.Adapter) (linkPlan, error) {
	c := gateway.SerialConfig(a, nil)
	if _, err := serial.New(c); err != nil {
		return linkPlan{}, err
	}
	address := c.Port
	if address == "" {
		address = "tcp://" + c.Address
	}
	p := linkPlan{Name: c.Name, Address: address, Devices: len(c.Devices), Requests: []requestPlan{}}
	for i := range c.Devices {
		d := &c.Devices[i]
		var request []byte
		for _, s := range d.Steps {
			request = append(request, s.Send...)
		}
		request = append(request, d.Request...)
		rates := map[time.Duration][]string{}
		for j := range d.Points {
			switch pt := &d.Points[j]; {
			case pt.Hidden || len(pt.Send) > 0:
			case len(request) == 0 && len(d.Steps) == 0:
				rates[d.Every] = append(rates[d.Every], pt.Point.Name)
			default:
				every := cmp.Or(pt.Every, d.Every)
				rates[every] = append(rates[every], pt.Point.Name)
			}
		}
		for _, every := range slices.Sorted(maps.Keys(rates)) {
			if every > 0 && len(request) > 0 {
				p.RequestsPerSecond += 1 / every.Seconds()
				p.ValuesPerSecond += float64(len(rates[every])) / every.Seconds()
			}
			p.Asks = append(p.Asks, askPlan{d.Device.Name, printable(request), float64(every) / float64(time.Millisecond), rates[every]})
		}
	}
	return p, nil
}

func printAsks(w io.Writer, all []askPlan) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  DEVICE\tREQUEST\tEVERY\tPOINTS")
	for _, a := range all {
		request, every := a.Request, time.Duration(a.EveryMs*float64(time.Millisecond)).String()
		if request == "" {
			request = "none, it talks"
		}
		if a.EveryMs == 0 {
			every = "as it talks"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", a.Device, request, every, shorten(a.Points))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}
