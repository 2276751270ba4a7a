package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// isOPCUA reports whether an argument is the address of an OPC UA server.
func isOPCUA(arg string) bool { return strings.HasPrefix(arg, "opc.tcp://") }

// opcuaTarget is how an OPC UA server is reached that is named on the command line.
type opcuaTarget struct {
	policy, mode string
	trust        string
	user         string
	files        *modbus.TLSFiles // our certificate and its key
}

// flags adds those that a command with flags for TLS does not have.
func (t *opcuaTarget) flags(f *pflag.FlagSet, files *modbus.TLSFiles) {
	t.files = files
	f.StringVar(&t.policy, "policy", "", "of opc.tcp: the security policy, such as Basic256Sha256, with --cert, --key and --trust (default None)")
	f.StringVar(&t.mode, "mode", "", "of opc.tcp: Sign or SignAndEncrypt (default SignAndEncrypt with a policy)")
	f.StringVar(&t.trust, "trust", "", "of opc.tcp: the `FOLDER` with the certificates of servers to trust")
	f.StringVar(&t.user, "user", "", "of opc.tcp: the user `NAME`; its password is $"+envPassword)
}

// ownFlags adds all.
func (t *opcuaTarget) ownFlags(f *pflag.FlagSet) {
	t.files = &modbus.TLSFiles{}
	f.StringVar(&t.files.Cert, "cert", "", "the `FILE` with our certificate; it is made if there is none")
	f.StringVar(&t.files.Key, "key", "", "the `FILE` with our key; it is made if there is none")
	t.flags(f, t.files)
}

func (t *opcuaTarget) config(address string) (opcua.Config, error) {
	c := opcua.Config{
		Name: address, Gateway: "fieldferry", Endpoint: address, Policy: cmp.Or(t.policy, "None"), Mode: t.mode,
		Cert: t.files.Cert, Key: t.files.Key, Trust: opcua.Trust{Folder: t.trust},
	}
	if c.Policy != "None" {
		c.Mode = cmp.Or(c.Mode, "SignAndEncrypt")
		if c.Cert == "" || c.Key == "" || t.trust == "" {
			return c, usageError{errors.New("--policy needs --cert, --key and --trust")}
		}
	}
	if t.user != "" {
		c.User = &opcua.User{Name: t.user, Password: func() (string, error) { return os.Getenv(envPassword), nil }}
	}
	return c, nil
}

// dialOPCUA connects, and says what to check if that fails.
func dialOPCUA(ctx context.Context, c opcua.Config) (*opcua.Client, error) {
	client, err := opcua.Dial(ctx, c)
	if err == nil {
		return client, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: interrupted: %w", c.Endpoint, err)
	}
	return nil, fmt.Errorf("cannot reach %s: %w", c.Endpoint, explainOPCUA(err))
}

// explainOPCUA adds to an error what to check, unless it says so itself.
func explainOPCUA(err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "nothing listens there: check the address, the port (4840 is usual), and whether the server runs"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		hint = "this machine has no way there: check the network"
	case os.IsTimeout(err), errors.Is(err, context.DeadlineExceeded), strings.Contains(err.Error(), "does not answer in time"):
		hint = "check the address, the network and its firewalls"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, hint)
}

// fieldClient is a client of a device of a site file, whatever it speaks.
type fieldClient interface {
	Read(ctx context.Context, device string, points []string) ([]adapters.Sample, error)
	Write(ctx context.Context, device string, values []adapters.Assignment) ([]adapters.Sample, error)
	Close() error
}

// dialDevice connects to a device of a site file. explain adds to an error of it what
// to check.
func dialDevice(ctx context.Context, c *config.Config, device string) (client fieldClient, explain func(error) error, err error) {
	for i := range c.Adapters {
		a := &c.Adapters[i]
		for j := range a.Devices {
			if a.OPCUA == nil || a.Devices[j].ID != device {
				continue
			}
			client, err := dialOPCUA(ctx, gateway.OPCUAConfig(c, a, nil))
			if err != nil {
				return nil, nil, err
			}
			return client, explainOPCUA, nil
		}
	}
	mc, err := siteDevice(c, device)
	if err != nil {
		return nil, nil, err
	}
	m, err := dial(ctx, mc)
	if err != nil {
		return nil, nil, err
	}
	return m, explainModbus, nil
}

