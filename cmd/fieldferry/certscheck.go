package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	bridgedial "github.com/fieldferry/fieldferry/bridge/dial"
	"github.com/fieldferry/fieldferry/gateway/certs"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// certsGroup are files that belong together.
type certsGroup struct {
	For string `json:"for,omitempty"` // as broker.listeners: tls; "" for files that were given
	*certs.Inspection
}

func certsCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE [FILE...]",
		Short: "Say how certificates fit together and how long they are good",
		Long: `check reads certificates, keys, authorities, requests and revocation lists (PEM), and
says of each certificate how many days are left, which hosts it is for, to which
authority it leads and which file is its key. A site file (.yaml) stands for all
that it names. It exits with 1 if something has expired or does not fit.`,
		Args: args(cobra.MinimumNArgs(1)),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, list []string) error {
		groups, err := certsGroups(list, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		return printGroups(cmd.OutOrStdout(), groups, asJSON)
	}
	return cmd
}

// certsGroups reads what the arguments name.
func certsGroups(list []string, stderr io.Writer) (groups []certsGroup, err error) {
	var files []string
	for _, path := range list {
		if ext := filepath.Ext(path); ext != ".yaml" && ext != ".yml" {
			files = append(files, path)
			continue
		}
		c, err := loadSite(path, stderr)
		if err != nil {
			return nil, err
		}
		groups = append(groups, siteGroups(c)...)
		if len(groups) == 0 {
			return nil, fmt.Errorf("%s names no certificates", path)
		}
	}
	if len(files) > 0 {
		groups = append(groups, certsGroup{"", certs.Inspect(files, bridgedial.Pin, time.Now())})
	}
	return groups, nil
}

// siteGroups are those that a site file names.
func siteGroups(c *config.Config) (groups []certsGroup) {
	for _, l := range c.Broker.Listeners {
		if l.TLS == nil {
			continue
		}
		g := certsGroup{"broker.listeners: " + l.Name, inspect(l.TLS.Cert, l.TLS.Key, l.TLS.ClientCA, l.TLS.CRL)}
		_, err := certs.LoadPair(l.TLS.Cert, l.TLS.Key)
		g.tell(err)
		own(g.Inspection, l.TLS.Cert, func(f *certs.Found) {
			if !f.Servers {
				f.Problems = append(f.Problems, "it is not one for servers: have one made with the extended key usage serverAuth")
			}
		})
		groups = append(groups, g)
	}
	for _, b := range c.Bridges {
		if b.TLS.CA == "" && b.TLS.Cert == "" {
			continue
		}
		g := certsGroup{"bridges." + b.Name, inspect(b.TLS.CA, b.TLS.Cert, b.TLS.Key)}
		if b.TLS.Cert != "" {
			_, err := certs.LoadPair(b.TLS.Cert, b.TLS.Key)
			g.tell(err)
		}
		own(g.Inspection, b.TLS.Cert, func(f *certs.Found) {
			if !f.Clients {
				f.Problems = append(f.Problems, "it is not one for clients: have one made with the extended key usage clientAuth")
			}
		})
		groups = append(groups, g)
	}
	return groups
}

func inspect(files ...string) *certs.Inspection {
	files = slices.DeleteFunc(files, func(s string) bool { return s == "" })
	slices.Sort(files)
	return certs.Inspect(slices.Compact(files), bridgedial.Pin, time.Now())
}

// tell adds a problem that is not there yet.
func (g *certsGroup) tell(err error) {
	if err != nil && !slices.ContainsFunc(g.Problems, func(s string) bool { return strings.Contains(s, err.Error()) }) {
		g.Problems = append(g.Problems, err.Error())
	}
}

// own looks at the certificate that we show, the first in its file, which need not lead
// to an authority that we believe: the other side must.
func own(i *certs.Inspection, file string, look func(*certs.Found)) {
	first := true
	for _, f := range i.Certificates {
		if f.File != file {
			continue
		}
		f.Problems = slices.DeleteFunc(f.Problems, func(s string) bool { return strings.HasPrefix(s, "its authority ") })
		if first {
			look(f)
		}
		first = false
	}
}

func printGroups(w io.Writer, groups []certsGroup, asJSON bool) error {
	var answer error
	for _, g := range groups {
		if !g.OK() {
			answer = errNo
		}
	}
	if asJSON {
		return errors.Join(printJSON(w, struct {
			OK     bool         `json:"ok"`
			Groups []certsGroup `json:"groups"`
		}{answer == nil, groups}), answer)
	}
	for _, g := range groups {
		if g.For != "" {
			fmt.Fprintf(w, "%s:\n", g.For)
		}
		for _, f := range g.Certificates {
			printFound(w, f)
		}
		for _, p := range g.Problems {
			fmt.Fprintf(w, "WRONG: %s\n", p)
		}
	}
	if answer == nil {
		fmt.Fprintln(w, "all fits")
	}
	return answer
}

func printFound(w io.Writer, f *certs.Found) {
	left := count(f.DaysLeft, "day") + " left"
	if f.DaysLeft < 0 {
		left = "EXPIRED"
	}
	fmt.Fprintf(w, "%s  %s  until %s, %s\n", f.File, f.Subject, f.NotAfter.Format(time.DateOnly), left)
	line := func(what, text string) {
		if text != "" {
			fmt.Fprintf(w, "  %-6s %s\n", what, text)
		}
	}
	var kind []string
	for what, is := range map[string]bool{"authority": f.CA, "clients": f.Clients, "servers": f.Servers} {
		if is {
			kind = append(kind, what)
		}
	}
	slices.Sort(kind)
	line("for", strings.Join(kind, ", "))
	line("hosts", strings.Join(f.Hosts, ", "))
	switch {
	case f.Chain == "system":
		line("chain", f.Issuer+", and by that one that the system trusts")
	case f.Chain == f.File && f.CA:
		line("chain", "is its own authority")
	case f.Chain != "":
		line("chain", "leads to "+f.Chain)
	}
	line("key", f.Key)
	line("pin", f.Pin)
	for _, p := range f.Problems {
		line("WRONG", p)
	}
}
