package conformance

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

var (
	peer       = flag.String("broker", "fieldferry", "the `broker` under test: fieldferry or mosquitto")
	deviations = flag.Bool("deviations", false, "run also the tests that the other broker is known to fail")
	kills      = flag.Int("kills", 20, "how often TestKillUnderLoad kills the broker")
)

// suite is the run of all tests. It builds the broker before the first and ends
// those that tests share after the last.
type suite struct{ m *testing.M }

func (s suite) Run() int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "conformance")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if *peer == "fieldferry" {
		fieldferry = filepath.Join(dir, "fieldferry")
		if out, err := exec.Command("go", "build", "-o", fieldferry, "../../cmd/fieldferry").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
	}
	for _, site := range []*site{plain, limited, guarded, hasty} {
		site.shared = newBroker(filepath.Join(dir, site.name), site)
		defer site.shared.kill()
	}
	// Most tests wait: for a second to pass, or for the broker.
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue || f.DefValue == "0" {
		_ = f.Value.Set("16")
	}
	return s.m.Run()
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(suite{m}) }
