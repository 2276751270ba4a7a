package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/gateway/certs/issue"
)

const day = 24 * time.Hour

func certsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "certs",
		Short: "Make certificates to try TLS with, and check those that there are",
		Long: `certs makes an authority, certificates for servers and for clients, and requests for
certificates of another authority; and says of certificates whether they fit together
and how long they are good.

The authority is a file on this machine: whoever can read its key can be anybody. That
is good enough to try things, or for one site; an organisation has an authority of
its own, which takes the requests.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(certsCACommand(), certsServerCommand(), certsClientCommand(), certsCSRCommand(), certsCheckCommand())
	return cmd
}

// certsMaker is what the commands that make files have in common.
type certsMaker struct {
	dir   string
	days  int
	force bool
	json  bool
}

func (m *certsMaker) flags(cmd *cobra.Command, days int) {
	f := cmd.Flags()
	f.StringVarP(&m.dir, "dir", "d", "certs", "the `FOLDER` for the files")
	if days > 0 {
		f.IntVar(&m.days, "days", days, "for how many days it is good")
	}
	f.BoolVar(&m.force, "force", false, "replace files that are there")
	f.BoolVar(&m.json, "json", false, "print JSON")
}

func (m *certsMaker) life() (time.Duration, error) {
	if m.days < 1 || m.days > 36500 {
		return 0, usageError{fmt.Errorf("--days %d is not between 1 and 36500", m.days)}
	}
	return time.Duration(m.days) * day, nil
}

// made is what was made.
type made struct {
	Cert string `json:"cert,omitempty"`
	CSR  string `json:"csr,omitempty"`
	Key  string `json:"key"`
}

// write writes a pair of files. The key is never there without its mode.
func (m *certsMaker) write(w io.Writer, p issue.Pair, name, ext, next string) error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return err
	}
	cert, key := filepath.Join(m.dir, name+ext), filepath.Join(m.dir, name+".key")
	if !m.force {
		for _, path := range []string{key, cert} {
			if _, err := os.Lstat(path); err == nil {
				return fmt.Errorf("%s is there already; give another name or --dir, or replace it with --force", path)
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if err := errors.Join(putFile(key, p.Key, 0o600), putFile(cert, p.Cert, 0o644)); err != nil {
		return err
	}
	out := made{Cert: cert, Key: key}
	if ext == ".csr" {
		out.Cert, out.CSR = "", cert
	}
	if m.json {
		return printJSON(w, out)
	}
	_, err := fmt.Fprintf(w, "wrote %s and %s\n%s\n", cert, key, strings.NewReplacer("{cert}", cert, "{key}", key, "{dir}", m.dir).Replace(next))
	return err
}

// putFile puts a file in its place at one stroke.
func putFile(path string, text []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-") // its mode is 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// authority is the one in the folder.
func (m *certsMaker) authority() (*issue.Authority, error) {
	var p issue.Pair
	var err error
	cert, key := filepath.Join(m.dir, "ca.crt"), filepath.Join(m.dir, "ca.key")
	if p.Cert, err = os.ReadFile(cert); err == nil {
		p.Key, err = os.ReadFile(key)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no authority in %s (%w): make one with 'fieldferry certs ca --dir %s', or ask another for a certificate with 'fieldferry certs csr'", m.dir, err, m.dir)
	case err != nil:
		return nil, err
	}
	a, err := issue.OpenAuthority(p)
	if err != nil {
		return nil, fmt.Errorf("%s with %s: %w", cert, key, err)
	}
	return a, nil
}

// fileName is a name that can be one of a file.
var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@ -]{0,63}$`)

func checkFileName(name string) error {
	if !fileName.MatchString(name) || name == "ca" {
		return usageError{fmt.Errorf("%q cannot be the name: write up to 64 letters, digits and . _ @ -, and not \"ca\"", name)}
	}
	return nil
}

