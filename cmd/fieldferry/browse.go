package main

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/opcua"
	"github.com/fieldferry/fieldferry/gateway"
)

func browseCommand() *cobra.Command {
	var to opcuaTarget
	var asJSON, asYAML, asCSV bool
	var depth int
	var node string
	cmd := &cobra.Command{
		Use:   "browse {opc.tcp://HOST | FILE ADAPTER}",
		Short: "Show what an OPC UA server has, as a list or as a profile to paste",
		Long: `browse lists the objects, variables and methods of an OPC UA server, with the URIs of
their namespaces: those stay when a server is set up anew, and indexes may not. --yaml
prints a profile with all variables, ready to paste into a site file, --csv a table for
points_file. The server's description of itself is left out; --node i=2253 shows it.

  fieldferry browse opc.tcp://10.4.1.9:4840 --depth 3
  fieldferry browse site.yaml press --node "nsu=urn:acme:press;s=Press" --yaml`,
		Args: args(cobra.RangeArgs(1, 2)),
	}
	f := cmd.Flags()
	to.ownFlags(f)
	f.IntVar(&depth, "depth", 0, "how many levels below the node (default all)")
	f.StringVar(&node, "node", "", "the `NODE` to begin at (default the folder of all objects)")
	f.BoolVar(&asYAML, "yaml", false, "print a profile for a site file")
	f.BoolVar(&asCSV, "csv", false, "print a table for points_file")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("json", "yaml", "csv")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		if depth < 0 {
			return usageError{errors.New("--depth must not be negative")}
		}
		c, err := browsed(args, &to, cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		nodes, err := browse(ctx, c, node, depth)
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		switch {
		case asJSON:
			return printJSON(out, shownNodes(nodes))
		case asYAML:
			return printProfile(out, nodes)
		case asCSV:
			return printTable(out, nodes)
		}
		return printNodes(out, nodes)
	}
	return cmd
}

// browsed is the server that the arguments name.
func browsed(args []string, to *opcuaTarget, stderr io.Writer) (opcua.Config, error) {
	if isOPCUA(args[0]) {
		if len(args) != 1 {
			return opcua.Config{}, usageError{errors.New("give an address alone, or a site file and an adapter")}
		}
		return to.config(args[0])
	}
	if !isSiteFile(args[0]) {
		return opcua.Config{}, usageError{fmt.Errorf("%s is neither an address such as opc.tcp://10.4.1.9:4840 nor a site file", args[0])}
	}
	c, err := loadSite(args[0], stderr)
	if err != nil {
		return opcua.Config{}, err
	}
	var names []string
	for i := range c.Adapters {
		a := &c.Adapters[i]
		if a.OPCUA == nil {
			continue
		}
		names = append(names, a.Name)
		if len(args) == 2 && args[1] == a.Name {
			return gateway.OPCUAConfig(c, a, nil), nil
		}
	}
	return opcua.Config{}, usageError{fmt.Errorf("which adapter? The OPC UA adapters are %s", cmp.Or(strings.Join(names, ", "), "none"))}
}

func browse(ctx context.Context, c opcua.Config, node string, depth int) ([]opcua.Node, error) {
	c.Devices = nil
	client, err := dialOPCUA(ctx, c)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	nodes, err := client.Browse(ctx, node, depth)
	if err != nil {
		return nil, explainOPCUA(err)
	}
	return nodes, nil
}

// shownNode is a node as JSON.
type shownNode struct {
	Path     string `json:"path"`
	Node     string `json:"node"`
	Class    string `json:"class"`
	Type     string `json:"type,omitempty"`
	Writable bool   `json:"writable,omitempty"`
	Object   string `json:"object,omitempty"` // of a method
}

func shownNodes(nodes []opcua.Node) []shownNode {
	all := make([]shownNode, 0, len(nodes))
	for _, n := range nodes {
		s := shownNode{Path: n.Path, Node: n.ID, Class: n.Class, Type: nodeType(&n), Writable: n.Writable}
		if n.Class == "Method" {
			s.Object = n.Parent
		}
		all = append(all, s)
	}
	return all
}

func nodeType(n *opcua.Node) string {
	if n.Type != "" && n.Array {
		return n.Type + "[]"
	}
	return n.Type
}

