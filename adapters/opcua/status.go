package opcua

import (
	"fmt"
	"strings"

	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// The severity of a status, its two highest bits. OPC UA Part 4 §7.39.1.
const (
	severityMask = 0xC0000000
	uncertainBit = 0x40000000
	badBit       = 0x80000000
)

// codeMask leaves out the bits that say more about a value than its status.
const codeMask = 0xFFFF0000

// overflow says that values before this one were lost in the server's queue: the
// info type is a data value's, and the bit overflow is set. OPC UA Part 4 §7.39.1.
const overflow = 0x0480

func isBad(s ua.StatusCode) bool { return s&badBit != 0 }

func qualityOf(s ua.StatusCode) adapters.Quality {
	switch s & severityMask {
	case 0:
		return adapters.Good
	case uncertainBit:
		return adapters.Uncertain
	}
	return adapters.Bad
}

// abbreviations are words that the standard writes otherwise than the library.
var abbreviations = strings.NewReplacer("ID", "Id", "URI", "Uri", "URL", "Url", "TCP", "Tcp", "GUID", "Guid")

// statusName is the name that the standard gives a status, as BadNodeIdUnknown. OPC
// UA Part 4 §7.39.2.
func statusName(s ua.StatusCode) string {
	d, ok := ua.StatusCodes[s&codeMask]
	if !ok {
		return fmt.Sprintf("%s-0x%08X", qualityOf(s), uint32(s))
	}
	return abbreviations.Replace(strings.TrimPrefix(d.Name, "Status"))
}

// statusError is a status that a server answered.
type statusError struct{ status ua.StatusCode }

func (e statusError) Error() string { return statusName(e.status) }

func (e statusError) Is(target error) bool {
	t, ok := target.(statusError)
	return ok && t.status&codeMask == e.status&codeMask
}
