package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// loadSite reads a site file and prints what is wrong with it. It is an error if
// it cannot be used.
func loadSite(path string, stderr io.Writer) (*config.Config, error) {
	c, problems := config.Load(path, config.Options{})
	for _, p := range problems {
		if c == nil || !p.Warning {
			fmt.Fprintln(stderr, p)
		}
	}
	if c == nil {
		return nil, errNo
	}
	return c, nil
}

// siteDevice finds a Modbus device of a site file, and what reaches it alone.
func siteDevice(c *config.Config, name string) (modbus.Config, error) {
	var names []string
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.Modbus == nil {
			for j := range a.Devices {
				if a.OPCUA != nil {
					names = append(names, a.Devices[j].ID)
				}
				if a.Devices[j].ID == name {
					return modbus.Config{}, fmt.Errorf("the device %s is neither a Modbus nor an OPC UA device; 'fieldferry tail devices/%s/#' shows what it publishes", name, name)
				}
				if a.Serial != nil {
					names = append(names, a.Devices[j].ID)
				}
			}
			continue
		}
		for _, mc := range gateway.ModbusConfigs(a, nil) {
			for _, d := range mc.Devices {
				if d.Device.Name == name {
					mc.Devices = []modbus.Device{d}
					return mc, nil
				}
				names = append(names, d.Device.Name)
			}
		}
	}
	const most = 8
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return modbus.Config{}, fmt.Errorf("there is no device %s; there are %s", name, cmp.Or(strings.Join(names, ", "), "none"))
}

// target is a Modbus host, line or port that is named on the command line.
type target struct {
	timeout  time.Duration
	baud     int
	parity   string
	stopBits int
	tls      modbus.TLSFiles
}

func (t *target) flags(f *pflag.FlagSet, timeout time.Duration) {
	f.DurationVar(&t.timeout, "timeout", timeout, "for one answer")
	f.IntVar(&t.baud, "baud", 19200, "of a serial port")
	f.StringVar(&t.parity, "parity", "even", "of a serial port: none, even or odd")
	f.IntVar(&t.stopBits, "stop-bits", 1, "of a serial port")
	f.StringVar(&t.tls.CA, "ca", "", "of tcp+tls: the `FILE` with the authority of the device's certificate")
	f.StringVar(&t.tls.Cert, "cert", "", "of tcp+tls: the `FILE` with our certificate")
	f.StringVar(&t.tls.Key, "key", "", "of tcp+tls: the `FILE` with our key")
}

// transports that an address may begin with.
var transports = []string{"tcp", "tcp+tls", "udp", "rtu", "rtuovertcp", "rtuoverudp", "rtuovertcp-listen"}

// config makes of transport://address, of host, host:port or of the path of a port
// what reaches it.
func (t *target) config(address string) (modbus.Config, error) {
	c := modbus.Config{Name: address, Timeout: t.timeout, Line: modbus.Line{Baud: t.baud, Parity: t.parity, StopBits: t.stopBits}}
	transport, rest, full := strings.Cut(address, "://")
	switch {
	case !full && strings.HasPrefix(address, "/"):
		transport, rest = "rtu", address
	case !full:
		transport, rest = "tcp", address
	}
	known := false
	for _, name := range transports {
		known = known || name == transport
	}
	if !known {
		return c, usageError{fmt.Errorf("%s: there is no transport %q; it can be %s", address, transport, strings.Join(transports, ", "))}
	}
	if transport != "rtu" {
		if _, _, err := net.SplitHostPort(rest); err != nil {
			port := "502" // IANA: mbap
			if transport == "tcp+tls" {
				port = "802" // mbap-s
			}
			rest = net.JoinHostPort(strings.Trim(rest, "[]"), port)
		}
	}
	if transport == "tcp+tls" {
		if t.tls.CA == "" || t.tls.Cert == "" || t.tls.Key == "" {
			return c, usageError{errors.New("tcp+tls needs --ca, --cert and --key")}
		}
		c.TLS = &t.tls
	}
	c.Transport, c.Address = transport, rest
	return c, nil
}

// isSiteFile reports whether an argument is a site file, and not an address.
func isSiteFile(arg string) bool {
	if strings.Contains(arg, "://") || strings.HasPrefix(arg, "/dev/") {
		return false
	}
	if strings.HasSuffix(arg, ".yaml") || strings.HasSuffix(arg, ".yml") {
		return true
	}
	info, err := os.Stat(arg)
	return err == nil && info.Mode().IsRegular()
}

// dial connects, and says what to check if that fails.
func dial(ctx context.Context, c modbus.Config) (*modbus.Client, error) {
	client, err := modbus.Dial(ctx, c)
	if err == nil {
		return client, nil
	}
	hint := ""
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: interrupted: %w", c.Address, err)
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "; nothing listens there: check the address, the port (502 is usual), and whether the device has Modbus switched on"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		hint = "; this machine has no way there: check the network"
	case os.IsTimeout(err):
		hint = "; no answer: check the address, the network and its firewalls"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission):
	default:
		if h := hintTLS(err); h != "" {
			hint = "; " + strings.ReplaceAll(h, "broker", "device")
		}
	}
	return nil, fmt.Errorf("cannot reach %s: %w%s", c.Address, err, hint)
}

// explainModbus adds to an error of a device what to check.
func explainModbus(err error) error {
	hint := ""
	switch code := modbus.Exception(err); {
	case code == 1:
		hint = "it does not have this function: try another table, such as input for holding"
	case code == 2:
		hint = "it has no such address: manuals often count from 1, or write 40001 for holding 0"
	case code == 3:
		hint = "it does not take this many or this value: try fewer"
	case code == 4, code == 5, code == 6:
		hint = "it is not able to at the moment: try again"
	case code != 0:
	case strings.Contains(err.Error(), "gateway target"), strings.Contains(err.Error(), "gateway path"):
		hint = "a gateway says so, and the device said nothing: check the unit (--unit); 'fieldferry scan modbus' finds those that there are"
	case strings.Contains(err.Error(), "timed out"), strings.Contains(err.Error(), "timeout"):
		hint = "nothing came: check the unit (--unit), the baud rate and parity of a line, or give it longer (--timeout)"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}
