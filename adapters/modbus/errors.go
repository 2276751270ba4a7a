package modbus

import (
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"

	"github.com/simonvetter/modbus"

	"github.com/fieldferry/fieldferry/adapters"
	"github.com/fieldferry/fieldferry/adapters/serial/port"
)

// Exceptions. Modbus Application Protocol 1.1b3 §7.
const (
	illegalAddress = 2
	illegalValue   = 3 // some devices' answer to a request that is too long
	gatewayPath    = 10
	gatewayTarget  = 11
)

// exception returns the code of a device's exception, or 0 for any other error.
func exception(err error) int {
	if e, ok := err.(exceptionError); ok {
		return int(e)
	}
	switch err {
	case modbus.ErrIllegalFunction:
		return 1
	case modbus.ErrIllegalDataAddress:
		return illegalAddress
	case modbus.ErrIllegalDataValue:
		return illegalValue
	case modbus.ErrServerDeviceFailure:
		return 4
	case modbus.ErrAcknowledge:
		return 5
	case modbus.ErrServerDeviceBusy:
		return 6
	case modbus.ErrMemoryParityError:
		return 8
	case modbus.ErrGWPathUnavailable:
		return gatewayPath
	case modbus.ErrGWTargetFailedToRespond:
		return gatewayTarget
	}
	// The library has no words for the others.
	if code, ok := strings.CutPrefix(err.Error(), "unknown exception code ("); ok {
		n, _ := strconv.Atoi(strings.TrimSuffix(code, ")"))
		return n
	}
	return 0
}

func exceptionReason(code int) string { return "exception-" + strconv.Itoa(code) }

// reasonOf returns why there was no answer.
func reasonOf(err error) string {
	var network *net.OpError
	switch {
	case errors.Is(err, modbus.ErrRequestTimedOut):
		return adapters.ReasonTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE), errors.As(err, &network), errors.Is(err, port.ErrGone):
		return adapters.ReasonConnection
	default:
		return adapters.ReasonProtocol
	}
}
