package main

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// TestMain makes this test binary the command fieldferry of the scripts.
func TestMain(m *testing.M) {
	testscript.Main(leakTested{m}, map[string]func(){
		"fieldferry": func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// leakTested runs the tests and then looks for goroutines that they left.
type leakTested struct{ *testing.M }

func (m leakTested) Run() int {
	code := m.M.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// TestScripts runs what a person would type, from testdata/script. The scripts have
// three commands more: occupy has a port taken, replace fills in a file, and devices
// serves Modbus units.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true, RequireUniqueNames: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"occupy": occupy, "replace": replaceInFile, "devices": serveDevices, "opcua": serveOPCUA},
	})
}

// occupy is the command "occupy ADDRESS": it listens there until the script ends, and
// sets PORT, and OWNER and PID to who does.
func occupy(ts *testscript.TestScript, _ bool, args []string) {
	ln, err := net.Listen("tcp", args[0])
	ts.Check(err)
	ts.Defer(func() { ln.Close() })
	comm, err := os.ReadFile("/proc/self/comm")
	ts.Check(err)
	ts.Setenv("PORT", strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	ts.Setenv("OWNER", regexp.QuoteMeta(strings.TrimSpace(string(comm))))
	ts.Setenv("PID", strconv.Itoa(os.Getpid()))
}

// replaceInFile is the command "replace OLD NEW FILE".
func replaceInFile(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[2])
	text := strings.ReplaceAll(ts.ReadFile(path), args[0], args[1])
	ts.Check(os.WriteFile(path, []byte(text), 0o600))
}
