package modbus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Client asks devices what a person wants to know, with no poller beside it.
// It is for one goroutine.
type Client struct {
	link *Link
}

// Dial connects. The devices of the configuration are those that Read and Write
// know; there may be none.
func Dial(ctx context.Context, c Config) (*Client, error) {
	l, err := New(c)
	if err != nil {
		return nil, err
	}
	// A modem that is to dial in may take a while.
	for {
		if err = l.bus.Open(ctx); !errors.Is(err, errNobody) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		l.bus.wire.end()
		return nil, err
	}
	return &Client{l}, nil
}

// Close closes the connection.
func (c *Client) Close() error {
	defer c.link.bus.wire.end()
	return c.link.bus.wire.close()
}

// again connects anew where an error has cost the connection.
func (c *Client) again(ctx context.Context, reopen bool) {
	if reopen {
		_ = c.link.bus.wire.close()
		_ = c.link.bus.wire.open(ctx) // the next request finds out
	}
}

// Read returns what points of a device hold; no names are all of them. Samples
// that are not good are among them, and an error names the first.
func (c *Client) Read(ctx context.Context, device string, points []string) ([]adapters.Sample, error) {
	d, err := c.link.device(device)
	if err != nil {
		return nil, err
	}
	asked, err := d.named(points)
	if err != nil {
		return nil, err
	}
	samples, reopen, err := c.link.bus.readNow(ctx, d, asked)
	c.again(ctx, reopen)
	return samples, err
}

// Write is that of a link, but waits for the end of pulses.
func (c *Client) Write(ctx context.Context, device string, values []adapters.Assignment) ([]adapters.Sample, error) {
	d, err := c.link.device(device)
	if err != nil {
		return nil, err
	}
	all, err := d.check(values)
	if err != nil {
		return nil, err
	}
	samples, pulses, reopen, err := c.link.bus.write(ctx, d, all)
	c.again(ctx, reopen)
	began := time.Now()
	for _, p := range pulses {
		wait(ctx, p.after-time.Since(began)) // if ctx ends it ends sooner
		again, perr := p.send(context.WithoutCancel(ctx))
		c.again(context.WithoutCancel(ctx), again)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("the pulse was begun and could not be ended: %w", perr))
		}
	}
	return samples, err
}

// Registers returns what registers hold, two bytes each.
func (c *Client) Registers(ctx context.Context, unit uint8, t Table, start, count uint16) ([]byte, error) {
	b, err := c.link.bus.wire.readRegisters(unit, t, start, count)
	c.again(ctx, err != nil && c.link.bus.wire.spent(err))
	return b, err
}

// Bits returns what coils or discrete inputs hold.
func (c *Client) Bits(ctx context.Context, unit uint8, t Table, start, count uint16) ([]bool, error) {
	on, err := c.link.bus.wire.readBits(unit, t, start, count)
	c.again(ctx, err != nil && c.link.bus.wire.spent(err))
	return on, err
}

// Exception returns the code of a device's exception, and 0 for any other error:
// then the device did not answer.
func Exception(err error) int {
	switch code := exceptionOf(err); code {
	case gatewayPath, gatewayTarget:
		return 0 // it is the gateway's, and the device did not answer
	default:
		return code
	}
}

// Identity is what a device says of itself. Modbus Application Protocol 1.1b3
// §6.21, table of object ids.
type Identity struct {
	Vendor   string `json:"vendor,omitempty"`
	Product  string `json:"product,omitempty"`
	Revision string `json:"revision,omitempty"`
	Name     string `json:"name,omitempty"`
	Model    string `json:"model,omitempty"`
}

// Identify asks a device what it is, with function 43/14. An error that is an
// Exception says that it does not tell.
func (c *Client) Identify(ctx context.Context, unit uint8) (id Identity, err error) {
	const regular, basic = 2, 1
	code := byte(regular)
	next := byte(0)
	for range 32 { // answers; each of them brings an object
		pdu := []byte{fnEncapsulated, 14, code, next}
		answer, err := c.link.bus.wire.exchange(unit, pdu)
		if exceptionOf(err) == illegalValue && code == regular {
			code = basic
			continue
		}
		if err != nil {
			c.again(ctx, c.link.bus.wire.spent(err))
			return id, err
		}
		more, at, err := id.take(answer)
		if err != nil || !more || at <= next {
			return id, err
		}
		next = at
	}
	return id, nil
}

var errIdentity = errors.New("what the device says of itself cannot be read")

// take reads the objects of an answer, and returns where those go on that found no
// room in it.
func (id *Identity) take(answer []byte) (more bool, next byte, err error) {
	const head = 7
	if len(answer) < head {
		return false, 0, errIdentity
	}
	b := answer[head:]
	for range answer[head-1] {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return false, 0, errIdentity
		}
		v := printable(b[2 : 2+b[1]])
		switch b[0] {
		case 0:
			id.Vendor = v
		case 1:
			id.Product = v
		case 2:
			id.Revision = v
		case 4:
			id.Name = v
		case 5:
			id.Model = v
		}
		b = b[2+int(b[1]):]
	}
	return answer[4] == 0xFF, answer[5], nil
}

// printable is the text in b, without what a terminal would obey.
func printable(b []byte) string {
	out := make([]byte, 0, len(b))
	for _, c := range b {
		if c >= ' ' && c < 0x7F {
			out = append(out, c)
		}
	}
	return string(out)
}
