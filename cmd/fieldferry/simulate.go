package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/simulate"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

func simulateCommand() *cobra.Command {
	var faults []string
	var port int
	cmd := &cobra.Command{
		Use:   "simulate FILE",
		Short: "Serve the Modbus and serial devices of a site file, with faults on request",
		Long: `simulate serves the devices of a site file with values that move, until it
gets SIGTERM or SIGINT. An address of this machine (127.0.0.1) is served as it is;
any other on 127.0.0.1, on ports from --port on; a serial port that does not exist
is made as a pseudo terminal with a link of that name. It prints what is served
where. A serial device that speaks no Modbus says what its simulate: has, with the
numbers of its points in it.

--fault gives a device a fault, and may be repeated: dead, slow:DURATION, late:DURATION,
exception:CODE, drop, truncated, duplicate, bytewise, wrong-unit, wrong-function,
wrong-transaction, wrong-crc, noise. With drop, a serial port is away for a second.

  fieldferry simulate site.yaml --fault em-0002=dead --fault em-0003=slow:300ms`,
		Args: args(cobra.MaximumNArgs(1)),
	}
	find := siteFile(cmd)
	cmd.Flags().StringArrayVar(&faults, "fault", nil, "`DEVICE=FAULT`")
	cmd.Flags().IntVar(&port, "port", 15020, "the first port for addresses that are not of this machine")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := find(args)
		if err != nil {
			return err
		}
		wrong := map[string]simulate.Fault{}
		for _, word := range faults {
			device, f, err := parseFault(word)
			if err != nil {
				return usageError{err}
			}
			wrong[device] = f
		}
		c, err := loadSite(path, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		for name := range wrong {
			if !hasDevice(c, name) {
				return usageError{fmt.Errorf("--fault: there is no device %s in %s", name, path)}
			}
		}
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		return simulateSite(ctx, c, wrong, port, cmd.OutOrStdout())
	}
	return cmd
}

func hasDevice(c *config.Config, name string) bool {
	return slices.ContainsFunc(c.Adapters, func(a config.Adapter) bool {
		return slices.ContainsFunc(a.Devices, func(d config.Device) bool { return d.ID == name })
	})
}

// parseFault reads DEVICE=FAULT.
func parseFault(word string) (device string, f simulate.Fault, err error) {
	device, what, ok := strings.Cut(word, "=")
	if !ok {
		return "", f, fmt.Errorf("--fault: %q is no fault; write DEVICE=dead, or DEVICE=slow:300ms", word)
	}
	kind, detail, _ := strings.Cut(what, ":")
	switch kind {
	case "dead":
		f.Dead = true
	case "slow", "late":
		f.Late = kind == "late"
		if f.Delay, err = time.ParseDuration(detail); err != nil || f.Delay <= 0 {
			return "", f, fmt.Errorf("--fault: %s needs a duration, as %s:300ms", kind, kind)
		}
	case "exception":
		code, err := strconv.ParseUint(detail, 10, 8)
		if err != nil || code == 0 {
			return "", f, errors.New("--fault: exception needs a code, as exception:2")
		}
		f.Exception = byte(code)
	case "drop":
		f.Hangup, f.Dead = true, true
	case "truncated":
		f.Truncate = 4
	case "duplicate":
		f.Duplicate = true
	case "bytewise":
		f.ByteByByte = true
	case "wrong-unit":
		f.WrongUnit = true
	case "wrong-function":
		f.WrongFunction = true
	case "wrong-transaction":
		f.WrongTransaction = true
	case "wrong-crc":
		f.WrongCRC = true
	case "noise":
		f.Noise = true
	default:
		return "", f, fmt.Errorf("--fault: there is no fault %q; run 'fieldferry simulate --help' for them", kind)
	}
	return device, f, nil
}

