package buffer

// Class orders delivery and loss: a lower one is delivered first and dropped
// last. Each is a log of its own.
type Class uint8

// The classes. Local is for what only sessions of the local broker need.
const (
	Alert Class = iota
	Command
	Status
	Telemetry
	Local
	NumClasses
)

var classNames = [NumClasses]string{"alert", "command", "status", "telemetry", "local"}

func (c Class) String() string {
	if c < NumClasses {
		return classNames[c]
	}
	return "unknown"
}

// ParseClass is the inverse of String.
func ParseClass(s string) (Class, bool) {
	for c, name := range classNames {
		if s == name {
			return Class(c), true
		}
	}
	return 0, false
}
