package dial

import (
	"bufio"
	"net"
)

// readAhead is how many bytes are taken from a socket at once. By itself crypto/tls takes
// some 500.
const readAhead = 16 << 10

// ahead is a connection that is read ahead of who reads it, which can be told not to
// wait.
type ahead struct {
	net.Conn
	r      *bufio.Reader // of the connection
	noWait bool          // a Read that would have to wait fails with errWait
}

func (a *ahead) Read(p []byte) (int, error) {
	if a.noWait && a.r.Buffered() == 0 {
		return 0, errWait
	}
	return a.r.Read(p)
}

// errWait looks like a deadline that was missed, after which a TLS connection can be
// read on.
var errWait net.Error = waitError{}

type waitError struct{}

func (waitError) Error() string   { return "nothing has come yet" }
func (waitError) Timeout() bool   { return true }
func (waitError) Temporary() bool { return true }