func printNodes(out io.Writer, nodes []opcua.Node) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := range nodes {
		n := &nodes[i]
		what := n.Class
		if n.Class == "Variable" {
			what = cmp.Or(nodeType(n), "Variable")
			if n.Writable {
				what += " (writable)"
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", shown(n.Path), what, shown(n.ID))
	}
	return t.Flush()
}

// shown shows what a server calls things, which may hold anything.
func shown(s string) string {
	if plain(s) {
		return s
	}
	return strconv.Quote(s)
}

// foundPoint is a variable or a method as a point of a site file.
type foundPoint struct {
	name string
	node *opcua.Node
}

// foundPoints names the variables and methods, each once.
func foundPoints(nodes []opcua.Node) (all []foundPoint) {
	taken := map[string]bool{"timestamp": true, "clock": true, "bad": true, "seq": true} // reserved in payloads
	for i := range nodes {
		n := &nodes[i]
		if n.Class != "Variable" && n.Class != "Method" || strings.HasPrefix(n.ID, "i=") {
			continue // what is in the standard's namespace describes something else
		}
		parts := strings.Split(n.Path, "/")
		name := ""
		for k := len(parts) - 1; k >= 0 && (name == "" || taken[name]); k-- {
			if w := pointName(parts[k]); w != "" && name != "" {
				name = w + "-" + name
			} else if w != "" {
				name = w
			}
		}
		if name == "" {
			name = "point"
		}
		for base, k := name, 2; taken[name]; k++ {
			name = fmt.Sprintf("%s-%d", base, k)
		}
		taken[name] = true
		all = append(all, foundPoint{name, n})
	}
	return all
}

// pointName makes a browse name a name of ours: lower case with hyphens.
func pointName(s string) string {
	var b strings.Builder
	lower := false
	for _, r := range s {
		switch {
		case r >= 'A' && r <= 'Z':
			if lower {
				b.WriteByte('-')
			}
			b.WriteRune(r + 'a' - 'A')
			lower = false
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
			lower = true
		default:
			if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
				b.WriteByte('-')
			}
			lower = false
		}
	}
	const longest = 60
	name := strings.Trim(b.String(), "-")
	return strings.Trim(name[:min(len(name), longest)], "-")
}

// baseOf is the longest beginning of all ids that a base can be.
func baseOf(points []foundPoint) string {
	base := ""
	for i, p := range points {
		if p.node.Class != "Variable" {
			continue
		}
		if base == "" && i >= 0 {
			base = p.node.ID
		}
		for !strings.HasPrefix(p.node.ID, base) {
			base = base[:len(base)-1]
		}
	}
	at := strings.Index(base, ";s=")
	if at < 0 {
		return ""
	}
	// To the end of a level, so that what is appended is a whole word.
	return base[:max(at+len(";s="), strings.LastIndexAny(base, "./|:")+1)]
}

func printProfile(out io.Writer, nodes []opcua.Node) error {
	points := foundPoints(nodes)
	if len(points) == 0 {
		return errors.New("there are no variables below this node")
	}
	base := baseOf(points)
	var b strings.Builder
	b.WriteString("profiles:\n  server: # rename it, and take out what you do not need\n")
	if base != "" {
		fmt.Fprintf(&b, "    base: %s\n", yamlText(base))
	}
	b.WriteString("    every: 1s\n    points:\n")
	for _, p := range points {
		n := p.node
		if n.Class == "Method" {
			fmt.Fprintf(&b, "      # %s: {call: %s, object: %s}\n", p.name, yamlText(n.ID), yamlText(n.Parent))
			continue
		}
		id := n.ID
		if rest, ok := strings.CutPrefix(id, base); ok && base != "" && rest != "" && !looksWhole(rest) {
			id = rest
		}
		fmt.Fprintf(&b, "      %s: {node: %s}", p.name, yamlText(id))
		note := nodeType(n)
		if n.Writable {
			note = strings.TrimSpace(note + " can be written: add write: {}")
		}
		if note != "" {
			fmt.Fprintf(&b, " # %s", note)
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// looksWhole tells what the site file would take for a whole node id.
func looksWhole(s string) bool {
	for _, p := range []string{"ns=", "nsu=", "i=", "s=", "g=", "b="} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// yamlText writes a text for YAML. JSON's strings are YAML's in double quotes.
func yamlText(s string) string {
	return strconv.Quote(s)
}

func printTable(out io.Writer, nodes []opcua.Node) error {
	w := csv.NewWriter(out)
	if err := w.Write([]string{"name", "node", "unit"}); err != nil {
		return err
	}
	for _, p := range foundPoints(nodes) {
		if p.node.Class != "Variable" {
			continue
		}
		if err := w.Write([]string{p.name, p.node.ID, ""}); err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}
