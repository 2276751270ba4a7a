package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

func planCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan FILE",
		Short: "Show which requests the gateway will make, how often, and its ways upstream",
		Long: `plan reads a site file and shows what each adapter will ask its devices for: the
unit, function, addresses and how often; and for serial lines which share of the
line's time that takes; the way to each upstream, which connection carries which
devices, and which topics go there and come from there; and how long the buffer holds
what is read while no upstream is there. It connects to nothing.`,
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

	Bridges  []gateway.WayPlan `json:"bridges"`
	Topics   []gateway.Carried `json:"topics"`
	Forecast gateway.Forecast  `json:"forecast"`
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
	Told              []toldPlan    `json:"told,omitempty"` // of an OPC UA server
}

// toldPlan is what a server tells of a device at one rate, or is asked for.
type toldPlan struct {
	Device     string   `json:"device"`
	EveryMs    float64  `json:"everyMs"`
	SamplingMs float64  `json:"samplingMs,omitempty"` // 0: it is asked
	Points     []string `json:"points"`
}

// opcuaPlan is that of a server. It is not known how often its values change; what is
// counted is what they can be at most.
func opcuaPlan(c *config.Config, a *config.Adapter) (linkPlan, error) {
	oc := gateway.OPCUAConfig(c, a, nil)
	if _, err := opcua.New(oc); err != nil {
		return linkPlan{}, fmt.Errorf("%s: adapter %s: %w", a.Pos, a.Name, err)
	}
	p := linkPlan{Name: oc.Name, Address: oc.Endpoint, Devices: len(oc.Devices), Requests: []requestPlan{}}
	for i := range oc.Devices {
		d := &oc.Devices[i]
		at := map[time.Duration]int{}
		for j := range d.Points {
			pt := &d.Points[j]
			if pt.Hidden || pt.Call != "" {
				continue
			}
			n, ok := at[pt.Every]
			if !ok {
				n = len(p.Told)
				at[pt.Every] = n
				t := toldPlan{Device: d.Device.Name, EveryMs: milliseconds(pt.Every), SamplingMs: milliseconds(d.Sampling)}
				if oc.Poll {
					t.SamplingMs = 0
				}
				p.Told = append(p.Told, t)
				p.RequestsPerSecond += 1 / pt.Every.Seconds()
			}
			p.Told[n].Points = append(p.Told[n].Points, pt.Point.Name)
			rate := pt.Every
			if !oc.Poll {
				rate = d.Sampling
			}
			p.ValuesPerSecond += 1 / rate.Seconds()
		}
	}
	return p, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

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
	all := &plan{Links: []linkPlan{}, Bridges: []gateway.WayPlan{}}
	for i := range c.Bridges {
		all.Bridges = append(all.Bridges, gateway.PlanWay(c, &c.Bridges[i]))
	}
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
			continue
		}
		if a.OPCUA != nil {
			p, err := opcuaPlan(c, a)
			if err != nil {
				return nil, err
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
	var err error
	if all.Topics, err = gateway.Topics(c); err != nil {
		return nil, err
	}
	all.Forecast = gateway.Foresee(c)
	return all, nil
}

func (p *plan) print(w io.Writer) error {
	for _, l := range p.Links {
		if l.Told != nil {
			if err := l.printTold(w); err != nil {
				return err
			}
			continue
		}
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
	for _, b := range p.Bridges {
		printWay(w, &b)
	}
	if err := p.printTopics(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "in all %.4g requests and %.4g values a second\n", p.RequestsPerSecond, p.ValuesPerSecond)
	return printForecast(w, &p.Forecast)
}

// printTopics prints what the bridges carry. Of devices that are alike it shows one.
func (p *plan) printTopics(w io.Writer) error {
	if len(p.Topics) == 0 {
		return nil
	}
	alike := func(t gateway.Carried) gateway.Carried {
		t.Local = strings.ReplaceAll(t.Local, "/"+t.Device+"/", "/{device}/")
		t.Upstream = strings.ReplaceAll(t.Upstream, t.Device, "{device}")
		t.Device = ""
		return t
	}
	devices := make(map[gateway.Carried]int)
	for _, t := range p.Topics {
		devices[alike(t)]++
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRIDGE\tLOCAL\t\tUPSTREAM\tQOS\tCLASS\tDEVICES")
	for _, c := range p.Topics {
		n := devices[alike(c)]
		if n == 0 {
			continue // it was shown
		}
		devices[alike(c)] = 0
		arrow, class := "→", c.Class
		if c.Direction == "down" {
			arrow = "←"
		}
		if c.Retain {
			class += ", retained"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%s\t%d\n", c.Bridge, c.Local, arrow, c.Upstream, c.QoS, class, n)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

func printForecast(w io.Writer, f *gateway.Forecast) error {
	if f.MessagesPerSecond > 0 {
		fmt.Fprintf(w, "%.4g messages with %.4g kB of payload a second\n", f.MessagesPerSecond, f.PayloadPerSecond/1e3)
	}
	if f.OutageHours > 0 {
		fmt.Fprintf(w, "without an upstream at most about %.3g kB a second are stored: the buffer holds %s, up to buffer.%s\n", f.StoredPerSecond/1e3, hours(f.OutageHours), f.Bound)
	}
	if f.Unknown > 0 {
		fmt.Fprintf(w, "devices that send when they like are not in that: %d\n", f.Unknown)
	}
	return nil
}

// hours is a long time, roughly.
func hours(h float64) string {
	if h >= 48 {
		return fmt.Sprintf("%.3g days", h/24)
	}
	return fmt.Sprintf("%.3g hours", h)
}

// printTold shows what an OPC UA server tells.
func (l *linkPlan) printTold(w io.Writer) error {
	fmt.Fprintf(w, "%s  %s  %s, %.4g values a second at most\n", l.Name, l.Address, count(l.Devices, "device"), l.ValuesPerSecond)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  DEVICE\tEVERY\tSAMPLED\tPOINTS")
	for _, r := range l.Told {
		sampled := "polled"
		if r.SamplingMs > 0 {
			sampled = fmt.Sprint(time.Duration(r.SamplingMs * float64(time.Millisecond)))
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", r.Device, time.Duration(r.EveryMs*float64(time.Millisecond)), sampled, shorten(r.Points))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// printWay prints the way of a bridge.
func printWay(w io.Writer, b *gateway.WayPlan) {
	fmt.Fprintf(w, "bridge %s to %s", b.Bridge, strings.Join(b.Upstream, ", or else "))
	if b.Proxy != "" {
		fmt.Fprintf(w, ", through %s", b.Proxy)
	}
	fmt.Fprintln(w)
	if b.TLS != nil {
		trust, own := "the system's authorities", "no certificate of our own"
		if b.TLS.CA != "" {
			trust = b.TLS.CA
		}
		if b.TLS.Cert != "" {
			own = b.TLS.Cert
		}
		fmt.Fprintf(w, "  TLS %s or newer, trusts %s, shows %s", b.TLS.MinVersion, trust, own)
		if n := len(b.TLS.Pins); n > 0 {
			fmt.Fprintf(w, ", takes %s", count(n, "key"))
		}
		fmt.Fprintln(w)
	}
	if len(b.Connections) == 1 {
		fmt.Fprintf(w, "  client id %s\n\n", b.Connections[0].ClientID)
		return
	}
	for _, c := range b.Connections {
		fmt.Fprintf(w, "  client id %s: %s\n", c.ClientID, count(len(c.Devices), "device"))
	}
	if len(b.Spread) > 0 {
		fmt.Fprintf(w, "  by their id: %s\n", strings.Join(b.Spread, " "))
	}
	fmt.Fprintln(w)
}

// shorten names the first few.
func shorten(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s … (%d)", strings.Join(names[:most-1], " "), len(names))
}