// nodesDevice is a device of nodes, each of which is a point by its own id.
func nodesDevice(nodes []string, write *opcua.Write) opcua.Device {
	d := opcua.Device{Device: &adapters.Device{Name: "server"}}
	for _, n := range nodes {
		d.Points = append(d.Points, opcua.Point{Point: &adapters.Point{Name: n}, Node: n, Write: write})
	}
	return d
}

// readNodes reads nodes of a server.
func readNodes(ctx context.Context, out io.Writer, t *opcuaTarget, address string, nodes []string, asJSON bool) error {
	c, err := t.config(address)
	if err != nil {
		return err
	}
	c.Devices = []opcua.Device{nodesDevice(nodes, nil)}
	client, err := dialOPCUA(ctx, c)
	if err != nil {
		return err
	}
	defer client.Close()
	samples, err := client.Read(ctx, "server", nil)
	if len(samples) == 0 {
		return explainOPCUA(err)
	}
	if err := printSamples(out, samples, asJSON); err != nil {
		return err
	}
	if err != nil {
		return errNo // it stands beside its node
	}
	return nil
}

// writeNode writes a node of a server.
func writeNode(ctx context.Context, out io.Writer, t *opcuaTarget, args []string, asJSON bool) error {
	if len(args) != 3 {
		return usageError{errors.New("give an address, a node and a value, as opc.tcp://10.4.1.9:4840 \"ns=2;s=Pump.Setpoint\" 24.5")}
	}
	c, err := t.config(args[0])
	if err != nil {
		return err
	}
	v, err := parseValue(args[2])
	if err != nil {
		return usageError{err}
	}
	c.Devices = []opcua.Device{nodesDevice(args[1:2], &opcua.Write{})}
	client, err := dialOPCUA(ctx, c)
	if err != nil {
		return err
	}
	defer client.Close()
	samples, err := client.Write(ctx, "server", []adapters.Assignment{{Point: args[1], Value: v}})
	if len(samples) > 0 || asJSON {
		err = errors.Join(err, printSamples(out, samples, asJSON))
	}
	return err
}

func opcuaCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "opcua",
		Short: "Trust the servers of a site file",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(trustCommand())
	return cmd
}