func simulateSite(ctx context.Context, c *config.Config, faults map[string]simulate.Fault, port int, out io.Writer) error {
	group, ctx := errgroup.WithContext(ctx)
	served := 0
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Serial != nil {
			n, err := simulateSerial(ctx, group, a, faults, &port, out)
			if err != nil {
				return errors.Join(err, ended(group, ctx))
			}
			served += n
			continue
		}
		if a.Modbus == nil {
			fmt.Fprintf(out, "%s: not served; only Modbus and serial devices are\n", a.Name)
			continue
		}
		for _, mc := range gateway.ModbusConfigs(a, nil) {
			s := simulate.New()
			for j := range mc.Devices {
				d := &mc.Devices[j]
				u := s.Unit(d.UnitID)
				if err := simulateDevice(u, d); err != nil {
					return fmt.Errorf("%s: %w", d.Device.Name, err)
				}
				u.SetFault(faults[d.Device.Name])
				delete(faults, d.Device.Name)
			}
			where, err := serveLink(ctx, group, s, &mc, &port)
			if err != nil {
				return errors.Join(fmt.Errorf("%s: %w", mc.Name, err), ended(group, ctx))
			}
			served += len(mc.Devices)
			fmt.Fprintf(out, "%s: %s of %s://%s served at %s\n", mc.Name, count(len(mc.Devices), "device"), mc.Transport, mc.Address, where)
		}
	}
	for name := range faults {
		fmt.Fprintf(out, "--fault %s: it is not served here\n", name)
	}
	if served == 0 {
		return errors.New("the site file has no devices that can be simulated")
	}
	return group.Wait()
}

// ended waits for what serves already, if that has failed; else it is left to the
// end of the process.
func ended(group *errgroup.Group, ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return group.Wait()
}

// simulateDevice makes a unit of a device: its points move, or hold what can be
// written.
func simulateDevice(u *simulate.Unit, d *modbus.Device) error {
	factors := map[string]bool{}
	for i := range d.Points {
		factors[d.Points[i].ScaleBy] = true
	}
	u.Identify(map[byte]string{0: "Fieldferry", 1: d.Device.Type + " (simulated)", 2: version})
	for i := range d.Points {
		p := d.Points[i]
		table := [...]simulate.Table{modbus.Holding: simulate.Holding, modbus.Input: simulate.Input, modbus.Coil: simulate.Coil, modbus.Discrete: simulate.Discrete}[p.Table]
		period := time.Duration(10+i%7) * time.Second
		still := p.Write != nil || factors[p.Point.Name]
		switch {
		case (table == simulate.Coil || table == simulate.Discrete) && (still || p.Count > 0):
			u.Set(table, p.Address, make([]uint16, max(p.Count, 1))...)
		case table == simulate.Coil || table == simulate.Discrete:
			u.Switch(table, p.Address, simulate.Blink(period))
		default:
			if err := simulateRegisters(u, table, &p, still, period); err != nil {
				return fmt.Errorf("point %s: %w", p.Point.Name, err)
			}
		}
	}
	return nil
}

