package modbus_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/adaptertest"
	"github.com/fieldferry/fieldferry/adapters/modbus"
	"github.com/fieldferry/fieldferry/adapters/simulate"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 100 * time.Millisecond

func TestConformance(t *testing.T) {
	adaptertest.Run(t, func(t *testing.T) adaptertest.Field {
		s := simulate.New()
		address := freeAddress(t)
		config := modbus.Config{Name: "line", Address: address, Timeout: timeout, Retries: 1}
		var names []string
		for id := range uint8(3) {
			name := fmt.Sprintf("dev-%d", id)
			names = append(names, name)
			config.Devices = append(config.Devices, modbus.Device{
				Device: &adapters.Device{Name: name},
				UnitID: id + 1,
				Every:  20 * time.Millisecond,
				Points: []modbus.Point{
					{Point: &adapters.Point{Name: "a"}, Table: modbus.Holding, Address: 10},
					{Point: &adapters.Point{Name: "b"}, Table: modbus.Input, Address: 20, Type: modbus.Int32},
				},
			})
		}
		var stop func()
		halt := func() {
			if stop != nil {
				stop()
				stop = nil
			}
		}
		t.Cleanup(func() { halt() })
		unit := func(name string) *simulate.Unit {
			return s.Unit(name[len("dev-")] - '0' + 1)
		}
		return adaptertest.Field{
			Devices: names,
			Link:    func() adapters.Link { return newLink(t, config) },
			Start:   func() { stop = serve(t, s, address) },
			Stop:    halt,
			Set: func(v int) {
				for _, n := range names {
					unit(n).Set(simulate.Holding, 10, uint16(v))
					unit(n).Set(simulate.Input, 20, 0, uint16(v))
				}
			},
			Silence: func(name string, silent bool) { unit(name).SetFault(simulate.Fault{Dead: silent}) },
			Bound:   2 * timeout,
		}
	})
}

// freeAddress returns an address that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve serves the units of s until stop is called.
func serve(t *testing.T, s *simulate.Server, address string) (stop func()) {
	t.Helper()
	if err := s.Open(address); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("server: %v", err)
		}
	}
}

func newLink(t *testing.T, c modbus.Config) *modbus.Link {
	t.Helper()
	l, err := modbus.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
