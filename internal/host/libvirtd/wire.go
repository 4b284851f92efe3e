package libvirtd

import (
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
	minMessage = 4 + 6*4
	maxMessage = 32 << 20
)

var errFraming = errors.New("malformed message")

// wire is the connection below go-libvirt. It follows the framing of what
// libvirtd sends, because the library takes memory for any length that it is
// told, in a goroutine whose panic nobody could recover; and it reports the
// connection's end, which the library can miss.
type wire struct {
	net.Conn
	dead  chan struct{}
	close func()

	// Only the library's one reader touches these.
	header [4]byte // of the next message
	have   int     // bytes of header
	left   int     // bytes of the current message
}

func newWire(conn net.Conn) *wire {
	w := &wire{Conn: conn, dead: make(chan struct{})}
	w.close = sync.OnceFunc(func() {
		_ = conn.Close() // nothing can be done about it, and the peer sees the end in any case
		close(w.dead)
	})
	return w
}

// Read ends the connection on any error: the library would spin on a timeout and go on after half a message.
func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err == nil {
		err = w.follow(p[:n])
	}
	if err != nil {
		w.close()
		return 0, io.EOF
	}
	return n, nil
}

// Close closes the connection. It may be called often, from anywhere, and never waits.
func (w *wire) Close() error {
	w.close()
	return nil
}

// follow moves along the messages in p.
func (w *wire) follow(p []byte) error {
	for len(p) > 0 {
		if w.left > 0 {
			n := min(w.left, len(p))
			w.left -= n
			p = p[n:]
			continue
		}
		n := copy(w.header[w.have:], p)
		w.have += n
		p = p[n:]
		if w.have < len(w.header) {
			return nil
		}
		w.have = 0
		length := binary.BigEndian.Uint32(w.header[:])
		if length < minMessage || length > maxMessage {
			return fmt.Errorf("%w of %d bytes", errFraming, length)
		}
		w.left = int(length) - len(w.header)
	}
	return nil
}
