package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"testing"

	"github.com/gopcua/opcua/server"
	"github.com/gopcua/opcua/ua"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fieldferry/fieldferry/adapters/opcua"
)

// serveOPCUA is the command "opcua": the library's own server, which knows no
// security, behind $OPCUA until the script ends.
func serveOPCUA(ts *testscript.TestScript, _ bool, _ []string) {
	log.SetOutput(io.Discard) // the library's server logs to everybody's
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	port := ln.Addr().(*net.TCPAddr).Port
	ts.Check(ln.Close())
	srv := server.New(server.EndPoint("127.0.0.1", port), server.EnableSecurity("None", ua.MessageSecurityModeNone), server.EnableAuthMode(ua.UserTokenTypeAnonymous))
	ns := server.NewMapNamespace(srv, "urn:acme:press")
	ns.Data = map[string]any{"Press.Force": 12.5, "Press.State": int32(1), "Press.Setpoint": int16(200)}
	ctx, cancel := context.WithCancel(context.Background())
	ts.Check(srv.Start(ctx))
	ts.Defer(func() {
		cancel()
		srv.Close()
	})
	ts.Setenv("OPCUA", fmt.Sprintf("opc.tcp://127.0.0.1:%d", port))
}

func TestPointName(t *testing.T) {
	for name, want := range map[string]string{
		"Force": "force", "OilTemperature": "oil-temperature", "UInt16": "uint16", "T 1.2": "t-1-2", "grün": "gr-n", "__x__": "x", "ÄÖ": "", "a/b": "a-b",
	} {
		if got := pointName(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}

func TestFoundPoints(t *testing.T) {
	nodes := []opcua.Node{
		{ID: "nsu=u;s=A.Force", Path: "A/Force", Name: "Force", Class: "Variable"},
		{ID: "nsu=u;s=B.Force", Path: "B/Force", Name: "Force", Class: "Variable"},
		{ID: "nsu=u;s=B.Force2", Path: "B/Force", Name: "Force", Class: "Variable"},
		{ID: "nsu=u;s=Bad", Path: "Bad", Name: "Bad", Class: "Variable"},
		{ID: "nsu=u;s=Obj", Path: "Obj", Name: "Obj", Class: "Object"},
		{ID: "i=2256", Path: "ServerStatus", Name: "ServerStatus", Class: "Variable"},
		{ID: "nsu=u;s=Ä", Path: "Ä", Name: "Ä", Class: "Variable"},
	}
	var got []string
	for _, p := range foundPoints(nodes) {
		got = append(got, p.name)
	}
	if want := "[force b-force b-force-2 bad-2 point]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
	points := foundPoints(nodes[:3])
	if base := baseOf(points); base != "nsu=u;s=" {
		t.Errorf("base %q", base)
	}
	if base := baseOf(points[1:]); base != "nsu=u;s=B." {
		t.Errorf("base %q", base)
	}
}
