package libvirtd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// maxConcurrentCalls is how many calls a pool has under way at most; libvirtd answers
// five of a client at once (max_client_requests) and stops reading at more.
const maxConcurrentCalls = 4

// callPool is one connection to libvirtd for calls of one kind, and a slot for each that is under way. The connection is
// made when it is needed and closed at the first error, and the library object is not used again.
type callPool struct {
	name    string
	holders string // what may hold all slots though libvirtd answers; "" if nothing does
	dial    func(ctx context.Context) (*connection, error)
	timeout time.Duration
	slots   chan struct{}

	mu      sync.Mutex
	current *connection
}

// connection is one connected library object.
type connection struct {
	*golibvirt.Libvirt
	conn *checkedConn
}

func newCallPool(name, holders string, timeout time.Duration, dial func(context.Context) (*connection, error)) *callPool {
	return &callPool{name: name, holders: holders, dial: dial, timeout: timeout, slots: make(chan struct{}, maxConcurrentCalls)}
}

// call runs fn with the pool's connection. When the deadline is missed, or ctx ends first, it returns at once and the
// connection is closed; what fn asked for may still happen. Errors of libvirt's own are returned as they are. The others are
// transient: LibvirtBusy if the pool's holders had all slots, else LibvirtUnreachable.
func (p *callPool) call(ctx context.Context, fn func(*golibvirt.Libvirt) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		if p.holders == "" {
			return unreachable(fmt.Errorf("waiting for one of %d calls to libvirtd (%s) to end: %w", cap(p.slots), p.name, ctx.Err()))
		}
		return fault.NewTransient(v1alpha1.ReasonLibvirtBusy, fmt.Errorf(
			"waiting for one of %d slots for calls to libvirtd (%s), which %s hold: %w", cap(p.slots), p.name, p.holders, ctx.Err()))
	}
	defer func() { <-p.slots }()

	c, err := p.connection(ctx)
	if err != nil {
		return unreachable(err)
	}
	err = c.guarded(ctx, fn)
	if _, ok := errors.AsType[golibvirt.Error](err); err != nil && !ok {
		c.conn.close() // without ConnectClose, which could hang
		return unreachable(fmt.Errorf("calling libvirtd (%s): %w", p.name, err))
	}
	return err
}

// ask is a call that returns something.
func ask[T any](ctx context.Context, p *callPool, fn func(*golibvirt.Libvirt) (T, error)) (T, error) {
	var answer, nothing T
	err := p.call(ctx, func(l *golibvirt.Libvirt) (err error) {
		answer, err = fn(l)
		return err
	})
	if err != nil { // fn may still run, and write
		return nothing, err
	}
	return answer, nil
}

// guarded runs fn for as long as ctx lasts and recovers from the library's panics.
func (c *connection) guarded(ctx context.Context, fn func(*golibvirt.Libvirt) error) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("go-libvirt panicked: %v\n%s", p, debug.Stack())
			}
		}()
		done <- fn(c.Libvirt)
	}()
	select {
	case err := <-done:
		if err != nil && !c.alive() {
			err = fmt.Errorf("%w: %w", err, context.Cause(c.conn.ended)) //nolint:contextcheck // it is the connection's
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connection returns the pool's connection, made now if need be. Two callers may
// make one each; the later closes its own, so that nobody waits for a lock.
func (p *callPool) connection(ctx context.Context) (*connection, error) {
	if c := p.usable(nil); c != nil {
		return c, nil
	}
	c, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	used := p.usable(c)
	if used != c {
		c.conn.close()
	}
	return used, nil
}

// usable returns the pool's live connection, or else installs and returns fresh.
func (p *callPool) usable(fresh *connection) *connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == nil || !p.current.alive() {
		p.current = fresh
	}
	return p.current
}

func (c *connection) alive() bool { return c.conn.ended.Err() == nil }

// close closes whatever connection there is.
func (p *callPool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current != nil {
		p.current.conn.close()
		p.current = nil
	}
}

// dialer is go-libvirt's way to be given a connection.
type dialer struct{ conn *checkedConn }

func (d dialer) Dial() (net.Conn, error) { return d.conn, nil }

// connect connects to the first socket that answers.
func connect(ctx context.Context, sockets []string, uri string) (*connection, error) {
	conn, err := dialFirst(ctx, sockets)
	if err != nil {
		return nil, err
	}
	c := &connection{conn: newCheckedConn(conn)}
	c.Libvirt = golibvirt.NewWithDialer(dialer{c.conn})
	err = c.guarded(ctx, func(l *golibvirt.Libvirt) error { return l.ConnectToURI(golibvirt.ConnectURI(uri)) })
	if err != nil {
		c.conn.close()
		return nil, fmt.Errorf("opening %s at %s: %w", uri, conn.RemoteAddr(), err)
	}
	return c, nil
}

func dialFirst(ctx context.Context, sockets []string) (net.Conn, error) {
	dialErr := errors.New("no socket answers")
	for _, path := range sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		dialErr = fmt.Errorf("%w; %w", dialErr, err)
	}
	return nil, dialErr
}

func unreachable(err error) error {
	return fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, fmt.Errorf(
		"libvirtd does not answer: start it, or look why it hangs (systemctl status libvirtd): %w", err))
}

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
	ended context.Context //nolint:containedctx // done once it is closed, and its cause is why
	end   context.CancelCauseFunc

	// Only the library's one reader touches these.
	in      *bufio.Reader
	message bytes.Buffer // what is left of the current message
}

func newCheckedConn(conn net.Conn) *checkedConn {
	ended, end := context.WithCancelCause(context.Background())
	return &checkedConn{Conn: conn, ended: ended, end: end, in: bufio.NewReader(conn)}
}

// fail closes the connection, for the first reason that is given.
func (w *checkedConn) fail(why error) {
	w.end(why)
	_ = w.Conn.Close() // nothing can be done about it, and the peer sees the end in any case
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
