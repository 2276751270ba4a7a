package simulate

import (
	"encoding/binary"
	"maps"
	"slices"
)

// Functions. Modbus Application Protocol 1.1b3 §6.
const (
	fnWriteCoil      = 5
	fnWriteRegister  = 6
	fnWriteCoils     = 15
	fnWriteRegisters = 16
	fnMaskWrite      = 22
	fnReadWrite      = 23
	fnEncapsulated   = 43
)

// serve appends what a function returns, or reports an exception.
func (u *Unit) serve(dst, pdu []byte) ([]byte, byte) {
	switch pdu[0] {
	case byte(Coil), byte(Discrete), byte(Holding), byte(Input):
		return u.serveRead(dst, pdu)
	case fnWriteCoil, fnWriteRegister:
		return u.serveSingle(dst, pdu)
	case fnWriteCoils, fnWriteRegisters:
		return u.serveMultiple(dst, pdu)
	case fnMaskWrite:
		return u.serveMask(dst, pdu)
	case fnReadWrite:
		return u.serveReadWrite(dst, pdu)
	case fnEncapsulated:
		return u.serveIdentity(dst, pdu)
	}
	return dst, illegalFunction
}

func (u *Unit) serveRead(dst, pdu []byte) ([]byte, byte) {
	table, limit := Table(pdu[0]), 125
	if table == Coil || table == Discrete {
		limit = 2000
	}
	if len(pdu) != 5 {
		return dst, illegalValue
	}
	start, count := int(binary.BigEndian.Uint16(pdu[1:])), int(binary.BigEndian.Uint16(pdu[3:]))
	if count < 1 || count > limit {
		return dst, illegalValue
	}
	dst, ok := u.read(dst, table, start, count)
	if !ok {
		return dst, illegalAddress
	}
	return dst, 0
}

func (u *Unit) serveSingle(dst, pdu []byte) ([]byte, byte) {
	if len(pdu) != 5 {
		return dst, illegalValue
	}
	at, w, t := int(binary.BigEndian.Uint16(pdu[1:])), binary.BigEndian.Uint16(pdu[3:]), Holding
	if pdu[0] == fnWriteCoil {
		if w != 0 && w != 0xFF00 {
			return dst, illegalValue
		}
		t, w = Coil, w&1|w>>15
	}
	if !u.write(t, at, w) {
		return dst, illegalAddress
	}
	return append(dst, pdu[1:]...), 0
}

func (u *Unit) serveMultiple(dst, pdu []byte) ([]byte, byte) {
	if len(pdu) < 6 {
		return dst, illegalValue
	}
	at, count, body := int(binary.BigEndian.Uint16(pdu[1:])), int(binary.BigEndian.Uint16(pdu[3:])), pdu[6:]
	words := make([]uint16, count)
	t, limit, size := Holding, 123, 2*count
	if pdu[0] == fnWriteCoils {
		t, limit, size = Coil, 1968, (count+7)/8
	}
	if count < 1 || count > limit || int(pdu[5]) != size || len(body) != size {
		return dst, illegalValue
	}
	for i := range words {
		if t == Coil {
			words[i] = uint16(body[i/8] >> (i % 8) & 1)
		} else {
			words[i] = binary.BigEndian.Uint16(body[2*i:])
		}
	}
	if !u.write(t, at, words...) {
		return dst, illegalAddress
	}
	return append(dst, pdu[1:5]...), 0
}

// serveMask changes the bits of a register that the first mask has not: §6.16.
func (u *Unit) serveMask(dst, pdu []byte) ([]byte, byte) {
	if len(pdu) != 7 {
		return dst, illegalValue
	}
	at, and, or := binary.BigEndian.Uint16(pdu[1:]), binary.BigEndian.Uint16(pdu[3:]), binary.BigEndian.Uint16(pdu[5:])
	w, ok := u.Word(Holding, at)
	if !ok {
		return dst, illegalAddress
	}
	u.write(Holding, int(at), w&and|or&^and)
	return append(dst, pdu[1:]...), 0
}

// serveReadWrite writes registers and then reads others: §6.17.
func (u *Unit) serveReadWrite(dst, pdu []byte) ([]byte, byte) {
	if len(pdu) < 10 {
		return dst, illegalValue
	}
	from, count := int(binary.BigEndian.Uint16(pdu[1:])), int(binary.BigEndian.Uint16(pdu[3:]))
	at, written := int(binary.BigEndian.Uint16(pdu[5:])), int(binary.BigEndian.Uint16(pdu[7:]))
	if count < 1 || count > 125 || written < 1 || written > 121 || int(pdu[9]) != 2*written || len(pdu) != 10+2*written {
		return dst, illegalValue
	}
	words := make([]uint16, written)
	for i := range words {
		words[i] = binary.BigEndian.Uint16(pdu[10+2*i:])
	}
	if !u.write(Holding, at, words...) {
		return dst, illegalAddress
	}
	dst, ok := u.read(dst, Holding, from, count)
	if !ok {
		return dst, illegalAddress
	}
	return dst, 0
}

// Identify gives the unit what it says of itself, by object: 0 the vendor, 1 the
// product, 2 the revision. Modbus Application Protocol 1.1b3 §6.21.
func (u *Unit) Identify(objects map[byte]string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.identity = maps.Clone(objects)
}

// serveIdentity returns objects of the identity, as many as one answer holds.
func (u *Unit) serveIdentity(dst, pdu []byte) ([]byte, byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	const room = 253 - 7
	switch {
	case len(pdu) != 4 || pdu[1] != 14 || u.identity == nil:
		return dst, illegalFunction
	case pdu[2] < 1 || pdu[2] > 4:
		return dst, illegalValue
	}
	last := [...]byte{1: 2, 2: 127, 3: 255, 4: 255}[pdu[2]]
	dst = append(dst, 14, pdu[2], 0x83, 0, 0, 0)
	head := dst[len(dst)-6:]
	used := 0
	for _, id := range slices.Sorted(maps.Keys(u.identity)) {
		v := u.identity[id]
		switch {
		case id < pdu[3] || id > last || pdu[2] == 4 && id != pdu[3]:
			continue
		case used+2+len(v) > room:
			head[3], head[4] = 0xFF, id
			return dst, 0
		}
		used += 2 + len(v)
		dst = append(append(dst, id, byte(len(v))), v...)
		head = dst[len(dst)-used-6:]
		head[5]++
	}
	if head[5] == 0 {
		return dst, illegalAddress
	}
	return dst, 0
}

// Word returns what a register or bit holds, and whether it is defined.
func (u *Unit) Word(t Table, address uint16) (uint16, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.tables[t].get(int(address))
}

// write changes words that are defined. It reports false, and changes none, if
// one of them is not.
func (u *Unit) write(t Table, at int, words ...uint16) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range words {
		if _, ok := u.tables[t].get(at + i); !ok {
			return false
		}
	}
	for i, w := range words {
		u.tables[t].set(at+i, w)
	}
	return true
}
