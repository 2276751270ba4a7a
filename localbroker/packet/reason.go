package packet

import (
	"errors"
	"fmt"
)

// Reason is a reason code, MQTT 5 §2.4.
type Reason byte

// The reason codes of MQTT 5.
const (
	Success                Reason = 0x00 // also Normal disconnection, Granted QoS 0
	GrantedQoS1            Reason = 0x01
	GrantedQoS2            Reason = 0x02
	DisconnectWithWill     Reason = 0x04
	NoMatchingSubscribers  Reason = 0x10
	NoSubscriptionExisted  Reason = 0x11
	ContinueAuthentication Reason = 0x18
	Reauthenticate         Reason = 0x19

	Unspecified              Reason = 0x80
	Malformed                Reason = 0x81
	ProtocolError            Reason = 0x82
	ImplementationSpecific   Reason = 0x83
	UnsupportedVersion       Reason = 0x84
	ClientIDNotValid         Reason = 0x85
	BadUserNameOrPassword    Reason = 0x86
	NotAuthorized            Reason = 0x87
	ServerUnavailable        Reason = 0x88
	ServerBusy               Reason = 0x89
	Banned                   Reason = 0x8A
	ServerShuttingDown       Reason = 0x8B
	BadAuthenticationMethod  Reason = 0x8C
	KeepAliveTimeout         Reason = 0x8D
	SessionTakenOver         Reason = 0x8E
	TopicFilterInvalid       Reason = 0x8F
	TopicNameInvalid         Reason = 0x90
	PacketIDInUse            Reason = 0x91
	PacketIDNotFound         Reason = 0x92
	ReceiveMaximumExceeded   Reason = 0x93
	TopicAliasInvalid        Reason = 0x94
	PacketTooLarge           Reason = 0x95
	MessageRateTooHigh       Reason = 0x96
	QuotaExceeded            Reason = 0x97
	AdministrativeAction     Reason = 0x98
	PayloadFormatInvalid     Reason = 0x99
	RetainNotSupported       Reason = 0x9A
	QoSNotSupported          Reason = 0x9B
	UseAnotherServer         Reason = 0x9C
	ServerMoved              Reason = 0x9D
	SharedNotSupported       Reason = 0x9E
	ConnectionRateExceeded   Reason = 0x9F
	MaximumConnectTime       Reason = 0xA0
	SubscriptionIDsNotAvail  Reason = 0xA1
	WildcardsNotSupported    Reason = 0xA2
	lowestReasonOfAnError           = Unspecified
	lowestReasonWithoutAName        = WildcardsNotSupported + 1
)

// Failed reports whether r says that something went wrong.
func (r Reason) Failed() bool { return r >= lowestReasonOfAnError }

func (r Reason) String() string {
	switch r {
	case Success:
		return "success"
	case GrantedQoS1:
		return "granted QoS 1"
	case GrantedQoS2:
		return "granted QoS 2"
	case DisconnectWithWill:
		return "disconnect with will message"
	case NoMatchingSubscribers:
		return "no matching subscribers"
	case NoSubscriptionExisted:
		return "no subscription existed"
	case ContinueAuthentication:
		return "continue authentication"
	case Reauthenticate:
		return "re-authenticate"
	}
	if r >= lowestReasonOfAnError && r < lowestReasonWithoutAName {
		return [...]string{
			"unspecified error", "malformed packet", "protocol error", "implementation specific error", "unsupported protocol version",
			"client identifier not valid", "bad user name or password", "not authorized", "server unavailable", "server busy", "banned",
			"server shutting down", "bad authentication method", "keep alive timeout", "session taken over", "topic filter invalid",
			"topic name invalid", "packet identifier in use", "packet identifier not found", "receive maximum exceeded",
			"topic alias invalid", "packet too large", "message rate too high", "quota exceeded", "administrative action",
			"payload format invalid", "retain not supported", "QoS not supported", "use another server", "server moved",
			"shared subscriptions not supported", "connection rate exceeded", "maximum connect time",
			"subscription identifiers not supported", "wildcard subscriptions not supported",
		}[r-lowestReasonOfAnError]
	}
	return fmt.Sprintf("reason %#02x", byte(r))
}

// ReturnCode is what CONNACK of MQTT 3.1.1 says for r, §3.2.2.3.
func (r Reason) ReturnCode() Reason {
	switch r {
	case Success:
		return 0
	case UnsupportedVersion:
		return 1
	case ClientIDNotValid:
		return 2
	case BadUserNameOrPassword:
		return 4
	case NotAuthorized, Banned:
		return 5
	}
	return 3
}

// Error is a packet that must not be accepted, and why.
type Error struct {
	Reason Reason
	Text   string
}

func (e *Error) Error() string { return e.Reason.String() + ": " + e.Text }

// ReasonOf is the reason code that err carries; Unspecified if it has none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Unspecified
}

// Errorf makes an error with a reason code.
func Errorf(r Reason, format string, args ...any) error {
	return &Error{Reason: r, Text: fmt.Sprintf(format, args...)}
}

func malformed(format string, args ...any) error { return Errorf(Malformed, format, args...) }

func protocolError(format string, args ...any) error { return Errorf(ProtocolError, format, args...) }

// allowed reports whether a packet of type t may carry r, MQTT 5 §2.4.
func (r Reason) allowed(t Type) bool {
	switch t {
	case CONNACK:
		return r == Success || r >= Unspecified && r <= BadAuthenticationMethod && r != ServerShuttingDown ||
			r == TopicNameInvalid || r == PacketTooLarge || r == QuotaExceeded || r >= PayloadFormatInvalid && r <= ServerMoved || r == ConnectionRateExceeded
	case PUBACK, PUBREC:
		switch r {
		case Success, NoMatchingSubscribers, Unspecified, ImplementationSpecific, NotAuthorized, TopicNameInvalid, PacketIDInUse, QuotaExceeded, PayloadFormatInvalid:
			return true
		}
	case PUBREL, PUBCOMP:
		return r == Success || r == PacketIDNotFound
	case SUBACK:
		switch r {
		case Success, GrantedQoS1, GrantedQoS2, Unspecified, ImplementationSpecific, NotAuthorized, TopicFilterInvalid, PacketIDInUse, QuotaExceeded,
			SharedNotSupported, SubscriptionIDsNotAvail, WildcardsNotSupported:
			return true
		}
	case UNSUBACK:
		switch r {
		case Success, NoSubscriptionExisted, Unspecified, ImplementationSpecific, NotAuthorized, TopicFilterInvalid, PacketIDInUse:
			return true
		}
	case DISCONNECT:
		switch r {
		case Success, DisconnectWithWill, NotAuthorized, ServerBusy, ServerShuttingDown, BadAuthenticationMethod:
			return true
		case PacketIDInUse, PacketIDNotFound:
			return false
		}
		return r >= Unspecified && r <= ImplementationSpecific || r >= KeepAliveTimeout && r <= WildcardsNotSupported
	case AUTH:
		return r == Success || r == ContinueAuthentication || r == Reauthenticate
	}
	return false
}
