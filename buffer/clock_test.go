package buffer

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// setClock is a machine's clock that can be set.
type setClock struct {
	wall   time.Time
	up     time.Duration
	boot   uint64
	synced bool
}

func (c *setClock) Now() time.Time                  { return c.wall }
func (c *setClock) Uptime() (time.Duration, uint64) { return c.up, c.boot }
func (c *setClock) Synced() bool                    { return c.synced }

// keptClock is one of a machine that may have no hardware clock.
type keptClock struct {
	setClock
	kept bool
}

func (c *keptClock) Kept() bool { return c.kept }

// pass lets time pass.
func (c *setClock) pass(d time.Duration) {
	c.wall = c.wall.Add(d)
	c.up += d
}

func TestAgeWhateverTheClockSays(t *testing.T) {
	const year = 365 * 24 * time.Hour
	right := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	y1970 := time.Unix(100, 0)
	for _, c := range []struct {
		name string
		// before and after are how far the wall clock is off when something is stored
		// and when it is looked at, an hour later; then it may be set right.
		before, after time.Duration
		reboot        bool
		synced        bool // before it is looked at, by the kernel
		want          time.Duration
	}{
		{name: "all is well", want: time.Hour},
		{name: "all is well, with a boot between", reboot: true, want: time.Hour},
		{name: "1970, then right", before: y1970.Sub(right), want: time.Hour},
		{name: "1970, then right, synchronised", before: y1970.Sub(right), synced: true, want: time.Hour},
		{name: "1970, then right after a boot", before: y1970.Sub(right), reboot: true, want: 10 * time.Minute},
		{name: "1970 after a boot", after: y1970.Sub(right), reboot: true, want: 10 * time.Minute},
		{name: "an hour back", after: -time.Hour, want: time.Hour},
		{name: "an hour back after a boot", after: -2 * time.Hour, reboot: true, want: 10 * time.Minute},
		{name: "ten years on", after: 10 * year, want: time.Hour},
		{name: "ten years on after a boot", after: 10 * year, reboot: true, want: 10 * time.Minute},
		{name: "ten years on, then synchronised", before: 10 * year, synced: true, want: time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := &setClock{wall: right.Add(-time.Minute), up: time.Minute, boot: 1}
			// An earlier boot made this time durable.
			boots := map[uint64]bootTime{7: {began: right.Add(-time.Hour).UnixMilli(), newest: right.Add(-2 * time.Minute).UnixMilli(), epoch: 1}}
			raw.wall = raw.wall.Add(c.before)
			clock := newClock(raw, boots)
			raw.pass(time.Minute)
			clock.observe()
			at, boot := raw.up, raw.boot
			if c.reboot {
				raw.pass(50 * time.Minute)
				clock.observe()
				if id, b, ok := clock.toSave(); ok {
					boots[id] = b
				}
				raw.boot, raw.up = 2, 0
				raw.wall = right.Add(50*time.Minute + c.after)
				clock = newClock(raw, boots)
				raw.pass(10 * time.Minute)
			} else {
				raw.pass(30 * time.Minute)
				raw.wall = right.Add(30*time.Minute + c.after)
				clock.observe()
				raw.pass(30 * time.Minute)
			}
			raw.synced = c.synced
			clock.observe()
			if got := clock.age(boot, at).Truncate(time.Second); got != c.want {
				t.Errorf("age is %v, want %v", got, c.want)
			}
		})
	}
}

// TestBootWhoseClockBecameRight looks from a later boot at what was stored while
// the clock of an earlier one was still wrong.
func TestBootWhoseClockBecameRight(t *testing.T) {
	right := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	raw := &setClock{wall: time.Unix(5, 0), up: 5 * time.Second, boot: 1}
	boots := make(map[uint64]bootTime)
	clock := newClock(raw, boots)
	if clock.unsaved() {
		t.Error("1970 is believed")
	}
	at := raw.up
	raw.pass(time.Hour)
	raw.wall, raw.synced = right, true // NTP
	clock.observe()
	id, b, ok := clock.toSave()
	if !ok || !clock.unsaved() || id != 1 {
		t.Fatal("the boot's time is not known")
	}
	clock.saved(b)
	if clock.unsaved() {
		t.Error("what was saved is still to be saved")
	}
	raw = &setClock{wall: right.Add(3 * time.Hour), up: time.Minute, boot: 2}
	clock = newClock(raw, map[uint64]bootTime{1: b})
	if got := clock.age(1, at).Truncate(time.Second); got != 4*time.Hour {
		t.Errorf("age is %v, want 4h", got)
	}
}

// TestClockThatNothingKeeps begins with a time that looks right, but was read from
// a file.
func TestClockThatNothingKeeps(t *testing.T) {
	right := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, kept := range []bool{false, true} {
		raw := &keptClock{setClock{wall: right, up: time.Minute, boot: 2}, kept}
		boots := map[uint64]bootTime{1: {began: right.Add(-time.Hour).UnixMilli(), newest: right.Add(-time.Second).UnixMilli(), epoch: 1}}
		if got := newClock(raw, boots).believes(raw.wall); got != kept {
			t.Errorf("kept %v, believed %v", kept, got)
		}
		raw.synced = true
		clock := newClock(raw, boots)
		id, b, ok := clock.toSave()
		if !clock.believes(raw.wall) || !ok {
			t.Fatal("a clock that is synchronised is not believed")
		}
		// The next process of this boot knows it, too.
		boots[id] = b
		raw.synced = false
		raw.pass(time.Hour)
		if !newClock(raw, boots).believes(raw.wall) {
			t.Error("what was known of this boot is forgotten")
		}
	}
}

