package buffer

import (
	"sync"
	"time"

	"github.com/fieldferry/fieldferry/buffer/log"
)

// clock says how long ago something was stored. The wall clock of a gateway may
// start in 1970, jump by years when the network comes, and step back; the uptime
// of a boot never does. So within a boot an age is a difference of uptimes. Across
// boots it is one of wall clocks, but only if both are believed:
//
//   - The wall clock is believed at the start of a boot if it is not earlier than
//     the newest time that was ever made durable (and this program), nor more than
//     a year later, and the machine has a clock that runs while it is off; or at any
//     time while the kernel says that it is synchronised.
//   - What it believes goes on with the uptime. A step of the wall clock that the
//     kernel does not vouch for changes nothing.
//   - Once the clock of a boot is believed, the time of that boot is remembered in
//     meta.db. It holds for all that was stored in that boot, also before.
//
// Of what is left, an age is known to be at least the uptime. Order never depends
// on any clock.
type clock struct {
	raw   log.Clock
	boot  uint64
	began time.Time     // of this program's own count of time
	base  time.Duration // the uptime then

	mu      sync.Mutex // guards what follows
	wall    time.Time  // the best guess at the uptime at
	at      time.Duration
	trusted bool
	boots   map[uint64]bootTime // by boot id
	dirty   bool
}

// bootTime is what is known of a boot whose clock was right.
type bootTime struct {
	began  int64  // Unix ms
	newest int64  // Unix ms, made durable
	epoch  uint32 // that made it durable last
}

// keepBoots is how many boots are remembered: those of the newest epochs.
const keepBoots = 64

const (
	clockFloor = 1_767_225_600_000 // 2026-01-01, Unix ms: this program is younger
	clockReach = 366 * 24 * time.Hour
	clockSlack = 2 * time.Second // steps below are those of NTP at work
)

// newClock begins with what meta.db knows of boots.
func newClock(raw log.Clock, boots map[uint64]bootTime) *clock {
	c := &clock{raw: raw, boots: boots}
	c.wall, c.began = raw.Now(), time.Now()
	c.base, c.boot = raw.Uptime()
	c.at = c.base
	if b, ok := boots[c.boot]; ok { // an earlier process was here
		c.wall, c.trusted = time.UnixMilli(b.began).Add(c.at), true
	} else {
		var last bootTime
		for _, b := range boots {
			if b.epoch >= last.epoch {
				last = b
			}
		}
		now := c.wall.UnixMilli()
		c.trusted = now >= max(last.newest, clockFloor) && (last.newest == 0 || now <= last.newest+clockReach.Milliseconds())
		if k, ok := raw.(log.KeptClock); ok {
			c.trusted = c.trusted && k.Kept()
		}
	}
	c.observe()
	return c
}

// observe compares the clocks. It is called every second.
func (c *clock) observe() {
	wall, up := c.raw.Now(), c.up()
	synced := false
	if s, ok := c.raw.(log.SyncedClock); ok {
		synced = s.Synced() && wall.UnixMilli() >= clockFloor
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trusted = c.trusted || synced
	if stepped := wall.Sub(c.guess(up)).Abs() > clockSlack; synced || !stepped || !c.trusted {
		c.wall, c.at = wall, up
	}
	if began := c.guess(0).UnixMilli(); c.trusted && absDiff(began, c.boots[c.boot].began) > clockSlack.Milliseconds() {
		c.boots[c.boot] = bootTime{began: began}
		c.dirty = true
	}
}

func absDiff(a, b int64) int64 { return max(a-b, b-a) }

// guess is the best guess of the wall clock at an uptime of this boot. c.mu is
// held.
func (c *clock) guess(up time.Duration) time.Time { return c.wall.Round(0).Add(up - c.at) }

// Now is the best guess of the wall clock.
func (c *clock) Now() time.Time {
	up := c.up()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guess(up)
}

// up is the uptime: by the program's own count, unless the machine has slept, which
// is missing in that.
func (c *clock) up() time.Duration {
	up, _ := c.raw.Uptime()
	if own := c.base + time.Since(c.began); up < own+time.Second {
		return own
	}
	return up
}

// believes reports whether a time of the machine's clock can be believed. One that
// was taken before the clock was set right cannot, nor after it was set wrong.
func (c *clock) believes(t time.Time) bool {
	// Times of time.Now are subtracted by the program's own count, whatever the wall
	// clock did in between.
	return c.believed(t, c.raw.Now().Sub(t))
}

// believed is believes for a time that was taken so long ago.
func (c *clock) believed(t time.Time, ago time.Duration) bool {
	up := c.up()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.trusted && t.Round(0).Sub(c.guess(up-ago)).Abs() <= clockSlack
}

// Uptime makes it a log.Clock.
func (c *clock) Uptime() (time.Duration, uint64) { return c.up(), c.boot }

// made is when something happened that has the uptime of a boot, as an uptime of
// this one: below zero if it was before. It was that early at the latest.
func (c *clock) made(boot uint64, at time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if boot == c.boot {
		return at
	}
	if b, ok := c.boots[boot]; ok && c.trusted {
		return min(0, time.UnixMilli(b.began).Add(at).Sub(c.guess(0)))
	}
	return 0
}

// age is how long ago that was, at the least.
func (c *clock) age(boot uint64, at time.Duration) time.Duration {
	return max(c.up()-c.made(boot, at), 0)
}

// unsaved reports whether something is known that meta.db does not know.
func (c *clock) unsaved() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dirty
}

// toSave returns what is to be made durable about this boot, if anything.
func (c *clock) toSave() (boot uint64, b bootTime, ok bool) {
	up := c.up()
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok = c.boots[c.boot]
	if ok {
		b.newest = c.guess(up).UnixMilli()
	}
	return c.boot, b, ok
}

// saved notes that it is.
func (c *clock) saved(b bootTime) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.boots[c.boot].began == b.began {
		c.dirty = false
	}
}
