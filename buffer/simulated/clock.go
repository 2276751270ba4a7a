package simulated

import "time"

// clock is the machine's. Its wall clock may be wrong; the bubble's is right.
type clock struct {
	shift  time.Duration // of the wall clock
	synced bool
	boot   uint64
	up     time.Time // when the machine was booted
}

// Now is what the wall clock says. With Uptime and Synced it makes the machine a
// log.SyncedClock.
func (m *Machine) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.clock.shift)
}

// Uptime is the time since the machine was booted, and which boot that is.
func (m *Machine) Uptime() (time.Duration, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Since(m.clock.up), m.clock.boot
}

// Synced reports whether the wall clock is right, and known to be.
func (m *Machine) Synced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock.shift == 0 && m.clock.synced
}

// Reboot boots a machine that is off, after a power cut or after it was shut down.
func (m *Machine) Reboot(cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cut {
		m.powerCut()
	}
	m.clock.boot++
	m.clock.up = time.Now()
	m.clock.synced = false
	m.note("boot")
}

// SetClock sets the wall clock wrong by some time, or right. If it is right, synced
// says whether the machine knows.
func (m *Machine) SetClock(wrongBy time.Duration, synced bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock.shift, m.clock.synced = wrongBy, synced
	m.note("the clock is wrong by %v, synced: %t", wrongBy, synced)
}
