package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/serial"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

func planCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan FILE",
		Short: "Show which requests the gateway will make, and how often",
		Long: `plan reads a site file and shows what each adapter will ask its devices for: the
unit, function, addresses and how often; and for serial lines which share of the
line's time that takes. It connects to nothing.`,
		Args: args(cobra.MaximumNArgs(1)),
	}
	find := siteFile(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := find(args)
		if err != nil {
			return err
		}
		c, err := loadSite(path, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		plan, err := planOf(c)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), plan)
		}
		return plan.print(cmd.OutOrStdout())
	}
	return cmd
}

// plan is what the gateway will ask for.
type plan struct {
	Links             []linkPlan `json:"links"`
	RequestsPerSecond float64    `json:"requestsPerSecond"`
	ValuesPerSecond   float64    `json:"valuesPerSecond"`
}

// linkPlan is that of one connection or line.
type linkPlan struct {
	Name              string        `json:"name"`
	Address           string        `json:"address"`
	Devices           int           `json:"devices"`
	RequestsPerSecond float64       `json:"requestsPerSecond"`
	ValuesPerSecond   float64       `json:"valuesPerSecond"`
	Share             *float64      `json:"share,omitempty"` // of a serial line's time
	Requests          []requestPlan `json:"requests"`
	Asks              []askPlan     `json:"asks,omitempty"` // of a serial line that speaks no Modbus
}

// askPlan is what a serial device is asked, or that it talks unasked.
type askPlan struct {
	Device  string   `json:"device"`
	Request string   `json:"request"` // with escapes; empty: it talks unasked
	EveryMs float64  `json:"everyMs"` // 0: as it talks
	Points  []string `json:"points"`
}

type requestPlan struct {
	Device   string   `json:"device"`
	Unit     uint8    `json:"unit"`
	Function uint8    `json:"function"`
	Table    string   `json:"table"`
	Address  int      `json:"address"`
	Count    int      `json:"count"`
	EveryMs  float64  `json:"everyMs"`
	Points   []string `json:"points"`
}

func planOf(c *config.Config) (*plan, error) {
	all := &plan{Links: []linkPlan{}}
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Serial != nil {
			p, err := planSerial(a)
			if err != nil {
				return nil, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
			}
			all.RequestsPerSecond += p.RequestsPerSecond
			all.ValuesPerSecond += p.ValuesPerSecond
			all.Links = append(all.Links, p)
		}
		if a.Modbus == nil {
			continue
		}
		for _, mc := range gateway.ModbusConfigs(a, nil) {
			link, err := modbus.New(mc)
			if err != nil {
				return nil, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
			}
			p := linkPlan{Name: mc.Name, Address: mc.Transport + "://" + mc.Address, Devices: len(mc.Devices), Requests: []requestPlan{}}
			share := 0.0
			for _, r := range link.Requests() {
				rate := 1 / r.Every.Seconds()
				p.RequestsPerSecond += rate
				p.ValuesPerSecond += rate * float64(len(r.Points))
				share += rate * r.Takes.Seconds()
				p.Requests = append(p.Requests, requestPlan{
					r.Device, r.Unit, r.Function, r.Table.String(), r.Start, r.Count, float64(r.Every) / float64(time.Millisecond), r.Points,
				})
			}
			if share > 0 {
				p.Share = &share
			}
			all.RequestsPerSecond += p.RequestsPerSecond
			all.ValuesPerSecond += p.ValuesPerSecond
			all.Links = append(all.Links, p)
		}
	}
	return all, nil
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

func (p *plan) print(w io.Writer) error {
	for _, l := range p.Links {
		fmt.Fprintf(w, "%s  %s  %s, %.4g requests and %.4g values a second", l.Name, l.Address, count(l.Devices, "device"), l.RequestsPerSecond, l.ValuesPerSecond)
		if l.Share != nil {
			fmt.Fprintf(w, ", %.0f %% of the line's time with units that answer after 10 ms", *l.Share*100)
			if *l.Share > 0.8 {
				fmt.Fprint(w, ": TOO MUCH, cycles will be skipped; poll more slowly, or raise max_gap or baud")
			}
		}
		fmt.Fprintln(w)
		if l.Asks != nil {
			if err := printAsks(w, l.Asks); err != nil {
				return err
			}
			continue
		}
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  DEVICE\tUNIT\tFUNCTION\tADDRESSES\tEVERY\tPOINTS")
		for _, r := range l.Requests {
			fmt.Fprintf(t, "  %s\t%d\t%d %s\t%d..%d\t%s\t%s\n", r.Device, r.Unit, r.Function, r.Table, r.Address, r.Address+r.Count-1,
				time.Duration(r.EveryMs*float64(time.Millisecond)), shorten(r.Points))
		}
		if err := t.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintf(w, "in all %.4g requests and %.4g values a second\n", p.RequestsPerSecond, p.ValuesPerSecond)
	return err
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

// shorten names the first few.
func shorten(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s … (%d)", strings.Join(names[:most-1], " "), len(names))
}
