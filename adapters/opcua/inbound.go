package opcua

import (
	"encoding/binary"
	"fmt"

	"github.com/gopcua/opcua/ua"
)

// inbound puts chunks together.
type inbound struct {
	*channel
	last    uint32 // sequence number
	started bool
	parts   map[uint32][]byte // of the messages that are not complete, by their request
}

func (in *inbound) take(f frame) error {
	if f.kind == "ERR" {
		return serverError(f)
	}
	if f.kind == "CLO" {
		return errClosed
	}
	plain, err := in.unseal(f)
	if err != nil {
		return err
	}
	if len(plain) < 8 {
		return errShort
	}
	seq, id := binary.LittleEndian.Uint32(plain), binary.LittleEndian.Uint32(plain[4:])
	body := plain[8:]
	if in.sec.on() { // what was recorded is not taken again. OPC UA Part 6 §6.7.2.4
		if in.started && seq != in.last+1 && !(in.last >= 1<<32-1024 && seq < 1024) {
			return fmt.Errorf("chunk %d came behind chunk %d", seq, in.last)
		}
		in.last, in.started = seq, true
	}
	switch f.part {
	case 'A':
		delete(in.parts, id)
		if len(body) < 4 {
			return errShort
		}
		in.deliver(answer{id: id, err: statusError{ua.StatusCode(binary.LittleEndian.Uint32(body))}})
		return nil
	case 'C':
		if len(in.parts) >= maxPending && in.parts[id] == nil || len(in.parts[id])+len(body) > maxMessage {
			return fmt.Errorf("a message of more than %d bytes came", maxMessage)
		}
		in.parts[id] = append(in.parts[id], body...)
		return nil
	}
	if begun, ok := in.parts[id]; ok {
		delete(in.parts, id)
		body = append(begun, body...)
	}
	if len(body) > maxMessage {
		return fmt.Errorf("a message of more than %d bytes came", maxMessage)
	}
	res, err := decodeResponse(body)
	if err != nil {
		return err
	}
	if o, ok := res.(*ua.OpenSecureChannelResponse); ok {
		if f.kind != "OPN" {
			return errForged
		}
		if o.ResponseHeader.ServiceResult == ua.StatusOK {
			if err := in.opened(o); err != nil {
				return err
			}
		}
	} else if f.kind == "OPN" && in.sec.on() && res.Header().ServiceResult == ua.StatusOK {
		return errForged
	}
	a := answer{id: id, res: res}
	if s := res.Header().ServiceResult; isBad(s) {
		a.res, a.err = nil, statusError{s}
	}
	in.deliver(a)
	return nil
}

// decodeResponse decodes the message of a server.
func decodeResponse(b []byte) (ua.Response, error) {
	if err := wellFormed(b); err != nil {
		return nil, fmt.Errorf("cannot decode what came: %w", err)
	}
	_, v, err := ua.DecodeService(b)
	if err != nil {
		return nil, fmt.Errorf("cannot decode what came: %w", err)
	}
	res, ok := v.(ua.Response)
	if !ok {
		return nil, fmt.Errorf("cannot decode what came: %T is no answer", v)
	}
	if res.Header() == nil {
		return nil, fmt.Errorf("cannot decode what came: %T has no header", v)
	}
	return res, nil
}
