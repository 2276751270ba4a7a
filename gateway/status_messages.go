package gateway

import (
	"encoding/hex"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// MessageCounts are those of the messages of a device, as [adapters.Frames].
type MessageCounts struct {
	Device   string     `json:"device"`
	Good     uint64     `json:"good"`
	Other    uint64     `json:"other"`
	Wrong    uint64     `json:"wrongCheck"`
	TooLong  uint64     `json:"tooLong"`
	Cut      uint64     `json:"cut"`
	LastHex  string     `json:"lastHex,omitempty"` // the last bytes of the last that was not good
	LastWhat string     `json:"lastWhat,omitempty"`
	LastTime *time.Time `json:"lastTime,omitempty"`
}

func messageCounts(all []adapters.Frames) []MessageCounts {
	counts := make([]MessageCounts, len(all))
	for i := range all {
		f := &all[i]
		counts[i] = MessageCounts{f.Device, f.Good, f.Other, f.Wrong, f.TooLong, f.Cut, hex.EncodeToString(f.Last), f.LastWhat, known(f.LastTime)}
	}
	return counts
}
