package conformance

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/fieldferry/fieldferry/localbroker/packet"
)

// How a connection ends, or does not begin.

// drop ends the connection without a word.
func (w *wire) drop() { _ = w.nc.Close() }

// leave disconnects and waits until the broker has closed.
func (w *wire) leave(reason packet.Reason, props ...packet.Properties) {
	w.s.Helper()
	d := packet.Disconnect{Reason: reason}
	for _, p := range props {
		d.Props = append(d.Props, p...)
	}
	w.send(d.Append(nil, w.v, packet.DISCONNECT))
	for {
		f, err := w.read(patience)
		if over(err) {
			return
		}
		w.check(err)
		if f.kind() == packet.DISCONNECT {
			w.s.Errorf("DISCONNECT is answered with %v", f)
		}
	}
}

// over reports whether err is the end of a connection.
func over(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !isPacketError(err)
}

func isPacketError(err error) bool {
	_, ok := errors.AsType[*packet.Error](err)
	return ok
}

// closed checks that the broker ends the connection and, with MQTT 5, says one of
// reasons before. To say so is a SHOULD, §4.13.1, to which only ours is held.
func (w *wire) closed(reasons ...packet.Reason) {
	w.s.Helper()
	var told []packet.Reason
	for {
		f, err := w.read(patience)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			w.s.Errorf("%s: the connection stays open", w.about)
			return
		}
		if over(err) {
			break
		}
		w.check(err)
		if len(told) > 0 {
			w.s.Errorf("%v after DISCONNECT", f) // [MQTT-3.14.4-1]
		}
		if f.kind() == packet.DISCONNECT {
			if w.v != packet.V5 {
				w.s.Errorf("3.1.1 has no DISCONNECT from the broker: %v", f)
			}
			var d packet.Disconnect
			w.check(d.Decode(w.v, packet.DISCONNECT, f.body))
			if _, there := d.Props.Uint(packet.SessionExpiry); there {
				w.s.Error("a session expiry in the broker's DISCONNECT") // [MQTT-3.14.2-2]
			}
			told = append(told, d.Reason)
		}
	}
	if w.v != packet.V5 || len(reasons) == 0 || !w.s.ours() {
		return
	}
	if len(told) != 1 || !slices.Contains(reasons, told[0]) {
		w.s.Errorf("%s: closed with %v, want one of %v", w.about, told, reasons)
	}
}

// doing notes what the client is about to show.
func (w *wire) doing(format string, args ...any) *wire {
	w.about = fmt.Sprintf(format, args...)
	return w
}

// gone checks that the broker ends the connection and has sent nothing on it.
func (w *wire) gone() {
	w.s.Helper()
	f, err := w.read(patience)
	switch {
	case err == nil:
		w.s.Errorf("%v where the connection was to end", f)
	case !over(err):
		w.s.Errorf("the connection does not end: %v", err)
	}
}

// refused checks that a CONNECT, sent as it is, is not accepted. CONNACK may say
// why, and ours has to if reasons are given; with none there must be no CONNACK.
func (s *scene) refused(raw []byte, reasons ...packet.Reason) {
	s.Helper()
	w := s.dial()
	w.send(raw)
	f, err := w.read(patience)
	switch {
	case over(err):
		if len(reasons) > 0 && s.ours() {
			s.Errorf("closed without CONNACK, want one of %v", reasons)
		}
		return
	case err != nil:
		s.Errorf("% x: %v", raw, err)
		return
	case f.kind() != packet.CONNACK:
		s.Errorf("% x: %v", raw, f)
		return
	}
	var c packet.Connack
	if err := c.Decode(s.v, f.body); err != nil {
		s.Error(err)
	}
	if c.Reason == packet.Success || len(reasons) == 0 || s.ours() && !slices.Contains(reasons, c.Reason) {
		s.Errorf("% x: CONNACK %v, want one of %v", raw, c.Reason, reasons)
		return
	}
	if f, err := w.read(patience); err == nil || !over(err) { // [MQTT-3.2.2-7]
		s.Errorf("% x: after CONNACK %v: %v, %v", raw, c.Reason, f, err)
	}
}

// end reads whatever comes until the connection is closed.
func (w *wire) end() {
	_ = w.nc.SetReadDeadline(time.Now().Add(patience))
	_, _ = io.Copy(io.Discard, w.nc)
}
