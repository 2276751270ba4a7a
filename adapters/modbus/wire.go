package modbus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/simonvetter/modbus"
)

// Functions. Modbus Application Protocol 1.1b3 §6.
const (
	fnReadCoils      = 1
	fnReadDiscrete   = 2
	fnReadHolding    = 3
	fnReadInput      = 4
	fnWriteCoil      = 5
	fnWriteRegister  = 6
	fnWriteCoils     = 15
	fnWriteRegisters = 16
	fnMaskWrite      = 22
	fnReadWrite      = 23
	fnEncapsulated   = 43
)

// The most that one request can write. Modbus Application Protocol 1.1b3 §6.11,
// §6.12, §6.17.
const (
	maxWriteBits      = 1968
	maxWriteRegisters = 123
	maxReadWrite      = 121
)

// A wire is one connection, on which one request is under way at a time. An
// answer is that of its request, or there is an error. Its methods are called
// from one goroutine.
type wire interface {
	open(ctx context.Context) error
	close() error
	// end releases what outlives a connection.
	end()
	// readBits asks for coils or discrete inputs.
	readBits(unit uint8, t Table, start, count uint16) ([]bool, error)
	// readRegisters asks for holding or input registers, two bytes each.
	readRegisters(unit uint8, t Table, start, count uint16) ([]byte, error)
	// exchange sends any request and returns the answer: PDUs both. It may keep
	// pdu.
	exchange(unit uint8, pdu []byte) ([]byte, error)
	// spent reports whether the connection is of no further use after an error.
	spent(err error) bool
}

// newWire returns the wire of a configuration. It does no I/O.
func newWire(c *Config) (wire, error) {
	switch c.Transport {
	case "", "tcp", "tcp+tls", "udp":
		return newNetwork(c)
	case "rtu", "rtuovertcp", "rtuoverudp", "rtuovertcp-listen":
		return newLine(c)
	}
	return nil, fmt.Errorf("there is no transport %q", c.Transport)
}

// exceptionError is a device's exception, where the library does not make one.
type exceptionError byte

func (e exceptionError) Error() string {
	if err := libraryException(byte(e)); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("unknown exception code (%d)", byte(e))
}

func libraryException(code byte) error {
	switch code {
	case 1:
		return modbus.ErrIllegalFunction
	case 2:
		return modbus.ErrIllegalDataAddress
	case 3:
		return modbus.ErrIllegalDataValue
	case 4:
		return modbus.ErrServerDeviceFailure
	case 5:
		return modbus.ErrAcknowledge
	case 6:
		return modbus.ErrServerDeviceBusy
	case 8:
		return modbus.ErrMemoryParityError
	case 10:
		return modbus.ErrGWPathUnavailable
	case 11:
		return modbus.ErrGWTargetFailedToRespond
	}
	return nil
}

var errAnswer = errors.New("the answer is not one to what was asked")

// readPDU is a request of functions 1 to 4.
func readPDU(t Table, start, count uint16) []byte {
	pdu := []byte{readFunction(t), 0, 0, 0, 0}
	binary.BigEndian.PutUint16(pdu[1:], start)
	binary.BigEndian.PutUint16(pdu[3:], count)
	return pdu
}

func readFunction(t Table) byte {
	return [...]byte{Holding: fnReadHolding, Input: fnReadInput, Coil: fnReadCoils, Discrete: fnReadDiscrete}[t]
}

// answerSize returns how long the answer to a request is; 0 if that is in the
// answer alone.
func answerSize(pdu []byte) int {
	switch pdu[0] {
	case fnReadCoils, fnReadDiscrete:
		return 2 + (int(binary.BigEndian.Uint16(pdu[3:]))+7)/8
	case fnReadHolding, fnReadInput, fnReadWrite:
		return 2 + 2*int(binary.BigEndian.Uint16(pdu[3:]))
	case fnWriteCoil, fnWriteRegister, fnWriteCoils, fnWriteRegisters:
		return 5
	case fnMaskWrite:
		return 7
	}
	return 0
}

// answers reports whether a PDU, no exception, is an answer to a request.
func answers(answer, pdu []byte) bool {
	if len(answer) < 2 || answer[0] != pdu[0] {
		return false
	}
	if n := answerSize(pdu); n != 0 && n != len(answer) {
		return false
	}
	switch pdu[0] {
	case fnReadCoils, fnReadDiscrete, fnReadHolding, fnReadInput, fnReadWrite:
		return int(answer[1]) == len(answer)-2
	case fnWriteCoil, fnWriteRegister, fnWriteCoils, fnWriteRegisters, fnMaskWrite:
		return slices.Equal(answer, pdu[:len(answer)])
	case fnEncapsulated:
		return len(answer) >= 7 && answer[1] == pdu[1]
	}
	return true
}

// takeAnswer checks a PDU that came for a request.
func takeAnswer(answer, pdu []byte) ([]byte, error) {
	if len(answer) == 2 && answer[0] == pdu[0]|0x80 && answer[1] != 0 {
		return nil, exceptionError(answer[1])
	}
	if !answers(answer, pdu) {
		return nil, errAnswer
	}
	return answer, nil
}

// unpackBits returns so many bits, the first in the lowest of the first byte.
func unpackBits(b []byte, count int) []bool {
	on := make([]bool, count)
	for i := range on {
		on[i] = b[i/8]>>(i%8)&1 != 0
	}
	return on
}
