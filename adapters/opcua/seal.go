package opcua

import (
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// write encodes and sends a request.
func (c *channel) write(req ua.Request, id uint32) error {
	body, err := encodeService(req)
	if err != nil {
		return fmt.Errorf("cannot encode %T: %w", req, err)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(c.timeout))
	if err := c.writeChunks(req, id, body); err != nil {
		err = timeoutOr(err)
		c.fail(err)
		return err
	}
	return nil
}

func encodeService(req any) (b []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	id := ua.ServiceTypeID(req)
	b = binary.LittleEndian.AppendUint16([]byte{1, 0}, id)
	body, err := ua.Encode(req)
	return append(b, body...), err
}

func (c *channel) writeChunks(req ua.Request, id uint32, body []byte) error {
	c.mu.Lock()
	channelID, k := c.id, c.current
	c.mu.Unlock()
	if _, ok := req.(*ua.OpenSecureChannelRequest); ok {
		head := binary.LittleEndian.AppendUint32([]byte("OPNF\x00\x00\x00\x00"), channelID)
		head = appendText(head, c.sec.policy)
		if c.sec.on() {
			thumb := sha1.Sum(c.sec.server) // OPC UA Part 6 §6.7.2.3
			head = appendBytes(appendBytes(head, c.sec.cert), thumb[:])
		} else {
			head = appendBytes(appendBytes(head, nil), nil)
		}
		return c.writeChunk(head, id, body, c.asym, c.sec.on())
	}
	if k == nil {
		return errClosed
	}
	kind := "MSG"
	if _, ok := req.(*ua.CloseSecureChannelRequest); ok {
		kind = "CLO"
	}
	room := c.chunk - headerSize - 8 - 8
	if k.algo != nil {
		room -= k.algo.SignatureLength() + 2*k.algo.BlockSize()
	}
	for first := true; first || len(body) > 0; first = false {
		part := body[:min(room, len(body))]
		body = body[len(part):]
		last := byte('F')
		if len(body) > 0 {
			last = 'C'
		}
		head := append([]byte(kind), last, 0, 0, 0, 0)
		head = binary.LittleEndian.AppendUint32(head, channelID)
		head = binary.LittleEndian.AppendUint32(head, k.token)
		if err := c.writeChunk(head, id, part, k.algo, c.sec.mode == ua.MessageSecurityModeSignAndEncrypt); err != nil {
			return err
		}
	}
	return nil
}

// writeChunk signs, pads, encrypts and sends a chunk. OPC UA Part 6 §6.7.2.
func (c *channel) writeChunk(head []byte, id uint32, body []byte, algo *uapolicy.EncryptionAlgorithm, encrypt bool) error {
	c.lastOut++
	if c.lastOut > 1<<32-1024 { // OPC UA Part 6 §6.7.2.4
		c.lastOut = 1
	}
	b := binary.LittleEndian.AppendUint32(head, c.lastOut)
	b = binary.LittleEndian.AppendUint32(b, id)
	b = append(b, body...)
	at := len(head)
	if algo == nil {
		binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
		_, err := c.conn.Write(b)
		return err
	}
	size := len(b) + algo.SignatureLength()
	if encrypt {
		block, sizes := algo.PlaintextBlockSize(), 1
		if algo.BlockSize() > 256 { // keys of more than 2048 bits
			sizes = 2
		}
		pad := (block - (len(b)-at+sizes+algo.SignatureLength())%block) % block
		for range pad + 1 {
			b = append(b, byte(pad))
		}
		if sizes == 2 {
			b = append(b, byte(pad>>8))
		}
		size = at + (len(b)-at+algo.SignatureLength())/block*algo.BlockSize()
	}
	binary.LittleEndian.PutUint32(b[4:], uint32(size))
	sig, err := algo.Signature(b)
	if err != nil {
		return err
	}
	b = append(b, sig...)
	if encrypt {
		sealed, err := algo.Encrypt(b[at:])
		if err != nil {
			return err
		}
		b = append(b[:at:at], sealed...)
	}
	_, err = c.conn.Write(b)
	return err
}

// unseal decrypts and verifies a chunk, and returns what is from its sequence
// number on.
func (c *channel) unseal(f frame) ([]byte, error) {
	if f.kind == "OPN" {
		return c.unsealOpen(f)
	}
	const at = headerSize + 8 // channel, token
	if len(f.b) < at {
		return nil, errShort
	}
	id, token := binary.LittleEndian.Uint32(f.b[headerSize:]), binary.LittleEndian.Uint32(f.b[headerSize+4:])
	c.mu.Lock()
	var k *keys
	for _, of := range c.known {
		if of.token == token {
			k = of
		}
	}
	known := c.id == id
	c.mu.Unlock()
	switch {
	case k == nil || !known:
		return nil, errors.New("what came belongs to another channel")
	case k.algo == nil:
		return f.b[at:], nil
	}
	return unsealWith(k.algo, f.b, at, c.sec.mode == ua.MessageSecurityModeSignAndEncrypt, false)
}

// unsealOpen takes an answer to the opening. Whatever certificate it carries, only
// the one that we trust counts.
func (c *channel) unsealOpen(f frame) ([]byte, error) {
	w := walker{b: f.body()}
	if err := w.skip(4); err != nil {
		return nil, err
	}
	var fields [3][]byte // policy, certificate of the sender, thumbprint of ours
	for i := range fields {
		b := w.b
		if err := w.text(); err != nil {
			return nil, err
		}
		if n := len(b) - len(w.b); n > 4 {
			fields[i] = b[4:n]
		}
	}
	if string(fields[0]) != c.sec.policy {
		return nil, fmt.Errorf("the server answers with the security policy %.100q, not the one that was asked for", fields[0])
	}
	if !c.sec.on() {
		return w.b, nil
	}
	thumb := sha1.Sum(c.sec.cert)
	if string(firstCertificate(fields[1])) != string(c.sec.server) || string(fields[2]) != string(thumb[:]) {
		return nil, errForged
	}
	return unsealWith(c.asym, f.b, len(f.b)-len(w.b), true, c.sec.key.Size() > 256)
}

func unsealWith(algo *uapolicy.EncryptionAlgorithm, b []byte, at int, encrypted, wide bool) ([]byte, error) {
	if encrypted {
		plain, err := algo.Decrypt(b[at:])
		if err != nil {
			return nil, errForged
		}
		b = append(b[:at:at], plain...)
	}
	end := len(b) - algo.RemoteSignatureLength()
	if end < at {
		return nil, errForged
	}
	if err := algo.VerifySignature(b[:end], b[end:]); err != nil {
		return nil, errForged
	}
	b = b[at:end]
	if !encrypted {
		return b, nil
	}
	sizes := 1
	if wide {
		sizes = 2
	}
	if len(b) < sizes {
		return nil, errShort
	}
	pad := int(b[len(b)-sizes])
	if wide {
		pad |= int(b[len(b)-1]) << 8
	}
	if pad+sizes > len(b) {
		return nil, errShort
	}
	return b[:len(b)-sizes-pad], nil
}
