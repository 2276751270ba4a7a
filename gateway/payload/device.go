package payload

import "encoding/json"

// DeviceInfo is what a call of getConfig is answered: what the site file says of a
// device that matters to who reads or commands it.
type DeviceInfo struct {
	Device  string            `json:"device"`
	Type    string            `json:"type,omitempty"`
	Zone    string            `json:"zone,omitempty"`
	Profile string            `json:"profile,omitempty"`
	Tags    map[string]string `json:"tags,omitempty"`
	Points  []PointInfo       `json:"points"`
	Actions []string          `json:"actions,omitempty"`
}

// PointInfo is the part of a point.
type PointInfo struct {
	Name  string           `json:"name"`
	As    string           `json:"as,omitempty"`
	Unit  string           `json:"unit,omitempty"`
	Every int64            `json:"everyMs"`
	Enum  map[int64]string `json:"enum,omitempty"`
	Bits  []string         `json:"bits,omitempty"`
	Write *WriteInfo       `json:"write,omitempty"` // there if a command may write it
}

// WriteInfo are the limits of what a command may write.
type WriteInfo struct {
	Min    *float64  `json:"min,omitempty"`
	Max    *float64  `json:"max,omitempty"`
	Values []float64 `json:"values,omitempty"`
	Pulse  int64     `json:"pulseMs,omitempty"`
}

// DeviceConfig is the info as JSON.
func DeviceConfig(i *DeviceInfo) []byte {
	text, err := json.Marshal(i)
	if err != nil { // nothing in it can be what JSON has no form for: limits are finite
		return []byte("null")
	}
	return text
}