func certsCACommand() *cobra.Command {
	var m certsMaker
	var name string
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "Make an authority",
		Args:  args(cobra.NoArgs),
	}
	m.flags(cmd, 3650)
	cmd.Flags().StringVar(&name, "name", "Fieldferry site authority", "the authority's `NAME`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		life, err := m.life()
		if err != nil {
			return err
		}
		if name == "" || len(name) > 64 {
			return usageError{errors.New("--name must have 1 to 64 characters")}
		}
		p, err := issue.NewAuthority(name, life)
		if err != nil {
			return err
		}
		return m.write(cmd.OutOrStdout(), p, "ca", ".crt", `Keep {key} to yourself: whoever has it can make certificates that this site believes.
Next: fieldferry certs server --dir {dir} HOST   for a broker
      fieldferry certs client --dir {dir} NAME   for a device or a gateway
Give {cert} to all who are to believe them (tls.ca of a bridge, client_ca of a listener).`)
	}
	return cmd
}

func certsServerCommand() *cobra.Command {
	var m certsMaker
	var name string
	cmd := &cobra.Command{
		Use:   "server HOST [HOST...]",
		Short: "Make a certificate for a server, under all names and addresses that clients use",
		Args:  args(cobra.MinimumNArgs(1)),
	}
	m.flags(cmd, 365)
	cmd.Flags().StringVar(&name, "name", "server", "the `NAME` of the files")
	cmd.RunE = func(cmd *cobra.Command, hosts []string) error {
		life, err := m.life()
		if err == nil {
			err = checkFileName(name)
		}
		if err != nil {
			return err
		}
		for _, h := range hosts {
			if err := issue.CheckHost(h); err != nil {
				return usageError{err}
			}
		}
		a, err := m.authority()
		if err != nil {
			return err
		}
		p, err := a.Server(hosts, life)
		if err != nil {
			return err
		}
		return m.write(cmd.OutOrStdout(), p, name, ".crt", `Next, in the site file, under broker.listeners: tls: {cert: {cert}, key: {key}}
A gateway that runs takes replaced files by itself.`)
	}
	return cmd
}

func certsClientCommand() *cobra.Command {
	var m certsMaker
	cmd := &cobra.Command{
		Use:   "client NAME",
		Short: "Make a certificate for a client: a device, or the bridge of a gateway",
		Args:  args(cobra.ExactArgs(1)),
	}
	m.flags(cmd, 365)
	cmd.RunE = func(cmd *cobra.Command, list []string) error {
		life, err := m.life()
		if err == nil {
			err = checkFileName(list[0])
		}
		if err != nil {
			return err
		}
		a, err := m.authority()
		if err != nil {
			return err
		}
		p, err := a.Client(list[0], life)
		if err != nil {
			return err
		}
		return m.write(cmd.OutOrStdout(), p, list[0], ".crt", `Next: give both files and {dir}/ca.crt to the client. For a bridge, in the site file:
      tls: {ca: {dir}/ca.crt, cert: {cert}, key: {key}}
A listener with client_ca: {dir}/ca.crt and identity: cn knows it as the user `+list[0]+`.`)
	}
	return cmd
}

func certsCSRCommand() *cobra.Command {
	var m certsMaker
	var hosts []string
	cmd := &cobra.Command{
		Use:   "csr NAME",
		Short: "Make a key and a request, for an authority elsewhere",
		Args:  args(cobra.ExactArgs(1)),
	}
	m.flags(cmd, 0)
	cmd.Flags().StringSliceVar(&hosts, "host", nil, "a `HOST` that a server is known under; may be given several times")
	cmd.RunE = func(cmd *cobra.Command, list []string) error {
		if err := checkFileName(list[0]); err != nil {
			return err
		}
		for _, h := range hosts {
			if err := issue.CheckHost(h); err != nil {
				return usageError{err}
			}
		}
		p, err := issue.Request(list[0], hosts)
		if err != nil {
			return err
		}
		return m.write(cmd.OutOrStdout(), p, list[0], ".csr", `Next: send {cert} to the authority; {key} stays here. Put what comes back beside it as
      {dir}/`+list[0]+`.crt, with the certificates in between behind it, and see whether all fits:
      fieldferry certs check {dir}/`+list[0]+`.crt {key} AUTHORITY.crt`)
	}
	return cmd
}
