package opcua

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/gopcua/opcua/id"
	"github.com/gopcua/opcua/ua"

	"github.com/fieldferry/fieldferry/adapters"
)

// A Client asks a server what a person wants to know. It subscribes to nothing.
type Client struct {
	link *Link
	s    *session
}

// Dial opens a session. The devices of the configuration are those that Read and
// Write know; there may be none.
func Dial(ctx context.Context, c Config) (*Client, error) {
	l, err := New(c)
	if err != nil {
		return nil, err
	}
	s, err := connectGuarded(ctx, &l.config, nil)
	if err != nil {
		return nil, err
	}
	return &Client{l, s}, nil
}

// Close ends the session.
func (c *Client) Close() error {
	c.s.close(closeTimeout)
	return nil
}

// Read returns what points of a device hold; no names are all of them. Samples that
// are not good are among them, and an error names the first.
func (c *Client) Read(ctx context.Context, device string, points []string) ([]adapters.Sample, error) {
	d, err := c.link.device(device)
	if err != nil {
		return nil, err
	}
	asked, err := d.named(points)
	if err != nil {
		return nil, err
	}
	return c.s.readNow(ctx, asked)
}

// Write is that of a link, but waits for the end of pulses.
func (c *Client) Write(ctx context.Context, device string, values []adapters.Assignment) ([]adapters.Sample, error) {
	d, err := c.link.device(device)
	if err != nil {
		return nil, err
	}
	points, err := d.check(values)
	if err != nil {
		return nil, err
	}
	samples, pulses, err := c.s.write(ctx, points, values)
	for _, p := range pulses {
		select {
		case <-ctx.Done(): // it ends sooner
		case <-time.After(time.Until(p.at)):
		}
		c.link.pulses = append(c.link.pulses, p)
		err = errors.Join(err, c.link.finishPulses(c.s))
	}
	return samples, err
}

// Browse returns the nodes below one, level by level, down to a depth; 0 is all. No
// node is the folder of all objects, and then the server's description of itself is
// left out.
func (c *Client) Browse(ctx context.Context, node string, depth int) ([]Node, error) {
	ref, err := parseNode(cmp.Or(node, "i=85")) // OPC UA Part 5 §8.2.2: Objects
	if err != nil {
		return nil, err
	}
	root, ok := ref.at(c.s.namespaces())
	if !ok {
		return nil, errNoNode
	}
	var without []*ua.NodeID
	if node == "" {
		without = append(without, ua.NewNumericNodeID(0, id.Server))
	}
	nodes, err := c.s.tree(ctx, root, depth, without)
	if err != nil || len(nodes) > 0 {
		return nodes, err
	}
	values, err := c.s.readAll(ctx, []*ua.ReadValueID{{NodeID: root, AttributeID: ua.AttributeIDNodeClass, DataEncoding: &ua.QualifiedName{}}})
	if err == nil && isBad(values[0].Status) {
		err = errNoNode
	}
	return nil, err
}
