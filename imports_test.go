// Package fieldferry holds the one rule that stands above all packages: which of
// them may import which. ARCHITECTURE.md shows it as a picture.
package fieldferry

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fieldferry/fieldferry"

// allowed says which of our packages each package may import, besides those below
// itself in the tree. What is not listed may import none.
var allowed = map[string][]string{
	"cmd/fieldferry": {"*"},
	"cmd/fieldbench": {"*"},
	"gateway":        {"*"},

	"gateway/payload":         {"adapters"},
	"gateway/certs":           {"gateway/certs/certstest"},
	"gateway/certs/certstest": {},
	"gateway/certs/issue":     {},
	"gateway/command":         {"adapters"},
	"gateway/dashboard":       {"gateway/alarm", "adapters"},

	"bridge":              {"bridge/dial", "buffer", "localbroker/topic"},
	"bridge/dial":         {},
	"bridge/upstreamtest": {},

	"localbroker":        {"localbroker/packet", "localbroker/topic", "localbroker/access", "localbroker/client", "buffer", "buffer/rows"},
	"localbroker/access": {"localbroker/topic"},
	"localbroker/client": {"localbroker/packet"},

	"adapters/adaptertest": {"adapters"},
	"adapters/modbus":      {"adapters", "adapters/simulate", "adapters/adaptertest", "adapters/serial/port"},
	"adapters/opcua":       {"adapters", "adapters/adaptertest"},
	"adapters/serial":      {"adapters", "adapters/serial/port"},
	"adapters/serial/port": {},
	"adapters/simulate":    {"adapters"},

	"buffer":           {"buffer/log", "buffer/rows"},
	"buffer/rows":      {"buffer/log"},
	"buffer/simulated": {"buffer/log", "buffer/rows"},
}

// bound says who alone may import a library.
var bound = map[string][]string{
	"github.com/goccy/go-yaml": {"gateway/config"},
	"go.etcd.io/bbolt":         {"buffer/log", "buffer/rows"},
	"github.com/simonvetter":   {"adapters/modbus"},
	"github.com/gopcua":        {"adapters/opcua"},
	"github.com/tarm/serial":   {"adapters/serial/port"},
	"github.com/spf13/cobra":   {"cmd/fieldferry", "cmd/fieldbench"},
}

type goPackage struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		from := ours(p.ImportPath)
		for _, i := range p.Imports {
			if why := refuse(from, i); why != "" {
				t.Errorf("%s imports %s: %s", from, i, why)
			}
		}
	}
	if seen < 5 {
		t.Fatalf("only %d packages were looked at", seen)
	}
}

func TestImportRuleBites(t *testing.T) {
	for _, c := range []struct{ from, to string }{
		{"buffer/log", module + "/buffer"},
		{"bridge", module + "/adapters"},
		{"bridge", module + "/localbroker"},
		{"adapters", module + "/localbroker"},
		{"adapters/modbus", module + "/gateway/config"},
		{"localbroker", module + "/gateway"},
		{"gateway", "github.com/goccy/go-yaml"},
	} {
		if refuse(c.from, c.to) == "" {
			t.Errorf("%s may import %s", c.from, c.to)
		}
	}
	if why := refuse("bridge", module+"/localbroker/topic"); why != "" {
		t.Errorf("bridge may not import localbroker/topic: %s", why)
	}
}

// ours is the path below the module, "" for another module's package and "." for
// the root.
func ours(path string) string {
	if path == module {
		return "."
	}
	rest, ok := strings.CutPrefix(path, module+"/")
	if !ok {
		return ""
	}
	return rest
}

func refuse(from, path string) string {
	to := ours(path)
	if to == "" {
		for library, by := range bound {
			if strings.HasPrefix(path, library) && !slices.Contains(by, from) {
				return "only " + strings.Join(by, ", ") + " may"
			}
		}
		return ""
	}
	list := allowed[from]
	if slices.Contains(list, "*") && !strings.HasPrefix(to, "cmd/") || slices.Contains(list, to) {
		return ""
	}
	return "it may import only " + strings.Join(list, ", ")
}
