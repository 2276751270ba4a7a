package opcua

import (
	"testing"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/adaptertest"
)

func TestConformance(t *testing.T) {
	for _, poll := range []bool{false, true} {
		name := "subscribe"
		if poll {
			name = "poll"
		}
		t.Run(name, func(t *testing.T) {
			adaptertest.Run(t, func(t *testing.T) adaptertest.Field {
				devices := []string{"a", "b"}
				r := newRig(t, devices, 3)
				return adaptertest.Field{
					Devices: devices,
					Link: func() adapters.Link {
						l, err := New(Config{Name: "test", Endpoint: r.url(), Poll: poll, Devices: r.devices(devices, 3, 40*time.Millisecond)})
						if err != nil {
							t.Fatal(err)
						}
						return l
					},
					Start: r.open, Stop: r.shut, Set: r.set, Silence: r.silence,
					Bound: 3 * time.Second,
				}
			})
		})
	}
}
