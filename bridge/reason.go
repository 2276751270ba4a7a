package bridge

import (
	"fmt"
	"strings"
)

// ReasonError is an MQTT 5 reason code (§2.4) with which the upstream refused or
// ended a connection.
type ReasonError struct {
	Packet string // CONNACK or DISCONNECT
	Code   byte
	Reason string // the upstream's own words, "" if it gave none
	Server string // the Server Reference with 0x9C and 0x9D, "" if there is none (MQTT 5 §4.11)
}

func (e *ReasonError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "upstream answered %s 0x%02X", e.Packet, e.Code)
	r := reasons[e.Code]
	if r.text != "" {
		s.WriteString(": " + r.text)
	}
	if e.Reason != "" {
		fmt.Fprintf(&s, " (%q)", e.Reason)
	}
	if r.hint != "" {
		s.WriteString("; " + r.hint)
	}
	return s.String()
}

// The reason codes the bridge acts on.
const (
	codeRefused        = 0x80 // this and above: not done
	codeImplementation = 0x83
	codeTakenOver      = 0x8E
	codeIDInUse        = 0x91
	codeIDNotFound     = 0x92
	codePacketTooLarge = 0x95
	codeQuotaExceeded  = 0x97
	codeRetain         = 0x9A
	codeQoS            = 0x9B
	codeUseAnother     = 0x9C
	codeMoved          = 0x9D
)

// reasons says what a code means and what to check.
var reasons = map[byte]struct{ text, hint string }{
	0x00: {"normal disconnection", ""},
	0x80: {"unspecified error", "the upstream's log may say more"},
	0x81: {"malformed packet", ""},
	0x82: {"protocol error", ""},
	0x83: {"implementation specific error", "the upstream's log may say more"},
	0x84: {"protocol version not supported", "the upstream must speak MQTT 5"},
	0x85: {"client identifier not valid", "check client_id"},
	0x86: {"bad user name or password", "check username and password"},
	0x87: {"not authorised", "check username and password, and the upstream's access rules for this client_id"},
	0x88: {"server unavailable", ""},
	0x89: {"server busy", ""},
	0x8A: {"banned", "the upstream's administrator has banned this client"},
	0x8B: {"server shutting down", ""},
	0x8C: {"bad authentication method", ""},
	0x8D: {"keep alive timeout", "the link is slower than keepalive allows"},
	0x8E: {"session taken over", "another client uses the same client_id: give each gateway its own"},
	0x90: {"topic name invalid", "check the bridge's topic"},
	0x91: {"packet identifier in use", ""},
	0x93: {"receive maximum exceeded", ""},
	0x94: {"topic alias invalid", ""},
	0x95: {"packet too large", ""},
	0x96: {"message rate too high", "set limit to what the upstream allows"},
	0x97: {"quota exceeded", "set limit to what the upstream allows"},
	0x98: {"administrative action", ""},
	0x99: {"payload format invalid", ""},
	0x9A: {"retain not supported", ""},
	0x9B: {"QoS not supported", ""},
	0x9C: {"use another server", ""},
	0x9D: {"server moved", "change upstream"},
	0x9F: {"connection rate exceeded", ""},
	0xA0: {"maximum connect time", ""},
}

// refusal words why a message was refused, for its place among the parked.
func refusal(code byte, reason string) string {
	s := fmt.Sprintf("upstream refused it with 0x%02X", code)
	if text := reasons[code].text; text != "" {
		s += " " + text
	}
	if reason != "" {
		s += ": " + reason
	}
	return s
}
