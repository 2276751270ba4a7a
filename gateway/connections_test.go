package gateway

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/fieldferry/fieldferry/bridge"
	"github.com/fieldferry/fieldferry/bridge/upstreamtest"
	"github.com/fieldferry/fieldferry/buffer"
	"github.com/fieldferry/fieldferry/localbroker"
)

const (
	spreadDevices = 12

	// unavailable is how an upstream is away that must keep its address.
	unavailable = 0x88
)

// spreadSite is a gateway with twelve devices and one bridge.
func spreadSite(dir, url string, connections int) string {
	return fmt.Sprintf(`
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
adapters: {talkers: {mqtt: local, devices: {"d-{1..%d}": {type: meter}}}}
bridges:
  cloud: {upstream: [%q], connections: %d, backoff: {first: 10ms, max: 50ms}, data: {telemetry: {qos: 2}}}
buffer: {min_free: 1MiB}
`, dir, spreadDevices, url, connections)
}

// publishAll publishes messages first to last of each device.
func publishAll(t *testing.T, g *Gateway, first, last int) {
	t.Helper()
	stored := make(done, spreadDevices*(last-first+1))
	for n := first; n <= last; n++ {
		for d := 1; d <= spreadDevices; d++ {
			m := &localbroker.Message{Topic: fmt.Sprintf("devices/d-%d/telemetry", d), Payload: fmt.Append(nil, n), QoS: 1, Urgent: true}
			if err := g.Broker().Publish(t.Context(), m, stored); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range cap(stored) {
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
}

// wantSeries checks that each device's messages 1 to last were delivered once and in
// their order.
func wantSeries(t *testing.T, up *upstreamtest.Server, last int) {
	t.Helper()
	got := make(map[string][]string)
	for _, d := range up.Delivered() {
		if strings.HasSuffix(d.Topic, "/telemetry") {
			got[d.Topic] = append(got[d.Topic], d.Payload)
		}
	}
	var want []string
	for n := 1; n <= last; n++ {
		want = append(want, fmt.Sprint(n))
	}
	for d := 1; d <= spreadDevices; d++ {
		topic := fmt.Sprintf("acme/works/hall-1/meter/d-%d/telemetry", d)
		if !slices.Equal(got[topic], want) {
			t.Errorf("%s got %q", topic, got[topic])
		}
	}
	if v := up.Violations(); len(v) > 0 {
		t.Errorf("violations: %q", v)
	}
}

func bridgeOutboxes(g *Gateway) (names []string) {
	for _, o := range g.Buffer().Outboxes() {
		if name, ok := strings.CutPrefix(o.Name(), bridgeOutbox); ok && o.Class() == buffer.Telemetry && !strings.HasSuffix(name, "/replay") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Two bridges carry the same messages under topics of their own, and one whose upstream
// is away does not hold the other.
func TestBridgesAreIndependent(t *testing.T) {
	near, nearURL := upstreamAt(t)
	far := upstreamtest.New(upstreamtest.Script{Code: unavailable})
	farURL, err := far.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	c := site(t, `
gateway: {id: gw-1, org: acme, site: works, zone: hall-1, data_dir: %q}
broker: {listeners: [{name: main, listen: "127.0.0.1:0"}]}
adapters: {talkers: {mqtt: local, devices: {"d-{1..%d}": {type: meter}}}}
bridges:
  near: {upstream: [%q]}
  far: {upstream: [%q], topic: "{device}/{org}/{data}", backoff: {first: 10ms, max: 50ms}, data: {telemetry: {qos: 2}}}
buffer: {min_free: 1MiB}
`, t.TempDir(), spreadDevices, nearURL, farURL)
	g, stop := start(t, c)
	publishAll(t, g, 1, 20)
	const all = 20 * spreadDevices
	waitFor(t, "all is near", func() bool { return g.Bridges()[0].Ledger.Delivered == all })
	b := g.Bridges()
	if l := b[0].Ledger; l.Accepted != all || l.Stored != 0 || l.Difference() != 0 || !b[0].Connected {
		t.Errorf("near: %+v", b[0])
	}
	if l := b[1].Ledger; l.Accepted != all || l.Stored != all || l.Delivered != 0 || l.Difference() != 0 || b[1].Connected {
		t.Errorf("far: %+v", b[1])
	}
	wantSeries(t, near, 20)
	far.Go(upstreamtest.Script{})
	waitFor(t, "all is far", func() bool { return g.Bridges()[1].Ledger.Stored == 0 })
	stop()
	n := 0
	for _, d := range far.Delivered() {
		if strings.HasPrefix(d.Topic, "d-") && strings.HasSuffix(d.Topic, "/acme/telemetry") {
			n++
		}
	}
	if n != all {
		t.Errorf("%d messages are far under their topics, want %d", n, all)
	}
}

// Several connections have a session each; only the first says that the gateway is
// there. One that is held holds only its own devices.
func TestConnections(t *testing.T) {
	up := upstreamtest.New()
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	g, stop := start(t, site(t, "%s", spreadSite(t.TempDir(), url, 3)))
	waitFor(t, "all connected", func() bool { return g.Bridges()[0].Connected })
	publishAll(t, g, 1, 20)
	waitFor(t, "all delivered", func() bool { return g.Bridges()[0].Ledger.Stored == 0 })
	wantSeries(t, up, 20)
	if b := g.Bridges()[0]; b.Ledger.Delivered != 20*spreadDevices || b.Connections != 3 || b.Delivered != b.Ledger.Delivered {
		t.Errorf("%+v", b)
	}
	var ids, wills []string
	for _, c := range up.Connects() {
		ids = append(ids, c.Packet.ClientID)
		if c.Packet.WillFlag {
			wills = append(wills, c.Packet.ClientID)
		}
	}
	slices.Sort(ids)
	if !slices.Equal(ids, []string{"gw-1", "gw-1-1", "gw-1-2"}) || !slices.Equal(wills, []string{"gw-1"}) {
		t.Errorf("clients %q, wills of %q", ids, wills)
	}
	if got := bridgeOutboxes(g); !slices.Equal(got, []string{"cloud/0-of-3", "cloud/1-of-3", "cloud/2-of-3"}) {
		t.Errorf("outboxes %q", got)
	}
	stop()
}

func TestAConnectionThatIsHeldHoldsOnlyItsOwn(t *testing.T) {
	held := bridge.SpreadOver(3, "d-1")
	topics := make(map[string]bool)
	free := 0
	for d := 1; d <= spreadDevices; d++ {
		id := fmt.Sprintf("d-%d", d)
		if bridge.SpreadOver(3, id) == held {
			topics["acme/works/hall-1/meter/"+id+"/telemetry"] = true
		} else {
			free++
		}
	}
	up := upstreamtest.New(upstreamtest.Script{Publish: func(p upstreamtest.Publish) upstreamtest.Answer {
		if topics[p.Topic] {
			return upstreamtest.Answer{Do: upstreamtest.Ignore}
		}
		return upstreamtest.Answer{}
	}})
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	g, stop := start(t, site(t, "%s", spreadSite(t.TempDir(), url, 3)))
	publishAll(t, g, 1, 20)
	waitFor(t, "the others are delivered", func() bool { return g.Bridges()[0].Ledger.Delivered == uint64(20*free) })
	if l := g.Bridges()[0].Ledger; l.Stored != uint64(20*(spreadDevices-free)) || l.Difference() != 0 {
		t.Errorf("ledger %+v", l)
	}
	stop()
}

// When the number of connections changes, what is stored goes first, over the sessions it
// was stored for; no device's messages change their order and none comes twice, also when
// the gateway is restarted in between, and when the number changes again meanwhile.
func TestChangeOfConnections(t *testing.T) {
	up := upstreamtest.New()
	url, err := up.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	dir := t.TempDir()
	run := func(connections int) (*Gateway, func()) {
		return start(t, site(t, "%s", spreadSite(dir, url, connections)))
	}
	drained := func(g *Gateway) {
		t.Helper()
		waitFor(t, "all delivered", func() bool { return g.Bridges()[0].Ledger.Stored == 0 })
	}
	outboxes := func(g *Gateway, want ...string) {
		t.Helper()
		waitFor(t, fmt.Sprintf("outboxes %q", want), func() bool { return slices.Equal(bridgeOutboxes(g), want) })
	}
	// One connection, which has had a session.
	g, stop := run(1)
	publishAll(t, g, 1, 5)
	drained(g)
	up.Go(upstreamtest.Script{Code: unavailable})
	up.Cut()
	publishAll(t, g, 6, 10)
	stop()
	// Three, while the upstream is away; then two, which has to wait.
	g, stop = run(3)
	publishAll(t, g, 11, 15)
	outboxes(g, "cloud/0", "cloud/0-of-3@1", "cloud/1-of-3@1", "cloud/2-of-3@1")
	stop()
	g, stop = run(2)
	publishAll(t, g, 16, 20)
	outboxes(g, "cloud/0", "cloud/0-of-3@1", "cloud/1-of-3@1", "cloud/2-of-3@1")
	begun := len(up.Connects())
	up.Go(upstreamtest.Script{})
	drained(g)
	outboxes(g, "cloud/0-of-3@1", "cloud/1-of-3@1", "cloud/2-of-3@1")
	waitFor(t, "three are connected", func() bool { return g.Bridges()[0].Connected && len(g.bridges[0].current()) == 3 })
	publishAll(t, g, 21, 25)
	drained(g)
	wantSeries(t, up, 25)
	// The session of the first connection goes on.
	clean := 0
	for _, c := range up.Connects()[begun:] {
		if c.Packet.ClientID == "gw-1" && c.Packet.CleanStart {
			clean++
		}
	}
	if clean != 0 {
		t.Errorf("%d clean starts of gw-1 after the first", clean)
	}
	stop()
	// Now the change to two comes through, at once.
	g, stop = run(2)
	outboxes(g, "cloud/0-of-2@2", "cloud/1-of-2@2")
	publishAll(t, g, 26, 30)
	drained(g)
	wantSeries(t, up, 30)
	if l := g.Buffer().Stats().Ledger; l.Difference() != 0 || l.Delivered < 30*spreadDevices {
		t.Errorf("ledger %+v", l)
	}
	stop()
	// And fewer: the session that is not needed any more ends.
	up.Go(upstreamtest.Script{Code: unavailable})
	g, stop = run(2)
	publishAll(t, g, 31, 33)
	stop()
	up.Go(upstreamtest.Script{})
	g, stop = run(1)
	outboxes(g, "cloud/0@3")
	publishAll(t, g, 34, 36)
	drained(g)
	stop()
	wantSeries(t, up, 36)
	// The gateway is not said to stop while it goes on with its session.
	var told []string
	for _, d := range up.Delivered() {
		if strings.HasSuffix(d.Topic, "/gw-1/status") {
			var s struct{ Status string }
			if err := json.Unmarshal([]byte(d.Payload), &s); err != nil {
				t.Fatal(err)
			}
			told = append(told, s.Status)
		}
	}
	offline := 0
	for _, s := range told {
		if s == "offline" {
			offline++
		}
	}
	if offline != 3 { // the stops for which the upstream was there
		t.Errorf("%q", told)
	}
}

func TestSpreadNames(t *testing.T) {
	for _, tt := range []struct {
		k, of, generation int
		want              string
	}{{0, 1, 0, "b/0"}, {2, 3, 0, "b/2-of-3"}, {0, 1, 4, "b/0@4"}, {63, 64, 12, "b/63-of-64@12"}} {
		got := spreadName("b/", tt.k, tt.of, tt.generation)
		if got != tt.want || !outboxName.MatchString(got[2:]) || !outboxName.MatchString(got[2:]+"/replay") {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
	for _, name := range []string{"", "x", "0/other", "0-of-", "-1", "0@"} {
		if outboxName.MatchString(name) {
			t.Errorf("%q is taken for a connection's", name)
		}
	}
}
