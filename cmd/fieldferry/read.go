package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
)

func readCommand() *cobra.Command {
	var to target
	var server opcuaTarget
	var asJSON bool
	var unit uint8
	var as, order string
	var n uint16
	cmd := &cobra.Command{
		Use:   "read {FILE DEVICE [POINT…] | ADDRESS TABLE NUMBER | opc.tcp://HOST NODE…}",
		Short: "Read a Modbus, OPC UA or serial device, with a site file or without",
		Long: `read asks a device once and prints what it holds.

With a site file it reads the points of a device of it, all of them or those that
are named. A serial device that talks unasked is waited for, ten times its timeout. With an address it needs no file: the table is holding, input, coil or
discrete, and the number counts from 0, as on the wire. --as all shows the registers
there in every type and order side by side, and those one before and one after, for
when a manual leaves that open. With the address of an OPC UA server it reads nodes.

  fieldferry read site.yaml em-0001 voltage-l1
  fieldferry read 10.4.1.7 --unit 1 holding 100 --as all
  fieldferry read /dev/ttyUSB0 --baud 9600 --unit 7 input 1 --as float32 --order CDAB
  fieldferry read opc.tcp://10.4.1.9:4840 "ns=2;s=Pump.Speed"`,
		Args: args(cobra.MinimumNArgs(2)),
	}
	f := cmd.Flags()
	to.flags(f, time.Second)
	server.flags(f, &to.tls)
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.Uint8VarP(&unit, "unit", "u", 1, "the `NUMBER` of the device on the line or behind the host")
	f.StringVar(&as, "as", "", "the `TYPE` of what the registers hold, as in a site file, or all")
	f.StringVar(&order, "order", "ABCD", "the order of the bytes: ABCD, CDAB, BADC or DCBA")
	f.Uint16VarP(&n, "count", "n", 1, "how many values to read")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		out := cmd.OutOrStdout()
		if isSiteFile(args[0]) {
			return readSite(ctx, out, cmd.ErrOrStderr(), args[0], args[1], args[2:], asJSON)
		}
		if isOPCUA(args[0]) {
			return readNodes(ctx, out, &server, args[0], args[1:], asJSON)
		}
		if len(args) != 3 {
			return usageError{fmt.Errorf("%s: give an address, a table and a number, as 10.4.1.7 holding 100; or a site file and a device", cmd.CommandPath())}
		}
		r := reading{unit: unit, count: n}
		if err := r.parse(args[1], args[2], as, order); err != nil {
			return usageError{err}
		}
		c, err := to.config(args[0])
		if err != nil {
			return err
		}
		client, err := dial(ctx, c)
		if err != nil {
			return err
		}
		defer client.Close()
		if as == "all" {
			return r.all(ctx, client, out, asJSON)
		}
		return r.plain(ctx, client, out, asJSON)
	}
	return cmd
}

// shownSample is a sample as JSON.
type shownSample struct {
	Point   string `json:"point"`
	Value   any    `json:"value"`
	Unit    string `json:"unit,omitempty"`
	Quality string `json:"quality"`
	Reason  string `json:"reason,omitempty"`
}

func readSite(ctx context.Context, out, stderr io.Writer, path, device string, points []string, asJSON bool) error {
	c, err := loadSite(path, stderr)
	if err != nil {
		return err
	}
	var samples []adapters.Sample
	if sc := serialDevice(c, device); len(sc.Devices) > 0 {
		if samples, err = readSerial(ctx, sc, device, points); err != nil {
			fmt.Fprintln(stderr, err)
		}
		if len(samples) == 0 {
			return errNo
		}
	} else {
		client, explain, derr := dialDevice(ctx, c, device)
		if derr != nil {
			return derr
		}
		defer client.Close()
		if samples, err = client.Read(ctx, device, points); len(samples) == 0 {
			return explain(err)
		}
	}
	if err := printSamples(out, samples, asJSON); err != nil {
		return err
	}
	if err != nil {
		return errNo // it stands beside its point
	}
	return nil
}

