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
	errClosed  = errors.New("it was closed from here")
)

// wire is the connection below go-libvirt. It hands on whole messages whose
// lengths are true, because the library takes memory for any length that it is
// told, in a goroutine whose panic nobody could recover; and it reports the
// connection's end, which the library can miss.
type wire struct {
	net.Conn
	once sync.Once
	dead chan struct{}
	err  error // why it is dead, once it is

	// Only the library's one reader touches these.
	in      *bufio.Reader
	message bytes.Buffer // what is left of the current message
}

func newWire(conn net.Conn) *wire {
	return &wire{Conn: conn, dead: make(chan struct{}), in: bufio.NewReader(conn)}
}

// end closes the connection, for the first reason that is given.
func (w *wire) end(why error) {
	w.once.Do(func() {
		w.err = why
		_ = w.Conn.Close() // nothing can be done about it, and the peer sees the end in any case
		close(w.dead)
	})
}

func (w *wire) close() { w.end(errClosed) }

// Read ends the connection on any error: the library would spin on a timeout and go on after half a message.
func (w *wire) Read(p []byte) (int, error) {
	if w.message.Len() == 0 {
		if err := w.next(); err != nil {
			w.end(err)
			w.message.Reset()
			return 0, io.EOF
		}
	}
	return w.message.Read(p)
}

// Close closes the connection. It may be called often, from anywhere, and never waits.
func (w *wire) Close() error {
	w.close()
	return nil
}

// next reads a message, in memory that grows as it comes.
func (w *wire) next() error {
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
	return checkShape(w.message.Bytes()[4:])
}