func trustCommand() *cobra.Command {
	var asJSON, anyHost bool
	var fingerprint string
	cmd := &cobra.Command{
		Use:   "trust FILE [ADAPTER]",
		Short: "Show the certificates of OPC UA servers, and trust one",
		Long: `trust asks the OPC UA servers of a site file for their certificates and shows them,
with those that were refused before. Compare the fingerprint with what the server shows
on its own screen or in its own tool; then trust it with --fingerprint. The gateway takes
that up by itself within seconds.

  fieldferry opcua trust site.yaml
  fieldferry opcua trust site.yaml press --fingerprint 2be2306a15…`,
		Args: args(cobra.RangeArgs(1, 2)),
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringVar(&fingerprint, "fingerprint", "", "trust the certificate with this `SHA-256`, of which 16 digits are enough")
	f.BoolVar(&anyHost, "any-host", false, "with --fingerprint: also if the certificate does not name the host")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		c, err := loadSite(args[0], cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		adapter := ""
		if len(args) == 2 {
			adapter = args[1]
		}
		shown, err := shownCertificates(ctx, c, adapter)
		if err != nil {
			return err
		}
		if fingerprint != "" {
			return trust(cmd.OutOrStdout(), shown, fingerprint, anyHost, asJSON)
		}
		return printCertificates(cmd.OutOrStdout(), shown, asJSON)
	}
	return cmd
}

// shownCertificate is what a server shows, or has shown.
type shownCertificate struct {
	Adapter     string   `json:"adapter"`
	Server      string   `json:"server,omitempty"` // what it calls itself
	Subject     string   `json:"subject,omitempty"`
	Hosts       []string `json:"hosts,omitempty"`
	URIs        []string `json:"uris,omitempty"`
	From        string   `json:"from,omitempty"`
	To          string   `json:"to,omitempty"`
	Fingerprint string   `json:"fingerprint,omitempty"`
	State       string   `json:"state"` // "trusted", "not trusted", "refused before" or "not reached"
	Why         string   `json:"why,omitempty"`

	trust opcua.Trust
	der   []byte
}

func (s *shownCertificate) describe(c *x509.Certificate) {
	s.der, s.Subject, s.Fingerprint = c.Raw, c.Subject.String(), opcua.Fingerprint(c.Raw)
	s.From, s.To = c.NotBefore.UTC().Format(time.DateOnly), c.NotAfter.UTC().Format(time.DateOnly)
	s.Hosts = append(s.Hosts, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		s.Hosts = append(s.Hosts, ip.String())
	}
	for _, u := range c.URIs {
		s.URIs = append(s.URIs, u.String())
	}
}

func shownCertificates(ctx context.Context, c *config.Config, adapter string) (all []shownCertificate, err error) {
	known := false
	folders := map[string]bool{}
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if adapter != "" && a.Name != adapter || a.OPCUA == nil || a.OPCUA.Policy == "None" {
			continue
		}
		known = true
		s := shownCertificate{Adapter: a.Name, trust: opcua.Trust{Folder: a.OPCUA.Trust}}
		cert, uri, err := opcua.ServerCertificate(ctx, a.OPCUA.Endpoint)
		if err != nil {
			s.State, s.Why = "not reached", explainOPCUA(err).Error()
		} else {
			s.Server = uri
			s.describe(cert)
			s.State = "trusted"
			if err := opcua.CheckServer(s.trust, cert, uri, a.OPCUA.Endpoint); err != nil {
				s.State, s.Why = "not trusted", err.Error()
			}
		}
		all = append(all, s)
		if folders[a.OPCUA.Trust] {
			continue
		}
		folders[a.OPCUA.Trust] = true
		rejected, err := s.trust.Rejected()
		if err != nil {
			return nil, err
		}
		for _, r := range rejected {
			if s.Fingerprint == opcua.Fingerprint(r.Raw) {
				continue
			}
			old := shownCertificate{Adapter: a.Name, State: "refused before", trust: s.trust}
			old.describe(r)
			all = append(all, old)
		}
	}
	switch {
	case !known && adapter != "":
		return nil, fmt.Errorf("there is no OPC UA adapter %s with security", adapter)
	case !known:
		return nil, errors.New("there is no OPC UA adapter with security")
	}
	return all, nil
}

func printCertificates(out io.Writer, all []shownCertificate, asJSON bool) error {
	if asJSON {
		return printJSON(out, all)
	}
	for i, s := range all {
		if i > 0 {
			fmt.Fprintln(out)
		}
		fmt.Fprintf(out, "%s: %s\n", s.Adapter, s.State)
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, row := range [][2]string{
			{"server", s.Server}, {"subject", s.Subject}, {"applications", strings.Join(s.URIs, ", ")}, {"hosts", strings.Join(s.Hosts, ", ")},
			{"SHA-256", s.Fingerprint}, {"why", s.Why},
		} {
			if row[1] != "" {
				fmt.Fprintf(t, "  %s\t%s\n", row[0], row[1])
			}
		}
		if s.From != "" {
			fmt.Fprintf(t, "  good\t%s to %s\n", s.From, s.To)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// trust trusts the certificate that a fingerprint, or the beginning of one, is of.
func trust(out io.Writer, all []shownCertificate, fingerprint string, anyHost, asJSON bool) error {
	want := strings.ToLower(strings.ReplaceAll(fingerprint, ":", ""))
	const least = 16
	if len(want) < least {
		return usageError{fmt.Errorf("--fingerprint: give %d digits at least", least)}
	}
	for _, s := range all {
		if s.der == nil || !strings.HasPrefix(s.Fingerprint, want) {
			continue
		}
		file, err := s.trust.Accept(s.der, anyHost)
		if err != nil {
			return fmt.Errorf("cannot trust it: %w", err)
		}
		if asJSON {
			return printJSON(out, map[string]string{"fingerprint": s.Fingerprint, "file": file})
		}
		fmt.Fprintf(out, "trusted: %s, in %s\n", s.Subject, file)
		return nil
	}
	return fmt.Errorf("no server shows a certificate with the fingerprint %s, and none was refused; leave --fingerprint out to see them", fingerprint)
}
