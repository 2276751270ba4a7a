package opcua

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/gopcua/opcua/ua"
	"github.com/gopcua/opcua/uapolicy"
)

// Errors of a channel.
var (
	errNoAnswer = errors.New("the server does not answer in time")
	errClosed   = errors.New("the connection is closed")
	errForged   = errors.New("what came is not signed by the server that we trust")
)

// channelLife is for how long keys are asked for. OPC UA Part 4 §5.6.2.
const (
	channelLife = time.Hour
	minLife     = 100 * time.Millisecond // less is a mistake of the server
)

// security is how a channel is secured.
type security struct {
	policy string // URI
	mode   ua.MessageSecurityMode
	life   time.Duration // of keys; 0 is channelLife

	// Not of the policy None.
	cert      []byte // ours, DER
	key       *rsa.PrivateKey
	server    []byte // the certificate of the server, DER, which we trust
	serverKey *rsa.PublicKey
}

func (s *security) on() bool { return s.mode != ua.MessageSecurityModeNone }

// asymmetric returns what signs, encrypts and verifies with the keys of both sides.
func (s *security) asymmetric() (*uapolicy.EncryptionAlgorithm, error) {
	return uapolicy.Asymmetric(s.policy, s.key, s.serverKey)
}

// A channel is a secure channel over a connection of its own. OPC UA Part 6 §6.7.
// Calls may be made concurrently.
type channel struct {
	conn    net.Conn
	sec     security
	timeout time.Duration // for an answer
	chunk   int           // longest that the server takes

	asym   *uapolicy.EncryptionAlgorithm // nil without security
	done   chan struct{}                 // closed when no more answers come
	cancel func()                        // ends what renews the keys; nil before the channel is open
	wait   sync.WaitGroup                // the goroutines
	once   sync.Once                     // of close

	writing sync.Mutex // guards the order on the wire and what follows
	lastOut uint32     // sequence number

	mu      sync.Mutex // guards what follows
	id      uint32
	current *keys     // that we send with
	known   []*keys   // that may still come, the newest last
	nonce   []byte    // ours, of the keys that were asked for
	lastID  uint32    // of a request
	asked   time.Time // when that was sent
	calls   map[uint32]chan<- answer
	err     error // why the channel is of no further use
}

// keys are those of one security token.
type keys struct {
	token uint32
	algo  *uapolicy.EncryptionAlgorithm // nil without security
	life  time.Duration
}

// answer is how a request ended.
type answer struct {
	id  uint32
	res ua.Response
	err error
}

// openChannel connects to an address and opens a channel to the endpoint.
func openChannel(ctx context.Context, address, url string, sec security, timeout time.Duration) (*channel, error) {
	d := net.Dialer{Timeout: min(dialTimeout, timeout)}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &channel{
		conn: conn, sec: sec, timeout: timeout,
		done: make(chan struct{}), calls: map[uint32]chan<- answer{},
	}
	if err := c.open(ctx, url); err != nil {
		c.close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return c, nil
}

func (c *channel) open(ctx context.Context, url string) (err error) {
	if c.sec.on() {
		if c.asym, err = c.sec.asymmetric(); err != nil {
			return fmt.Errorf("the keys do not fit the security policy: %w", err)
		}
	}
	release := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	c.conn.SetDeadline(time.Now().Add(c.timeout))
	r := bufio.NewReaderSize(c.conn, maxChunk)
	if _, err := c.conn.Write(hello(url)); err != nil {
		return err
	}
	f, err := readFrame(r)
	if err != nil {
		return timeoutOr(err)
	}
	if c.chunk, err = acknowledged(f); err != nil {
		return err
	}
	if !release() {
		return context.Cause(ctx)
	}
	c.conn.SetDeadline(time.Time{})
	c.wait.Go(func() { c.read(r) })
	life, err := c.renew(ctx, ua.SecurityTokenRequestTypeIssue)
	if err != nil {
		return err
	}
	ctx, c.cancel = context.WithCancel(context.Background())
	c.wait.Go(func() { c.keepFresh(ctx, life) })
	return nil
}

// timeoutOr says of an error that it was a timeout, if it was.
func timeoutOr(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return errNoAnswer
	}
	return err
}

// keepFresh asks for new keys when three quarters of the life of the old ones are
// over. OPC UA Part 4 §5.6.2.1.
func (c *channel) keepFresh(ctx context.Context, life time.Duration) {
	for {
		select {
		case <-c.done:
			return
		case <-ctx.Done():
			return
		case <-time.After(life / 4 * 3):
		}
		var err error
		if life, err = c.renew(ctx, ua.SecurityTokenRequestTypeRenew); err != nil {
			c.fail(fmt.Errorf("cannot renew the keys of the channel: %w", err))
			return
		}
	}
}

