package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
)

// ErrHandOver as the cause for which Run's context ends says that another Bridge goes on
// with the session, so that the upstream is not told that the gateway stops. ErrEnd says
// that none ever will, so that the upstream is told to forget the session.
var (
	ErrHandOver = errors.New("the session is handed over")
	ErrEnd      = errors.New("the session ends for good")
)

// Empty reports whether nothing is stored for a destination.
func (o Outboxes) Empty() bool {
	for _, b := range o {
		if b.Stored() > 0 {
			return false
		}
	}
	return true
}

// HandOver lets the Bridge of other outboxes, which are new, go on with a session. The
// outboxes that have it must be empty, and no Bridge may run on either. Nothing of theirs
// is under way then, so no packet id of the session means anything any more.
func HandOver(from, to Outboxes) error {
	if !from.Empty() {
		return errors.New("hand over: not all that is stored is delivered")
	}
	// That it is must not be forgotten in a crash: the ids will mean other copies.
	if err := from[0].Flush(from[1:]...); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	note, err := from[0].Note()
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	var s session
	if note == "" || json.Unmarshal([]byte(note), &s) != nil {
		return nil // there is none that is known
	}
	s.Unsure, s.Lost = false, [len(Outboxes{})]uint64{}
	text, err := json.Marshal(s)
	if err == nil {
		err = to[0].SetNote(string(text), to[:]...)
	}
	if err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

// HasSession reports whether a Bridge of these outboxes has had a session.
func (o Outboxes) HasSession() (bool, error) {
	note, err := o[0].Note()
	return note != "", err
}