// TestBelieves takes times while the clock is set.
func TestBelieves(t *testing.T) {
	right := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	raw := &setClock{wall: time.Unix(5, 0), up: 5 * time.Second, boot: 1}
	clock := newClock(raw, make(map[uint64]bootTime))
	expect := func(what string, taken time.Time, ago time.Duration, want bool) {
		t.Helper()
		if got := clock.believed(taken, ago); got != want {
			t.Errorf("%s is believed: %v", what, got)
		}
	}
	expect("1970", raw.wall, 0, false)
	before := raw.wall
	raw.pass(10 * time.Second)
	expect("1970, a little later", raw.wall, 0, false)
	raw.wall, raw.synced = right, true // NTP
	expect("the right time before anyone has seen that it is", raw.wall, 0, false)
	clock.observe()
	expect("the right time", raw.wall, 0, true)
	expect("the time before it was right", before, 10*time.Second, false)
	raw.pass(time.Hour)
	expect("the right time, an hour later", right, time.Hour, true)
	raw.synced = false // no network, and a slow drift
	raw.wall = raw.wall.Add(time.Second)
	clock.observe()
	expect("a second off", raw.wall, 0, true)
	good := raw.wall
	raw.wall = raw.wall.Add(-time.Hour) // by hand
	expect("an hour back", raw.wall, 0, false)
	clock.observe()
	expect("an hour back, for longer", raw.wall, 0, false)
	expect("the time before", good, 0, true)
	raw.wall = raw.wall.Add(time.Hour)
	expect("the time of now", raw.wall, 0, true)
}

// TestNothingExpiresBeforeItsTime has a box boot with a wrong clock, or the clock
// jump while it runs: what expires does so by the time that has passed, and all
// comes out in order.
func TestNothingExpiresBeforeItsTime(t *testing.T) {
	const year = 365 * 24 * time.Hour
	right := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name        string
		boot, later time.Duration // how far the wall clock is off from then on
		synced      bool          // later, by the kernel
	}{
		{name: "all is well"},
		{name: "boots in 1970, and the network comes", boot: -57 * year, synced: true},
		{name: "boots in 1970, and somebody sets it", boot: -57 * year},
		{name: "boots in 1970 and stays there", boot: -57 * year, later: -57 * year},
		{name: "an hour back", later: -time.Hour},
		{name: "boots an hour back", boot: -time.Hour, later: -time.Hour},
		{name: "ten years on", later: 10 * year},
		{name: "boots ten years on", boot: 10 * year, later: 10 * year},
		{name: "boots ten years on, and the network comes", boot: 10 * year, synced: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				raw := &wrongClock{wall: right, boot: 1, synced: true, began: time.Now(), set: time.Now()}
				o := Options{GenerationBytes: 1, Clock: raw, Limits: Limits{MaxAge: [NumClasses]time.Duration{Telemetry: 24 * time.Hour}}}
				dir := t.TempDir()
				var b *Buffer
				var out *Outbox
				open := func() {
					var err error
					if b, err = Open(dir, o); err != nil {
						t.Fatal(err)
					}
					out = outbox(t, b, "cloud", Telemetry)
				}
				stop := func() {
					if err := b.Close(); err != nil {
						t.Fatal(err)
					}
				}
				n := 0
				put := func() { // one that is good for ten minutes, and one that lasts
					r := make(receipt, 1)
					for _, expiry := range []time.Duration{10 * time.Minute, 0} {
						n++
						m := &Message{Topic: "t", Payload: fmt.Appendf(nil, "m%d", n), Expiry: expiry, Urgent: true, Copies: []Copy{{Outbox: out}}}
						if err := b.Append(t.Context(), Telemetry, m, r); err != nil {
							t.Fatal(err)
						}
						if err := <-r; err != nil {
							t.Fatal(err)
						}
					}
				}
				nothingIsDropped := func() {
					t.Helper()
					balance(t, out, Ledger{Accepted: uint64(n), Stored: uint64(n)})
				}
				open()
				put()
				time.Sleep(time.Minute)
				stop()

				raw.reboot(c.boot)
				open()
				put()
				time.Sleep(3 * time.Minute)
				nothingIsDropped()
				raw.jump(c.later-c.boot, c.synced)
				put()
				time.Sleep(3 * time.Minute)
				nothingIsDropped()
				stop()
				open()
				put()
				time.Sleep(time.Minute)
				nothingIsDropped()

				time.Sleep(10 * time.Minute)
				r, err := b.Reader(out)
				if err != nil {
					t.Fatal(err)
				}
				for i := range n / 2 {
					got, all := take(t, r, 1)
					if w := fmt.Sprintf("m%d", 2*i+2); got[0] != w {
						t.Errorf("%s came out, want %s", got[0], w)
					}
					out.Settle(all[0].Ordinal, Delivered) // what was dropped behind it waits for that
				}
				balance(t, out, Ledger{Accepted: 8, Delivered: 4, Dropped: map[string]uint64{"expired": 4}})
				r.Close()
				stop()
			})
		})
	}
}

// wrongClock is a machine's clock in a bubble of synctest.
type wrongClock struct {
	mu     sync.Mutex
	wall   time.Time // at set, which is of the bubble
	set    time.Time
	began  time.Time // of the boot
	boot   uint64
	synced bool
}

func (c *wrongClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall.Add(time.Since(c.set))
}

func (c *wrongClock) Uptime() (time.Duration, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.began), c.boot
}

func (c *wrongClock) Synced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.synced
}

// jump moves the wall clock.
func (c *wrongClock) jump(by time.Duration, synced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = c.wall.Add(by)
	c.synced = synced
}

// reboot is one that takes a minute, after which the wall clock is off.
func (c *wrongClock) reboot(off time.Duration) {
	time.Sleep(time.Minute)
	c.jump(off, false)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boot++
	c.began = time.Now()
}