// renew asks for keys, and returns for how long they are good.
func (c *channel) renew(ctx context.Context, kind ua.SecurityTokenRequestType) (time.Duration, error) {
	req := &ua.OpenSecureChannelRequest{
		RequestType: kind, SecurityMode: c.sec.mode, RequestedLifetime: uint32(cmp.Or(c.sec.life, channelLife) / time.Millisecond),
	}
	if c.sec.on() {
		req.ClientNonce = make([]byte, c.asym.NonceLength())
		rand.Read(req.ClientNonce) // never fails
	}
	c.mu.Lock()
	c.nonce = req.ClientNonce
	c.mu.Unlock()
	if _, err := c.call(ctx, req, nil); err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current.life, nil
}

// opened takes the answer to renew, on the goroutine that reads: what comes behind
// it may use the new keys.
func (c *channel) opened(res *ua.OpenSecureChannelResponse) error {
	t := res.SecurityToken
	k := &keys{token: t.TokenID, life: time.Duration(t.RevisedLifetime) * time.Millisecond}
	if asked := cmp.Or(c.sec.life, channelLife); k.life < minLife || k.life > asked {
		k.life = asked
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sec.on() {
		if len(res.ServerNonce) < c.asym.NonceLength() {
			return errors.New("the server's nonce is too short")
		}
		algo, err := uapolicy.Symmetric(c.sec.policy, c.nonce, res.ServerNonce)
		if err != nil {
			return err
		}
		k.algo = algo
	}
	c.id, c.current = t.ChannelID, k
	c.known = append(c.known, k)
	c.known = c.known[max(0, len(c.known)-2):]
	return nil
}

// call sends a request and waits for its answer.
func (c *channel) call(ctx context.Context, req ua.Request, auth *ua.NodeID) (ua.Response, error) {
	to := make(chan answer, 1)
	id, err := c.send(req, auth, c.timeout, to)
	if err != nil {
		return nil, err
	}
	t := time.NewTimer(c.timeout)
	defer t.Stop()
	select {
	case a := <-to:
		return a.res, a.err
	case <-t.C:
		err = errNoAnswer
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	delete(c.calls, id)
	c.mu.Unlock()
	return nil, err
}

// send sends a request whose answer goes to a channel, which must have room for it.
func (c *channel) send(req ua.Request, auth *ua.NodeID, hint time.Duration, to chan<- answer) (id uint32, err error) {
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return 0, c.err
	}
	c.lastID++
	id = c.lastID
	c.asked = time.Now()
	c.calls[id] = to
	c.mu.Unlock()
	if auth == nil {
		auth = ua.NewTwoByteNodeID(0)
	}
	req.SetHeader(&ua.RequestHeader{AuthenticationToken: auth, Timestamp: time.Now(), RequestHandle: id, TimeoutHint: uint32(hint / time.Millisecond)})
	if err = c.write(req, id); err != nil {
		c.mu.Lock()
		delete(c.calls, id)
		c.mu.Unlock()
	}
	return id, err
}

// read takes what comes until the connection ends.
func (c *channel) read(r *bufio.Reader) {
	defer close(c.done)
	err := c.readAll(r)
	c.fail(err)
	c.mu.Lock()
	calls := c.calls
	c.calls = map[uint32]chan<- answer{}
	err = c.err
	c.mu.Unlock()
	for id, to := range calls {
		to <- answer{id: id, err: err}
	}
}

// fail notes why the channel is of no further use, and ends its connection.
func (c *channel) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.conn.Close()
	}
}

func (c *channel) readAll(r *bufio.Reader) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic in the decoder: %v\n%s", p, debug.Stack())
		}
	}()
	in := inbound{channel: c, parts: map[uint32][]byte{}}
	for {
		f, err := readFrame(r)
		if err != nil {
			return err
		}
		if err := in.take(f); err != nil {
			return err
		}
	}
}

// idle is for how long nothing was asked.
func (c *channel) idle() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.asked)
}

// deliver hands an answer to who waits for it, if somebody still does.
func (c *channel) deliver(a answer) {
	c.mu.Lock()
	to := c.calls[a.id]
	delete(c.calls, a.id)
	c.mu.Unlock()
	if to != nil {
		to <- a
	}
}

// close ends the channel and waits for its goroutines. It does not wait for the
// server.
func (c *channel) close() {
	c.once.Do(func() {
		c.mu.Lock()
		open := c.err == nil && c.current != nil
		c.mu.Unlock()
		if open {
			_ = c.goodbye()
		}
		if c.cancel != nil {
			c.cancel()
		}
		c.fail(errClosed)
		c.conn.Close()
	})
	c.wait.Wait()
}

// goodbye tells the server, if the connection takes that at once.
func (c *channel) goodbye() error {
	req := &ua.CloseSecureChannelRequest{}
	req.SetHeader(&ua.RequestHeader{AuthenticationToken: ua.NewTwoByteNodeID(0), Timestamp: time.Now()})
	body, err := encodeService(req)
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	return c.writeChunks(req, 0, body)
}