// simulateRegisters defines the registers of a point. What moves is the raw number,
// as the device would hold it.
func simulateRegisters(u *simulate.Unit, table simulate.Table, p *modbus.Point, still bool, period time.Duration) error {
	low, high := 0.0, 100.0
	if p.Range != nil {
		low, high = p.Range.Raw[0], p.Range.Raw[1]
	}
	raw := modbus.Point{Type: p.Type, Order: p.Order, Bytes: p.Bytes, Write: &modbus.Write{}}
	encode := func(v adapters.Value) []uint16 {
		b, err := raw.Encode(v)
		if err != nil { // beyond the type, as 100 of a bool
			b = make([]byte, 2*raw.Registers())
		}
		words := make([]uint16, len(b)/2)
		for i := range words {
			words[i] = uint16(b[2*i])<<8 | uint16(b[2*i+1])
		}
		return words
	}
	switch {
	case p.Type == modbus.String:
		name := p.Point.Name
		u.Set(table, p.Address, encode(adapters.String(name[:min(len(name), p.Bytes)]))...)
	case p.Count > 0:
		for i := range p.Count {
			u.Set(table, p.Address+uint16(i*raw.Registers()), encode(adapters.Int(int64(i)))...)
		}
	case p.Enum != nil:
		first := int64(math.MaxInt64)
		for n := range p.Enum {
			first = min(first, n)
		}
		u.Set(table, p.Address, encode(adapters.Int64(first))...)
	case still:
		u.Set(table, p.Address, encode(adapters.Int(0))...)
	default:
		isFloat := p.Type == modbus.Float16 || p.Type == modbus.Float32 || p.Type == modbus.Float64
		u.Drive(table, p.Address, simulate.Encoding{Registers: raw.Registers(), Put: func(b []byte, f float64) {
			v := adapters.Float64(f)
			switch {
			case p.Type == modbus.Bool:
				v = adapters.Bool(f > (low+high)/2)
			case !isFloat:
				v = adapters.Int64(int64(math.Round(f)))
			}
			for i, w := range encode(v) {
				b[2*i], b[2*i+1] = byte(w>>8), byte(w)
			}
		}}, simulate.Sine(low, high, period))
	}
	return nil
}

// serveLink serves what a link reaches, and says where.
func serveLink(ctx context.Context, group *errgroup.Group, s *simulate.Server, c *modbus.Config, port *int) (where string, err error) {
	if c.Transport == "rtu" {
		return servePort(ctx, group, s, c.Address)
	}
	address := c.Address
	if host, _, err := net.SplitHostPort(address); err != nil || !isLoopback(host) && c.Transport != "rtuovertcp-listen" {
		address = net.JoinHostPort("127.0.0.1", strconv.Itoa(*port))
		*port++
	}
	switch c.Transport {
	case "udp", "rtuoverudp":
		conn, err := net.ListenPacket("udp", address)
		if err != nil {
			return "", err
		}
		group.Go(func() error { return s.ServePackets(ctx, conn, c.Transport == "rtuoverudp") })
		return conn.LocalAddr().String(), nil
	case "rtuovertcp-listen":
		if host, p, err := net.SplitHostPort(address); err == nil && host == "" {
			address = net.JoinHostPort("127.0.0.1", p)
		}
		group.Go(func() error { return dialIn(ctx, s, address) })
		return address + ", where it dials in", nil
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return "", err
	}
	where = l.Addr().String()
	switch c.Transport {
	case "rtuovertcp":
		group.Go(func() error { return s.ServeLines(ctx, l) })
	case "tcp+tls":
		server, err := simulatedTLS(c.TLS)
		if err != nil {
			l.Close()
			return "", err
		}
		group.Go(func() error { return s.Serve(ctx, tls.NewListener(l, server)) })
	default:
		group.Go(func() error { return s.Serve(ctx, l) })
	}
	return where, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// simulatedTLS has the device show the certificate that the gateway shows: the
// site file knows no other.
func simulatedTLS(f *modbus.TLSFiles) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}

// dialIn is the modem of a link that waits for one.
func dialIn(ctx context.Context, s *simulate.Server, address string) error {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = s.ServeLine(ctx, conn) // whatever ends it, it dials again
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// servePort serves a serial line: a pseudo terminal with a link of the port's
// name, which must not exist.
func servePort(ctx context.Context, group *errgroup.Group, s *simulate.Server, path string) (string, error) {
	p, err := simulate.OpenPTY()
	if err != nil {
		return "", err
	}
	where := p.Path
	linked := os.Symlink(p.Path, path) == nil
	if linked {
		where = path
	} else {
		where += " (no link " + path + " could be made: it exists, or its folder cannot be written to)"
	}
	group.Go(func() error {
		if linked {
			defer os.Remove(path)
		}
		return s.ServeLine(ctx, p)
	})
	return where, nil
}