func printSamples(out io.Writer, samples []adapters.Sample, asJSON bool) error {
	if asJSON {
		all := make([]shownSample, 0, len(samples))
		for i := range samples {
			s := &samples[i]
			all = append(all, shownSample{s.Point.Name, plainValue(s.Value), s.Point.Unit, s.Quality.String(), s.Reason})
		}
		return printJSON(out, all)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range samples {
		s := &samples[i]
		switch s.Quality {
		case adapters.Bad:
			fmt.Fprintf(t, "%s\t-\tbad: %s\n", s.Point.Name, s.Reason)
		case adapters.Uncertain:
			fmt.Fprintf(t, "%s\t%s %s\tuncertain: %s\n", s.Point.Name, s.Value, s.Point.Unit, s.Reason)
		default:
			fmt.Fprintf(t, "%s\t%s %s\t\n", s.Point.Name, s.Value, s.Point.Unit)
		}
	}
	return t.Flush()
}

// plainValue is a value for JSON.
func plainValue(v adapters.Value) any {
	switch v.Kind() {
	case adapters.KindBool:
		return v.Bool()
	case adapters.KindInt, adapters.KindInt64:
		return v.Int64()
	case adapters.KindUint64:
		return v.Uint64()
	case adapters.KindFloat32:
		return v.Float32()
	case adapters.KindFloat64:
		f, _ := v.Float64()
		return f
	case adapters.KindString:
		return v.Text()
	case adapters.KindList:
		all := []any{}
		for _, e := range v.List() {
			all = append(all, plainValue(e))
		}
		return all
	case adapters.KindFlags:
		names, set := v.Flags()
		all := map[string]bool{}
		for i, n := range names {
			all[n] = set>>i&1 != 0
		}
		return all
	}
	return nil
}

// reading is what is to be read without a site file.
type reading struct {
	unit  uint8
	table modbus.Table
	start uint16
	count uint16
	typ   modbus.Type
	order modbus.Order
}

func (r *reading) parse(table, number, as, order string) error {
	var ok bool
	if r.table, ok = modbus.ParseTable(table); !ok {
		return fmt.Errorf("there is no table %q; it is holding, input, coil or discrete", table)
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is no address; it is 0 to 65535, as on the wire: what a manual calls 40001 is holding 0", number)
	}
	r.start = uint16(n)
	if r.order, ok = modbus.ParseOrder(order); !ok {
		return fmt.Errorf("there is no order %q; it is ABCD, CDAB, BADC or DCBA", order)
	}
	if r.count < 1 {
		return errors.New("--count must be 1 or more")
	}
	if as == "all" {
		return nil
	}
	if r.typ, ok = modbus.ParseType(as); !ok || r.typ == modbus.String {
		return fmt.Errorf("there is no type %q to read as; it is bool, int16, uint16, int32, uint32, int64, uint64, float16, float32, float64, bcd16, bcd32 or all", as)
	}
	return nil
}

func (r *reading) bits() bool { return r.table == modbus.Coil || r.table == modbus.Discrete }

// shownAddress is what an address holds, as JSON.
type shownAddress struct {
	Address   int    `json:"address"`
	Registers string `json:"registers,omitempty"` // in hexadecimal
	Value     any    `json:"value"`
	Reason    string `json:"reason,omitempty"`
}

// plain reads values of one type.
func (r *reading) plain(ctx context.Context, client *modbus.Client, out io.Writer, asJSON bool) error {
	var all []shownAddress
	var texts []string
	if r.bits() {
		on, err := client.Bits(ctx, r.unit, r.table, r.start, r.count)
		if err != nil {
			return explainModbus(err)
		}
		for i, b := range on {
			all = append(all, shownAddress{Address: int(r.start) + i, Value: b})
			texts = append(texts, strconv.FormatBool(b))
		}
	} else {
		p := modbus.Point{Type: r.typ, Order: r.order}
		size := p.Registers()
		if int(r.count)*size > 125 {
			return usageError{fmt.Errorf("%d values take %d registers, and a request can ask for 125; give a smaller --count", r.count, int(r.count)*size)}
		}
		if last := int(r.start) + int(r.count)*size - 1; last > 65535 {
			return usageError{fmt.Errorf("they would end at %d, and the last address is 65535", last)}
		}
		b, err := client.Registers(ctx, r.unit, r.table, r.start, r.count*uint16(size))
		if err != nil {
			return explainModbus(err)
		}
		for i := range int(r.count) {
			mine := b[2*size*i : 2*size*(i+1)]
			v, _, reason := p.Decode(mine)
			all = append(all, shownAddress{int(r.start) + i*size, hex.EncodeToString(mine), plainValue(v), reason})
			text := v.String()
			if reason != "" {
				text = "bad: " + reason
			}
			texts = append(texts, text)
		}
	}
	if asJSON {
		return printJSON(out, all)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i, a := range all {
		fmt.Fprintf(t, "%s %d\t%s\t%s\n", r.table, a.Address, a.Registers, texts[i])
	}
	return t.Flush()
}

// interpretation is what registers hold if they hold a type in an order.
type interpretation struct {
	Address int    `json:"address"`
	As      string `json:"as"`
	Order   string `json:"order"`
	Value   any    `json:"value"`
	text    string
}

// all shows the registers there in every type and order, and those one before and
// one after.
func (r *reading) all(ctx context.Context, client *modbus.Client, out io.Writer, asJSON bool) error {
	if r.bits() {
		return usageError{fmt.Errorf("a %s is true or false, and nothing else; leave --as out", r.table)}
	}
	const longest = 4 // registers
	first, held := int(r.start), [][]byte{}
	if first > 0 {
		first--
	}
	// One register at a time, and no more than there are: the neighbours may not
	// exist, and a value is whole only where its registers do.
	b, err := r.most(ctx, client, first, min(int(r.start)+1+longest, 1<<16)-first)
	if err != nil {
		return explainModbus(err)
	}
	held = append(held, b...)
	var all []interpretation
	for at := first; at <= int(r.start)+1 && at-first < len(held); at++ {
		all = append(all, interpret(at, held[at-first:])...)
	}
	if asJSON {
		return printJSON(out, struct {
			Unit      uint8            `json:"unit"`
			Table     string           `json:"table"`
			Registers []string         `json:"registers"`
			First     int              `json:"first"`
			As        []interpretation `json:"as"`
		}{r.unit, r.table.String(), hexes(held), first, all})
	}
	for i, h := range hexes(held) {
		if h != "" {
			fmt.Fprintf(out, "%s %d: %s\n", r.table, first+i, h)
		}
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	last := -1
	for _, row := range rowsOf(all) {
		if row[0].Address != last {
			last = row[0].Address
			mark := ""
			if last == int(r.start) {
				mark = "  <- asked for"
			}
			if err := t.Flush(); err != nil {
				return err
			}
			fmt.Fprintf(out, "\nfrom %d%s\n", last, mark)
			fmt.Fprintln(t, "\tABCD\tCDAB\tBADC\tDCBA\t")
		}
		fmt.Fprintf(t, "%s\t", row[0].As)
		for _, order := range []string{"ABCD", "CDAB", "BADC", "DCBA"} {
			text := ""
			for _, c := range row {
				if c.Order == order {
					text = c.text
				}
			}
			fmt.Fprintf(t, "%s\t", text)
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// most reads registers one by one; one that is refused is nil. It is an error if
// the one that was asked for is.
func (r *reading) most(ctx context.Context, client *modbus.Client, first, n int) ([][]byte, error) {
	held := make([][]byte, n)
	for i := range held {
		b, err := client.Registers(ctx, r.unit, r.table, uint16(first+i), 1)
		if err != nil && (first+i == int(r.start) || modbus.Exception(err) == 0) {
			return nil, err
		}
		held[i] = b
	}
	// Together, if the device can: values of several registers are of one moment.
	if b, err := client.Registers(ctx, r.unit, r.table, uint16(first), uint16(n)); err == nil {
		for i := range held {
			held[i] = b[2*i : 2*i+2]
		}
	}
	return held, nil
}

func hexes(held [][]byte) []string {
	all := make([]string, len(held))
	for i, b := range held {
		all[i] = hex.EncodeToString(b)
	}
	return all
}

// interpret returns what the registers from an address on may hold.
func interpret(address int, held [][]byte) (all []interpretation) {
	for typ := modbus.Bool; typ <= modbus.BCD32; typ++ {
		if typ == modbus.String {
			continue
		}
		for order := modbus.ABCD; order <= modbus.DCBA; order++ {
			p := modbus.Point{Type: typ, Order: order}
			size := p.Registers()
			if size == 1 && (order == modbus.CDAB || order == modbus.DCBA || typ == modbus.Bool && order != modbus.ABCD) || size > len(held) {
				continue // the same as another, or more than there is
			}
			var b []byte
			for _, w := range held[:size] {
				b = append(b, w...)
			}
			if len(b) != 2*size {
				continue
			}
			i := interpretation{Address: address, As: typ.String(), Order: order.String(), text: "-"}
			if v, q, _ := p.Decode(b); q == adapters.Good {
				i.Value, i.text = plainValue(v), v.String()
			}
			all = append(all, i)
		}
	}
	return all
}

// rowsOf puts the orders of a type together.
func rowsOf(all []interpretation) (rows [][]interpretation) {
	for _, i := range all {
		if n := len(rows); n > 0 && rows[n-1][0].As == i.As && rows[n-1][0].Address == i.Address {
			rows[n-1] = append(rows[n-1], i)
			continue
		}
		rows = append(rows, []interpretation{i})
	}
	return rows
}
