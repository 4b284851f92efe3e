package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// inFlight is how many calls a line has under way at most; libvirtd answers
// five of a client at once (max_client_requests) and stops reading at more.
const inFlight = 4

// line is one connection to libvirtd, made when it is needed and thrown away at
// the first sign of trouble, library object and all.
type line struct {
	name    string
	dial    func(ctx context.Context) (*client, error)
	timeout time.Duration
	slots   chan struct{}

	mu      sync.Mutex
	current *client
}

// client is one connected library object.
type client struct {
	*golibvirt.Libvirt
	wire *wire
}

func newLine(name string, timeout time.Duration, dial func(context.Context) (*client, error)) *line {
	return &line{name: name, dial: dial, timeout: timeout, slots: make(chan struct{}, inFlight)}
}

// call runs fn with the line's client. When the deadline is missed, or ctx ends
// first, it returns at once and the connection is closed; what fn asked for may
// still happen. Errors of libvirt's own are returned as they are, all others
// are ByTime LibvirtUnreachable.
func (l *line) call(ctx context.Context, fn func(*golibvirt.Libvirt) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return unreachable(fmt.Errorf("all %d calls that the agent makes of libvirtd at once for %s are under way: %w", cap(l.slots), l.name, ctx.Err()))
	}
	defer func() { <-l.slots }()

	c, err := l.client(ctx)
	if err != nil {
		return unreachable(err)
	}
	err = c.guarded(ctx, fn)
	if _, ok := errors.AsType[golibvirt.Error](err); err != nil && !ok {
		l.drop(c)
		return unreachable(fmt.Errorf("calling libvirtd (%s): %w", l.name, err))
	}
	return err
}

// guarded runs fn for as long as ctx lasts and recovers from the library's panics.
func (c *client) guarded(ctx context.Context, fn func(*golibvirt.Libvirt) error) error {
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
			err = fmt.Errorf("%w: %w", err, c.wire.err)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// client returns the line's client, made now if need be. Two callers may make
// one each; the later throws its own away, so that nobody waits for a lock.
func (l *line) client(ctx context.Context) (*client, error) {
	if c := l.usable(nil); c != nil {
		return c, nil
	}
	c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	used := l.usable(c)
	if used != c {
		c.wire.close()
	}
	return used, nil
}

// usable returns the line's live client, or else installs and returns fresh.
func (l *line) usable(fresh *client) *client {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == nil || !l.current.alive() {
		l.current = fresh
	}
	return l.current
}

func (c *client) alive() bool {
	select {
	case <-c.wire.dead:
		return false
	default:
		return true
	}
}

// drop closes c without a word: a goodbye could hang.
func (l *line) drop(c *client) {
	c.wire.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == c {
		l.current = nil
	}
}

// hangUp closes whatever connection there is.
func (l *line) hangUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil {
		l.current.wire.close()
		l.current = nil
	}
}

// dialer is go-libvirt's way to be given a connection.
type dialer struct{ wire *wire }

func (d dialer) Dial() (net.Conn, error) { return d.wire, nil }

// connect makes a client of the first socket that answers.
func connect(ctx context.Context, sockets []string, uri string) (*client, error) {
	conn, err := dialFirst(ctx, sockets)
	if err != nil {
		return nil, err
	}
	c := &client{wire: newWire(conn)}
	c.Libvirt = golibvirt.NewWithDialer(dialer{c.wire})
	err = c.guarded(ctx, func(l *golibvirt.Libvirt) error { return l.ConnectToURI(golibvirt.ConnectURI(uri)) })
	if err != nil {
		c.wire.close()
		return nil, fmt.Errorf("opening %s at %s: %w", uri, conn.RemoteAddr(), err)
	}
	return c, nil
}

func dialFirst(ctx context.Context, sockets []string) (net.Conn, error) {
	failed := errors.New("no socket answers")
	for _, path := range sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			return conn, nil
		}
		failed = fmt.Errorf("%w; %w", failed, err)
	}
	return nil, failed
}

func unreachable(err error) error {
	return fault.ByTime(v1alpha1.ReasonLibvirtUnreachable, fmt.Errorf(
		"libvirtd does not answer: start it, or look why it hangs (systemctl status libvirtd): %w", err))
}
