package libvirtd

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// Limits of a message of libvirt's protocol, in bytes with its length word
// (virnetprotocol.x: VIR_NET_MESSAGE_MAX and the header of six words).
const (
	minMessage = 4 + headerSize
	maxMessage = 32 << 20
)

var (
	errFraming = errors.New("malformed message")
	errClosed  = errors.New("closed by the agent")
)

// checkedConn is the connection below go-libvirt. It hands on whole messages whose lengths are true, because the library
// takes memory for any length that it is told, in a goroutine whose panic nobody could recover; and it reports the
// connection's end, which the library can miss.
type checkedConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
	err    error // why it is closed, once it is

	// Only the library's one reader touches these.
	in      *bufio.Reader
	message bytes.Buffer // what is left of the current message
}

func newCheckedConn(conn net.Conn) *checkedConn {
	return &checkedConn{Conn: conn, closed: make(chan struct{}), in: bufio.NewReader(conn)}
}

// fail closes the connection, for the first reason that is given.
func (w *checkedConn) fail(why error) {
	w.once.Do(func() {
		w.err = why
		_ = w.Conn.Close() // nothing can be done about it, and the peer sees the end in any case
		close(w.closed)
	})
}

func (w *checkedConn) close() { w.fail(errClosed) }

// Read ends the connection on any error: the library would spin on a timeout and go on after half a message.
func (w *checkedConn) Read(p []byte) (int, error) {
	if w.message.Len() == 0 {
		if err := w.next(); err != nil {
			w.fail(err)
			w.message.Reset()
			return 0, io.EOF
		}
	}
	return w.message.Read(p)
}

// Close closes the connection. It may be called often, from anywhere, and never waits.
func (w *checkedConn) Close() error {
	w.close()
	return nil
}

// next reads a message, in memory that grows as it comes.
func (w *checkedConn) next() error {
	if _, err := io.CopyN(&w.message, w.in, 4); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(w.message.Bytes())
	if length < minMessage || length > maxMessage {
		return fmt.Errorf("%w of %d bytes", errFraming, length)
	}
	if _, err := io.CopyN(&w.message, w.in, int64(length)-4); err != nil {
		return err
	}
	return checkMessage(w.message.Bytes()[4:])
}
