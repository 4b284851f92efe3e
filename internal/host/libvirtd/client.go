package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Sockets are where libvirt's daemons listen: the monolithic one, then QEMU's own of the modular ones.
var Sockets = []string{"/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"}

// Options say where libvirtd is and how patient to be with it. The zero value is right for a host.
type Options struct {
	// URI is the driver, qemu:///system by default.
	URI string
	// Sockets are tried in turn; the variable Sockets by default.
	Sockets []string
	// Quick is the deadline of calls that libvirtd answers from memory; 5 s by default.
	Quick time.Duration
	// Control is the deadline of calls that ask a running QEMU or end it; 30 s by default, of which libvirtd may
	// take 15 until it kills a QEMU that ignores SIGTERM.
	Control time.Duration
	// Start is the deadline of starting a domain and of learning the host's capabilities; 90 s by default.
	Start time.Duration
	// Ping is the time between two pings, 5 s by default. A hanging libvirtd is noticed after Ping and Quick.
	Ping time.Duration
	// Resync is the time between two full looks, 30 s by default.
	Resync time.Duration
}

func (o Options) withDefaults() Options {
	if o.URI == "" {
		o.URI = "qemu:///system"
	}
	if len(o.Sockets) == 0 {
		o.Sockets = Sockets
	}
	for _, d := range []struct {
		value    *time.Duration
		fallback time.Duration
	}{
		{&o.Quick, 5 * time.Second},
		{&o.Control, 30 * time.Second},
		{&o.Start, 90 * time.Second},
		{&o.Ping, 5 * time.Second},
		{&o.Resync, 30 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.fallback
		}
	}
	return o
}

// Watcher is told what happens. Its functions only take note, since they run
// where events are read: they must not block, call the Client or be nil.
type Watcher struct {
	// Changed: something happened to the domain with this UUID, or to its guest agent.
	Changed func(uuid string)
	// Resync: anything may have happened to any domain.
	Resync func()
	// Connectivity: libvirtd is reachable (nil) or not. It is called on changes only.
	Connectivity func(err error)
}

// Client is the way to one libvirt daemon. Its methods may be called from
// anywhere, while Run runs; without a connection they fail at once with
// LibvirtUnreachable.
type Client struct {
	options Options
	watcher Watcher
	// A line for each kind of call, so that guests that answer slowly, or domains that start slowly, hold up only their kind.
	queries, control, starts, agents *line

	canary canary
	stops  stops

	mu   sync.Mutex
	err  error // why there is no connection; nil while there is one
	peer int   // process ID of whoever made the daemon's socket
}

// ErrNotYet is what calls fail with before the first try to connect has ended, which tells the Watcher.
var ErrNotYet = errors.New("not connected to libvirtd yet")

// New returns a Client that Run connects.
func New(o Options, w Watcher) *Client {
	c := &Client{options: o.withDefaults(), watcher: w, err: ErrNotYet}
	dial := func(ctx context.Context) (*client, error) {
		if err := c.Err(); err != nil {
			return nil, err
		}
		return connect(ctx, c.options.Sockets, c.options.URI)
	}
	c.queries = newLine("queries", c.options.Quick, dial)
	c.control = newLine("control", c.options.Control, dial)
	c.starts = newLine("starts", c.options.Start, dial)
	c.agents = newLine("agents", c.options.Quick+agentTimeout, dial)
	return c
}

// Err is nil while libvirtd is reachable and its events flow, else why not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Connected is true while libvirtd is reachable and its events flow.
func (c *Client) Connected() bool { return c.Err() == nil }

// Root is the path to libvirtd's root directory: where its configuration and
// its logs are, as it sees them. It is good as long as Connected stays true.
// Where systemd made the socket this is the root of systemd, which is the host's.
func (c *Client) Root() (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return "", unreachable(c.err)
	}
	return fmt.Sprintf("/proc/%d/root", c.peer), nil
}

// connected takes note of a connection to the daemon of process peer.
func (c *Client) connected(peer int) {
	c.mu.Lock()
	c.err, c.peer = nil, peer
	c.mu.Unlock()
	c.watcher.Connectivity(nil)
	c.watcher.Resync()
}

// lost takes note of why there is no connection, and ends what is left of it.
func (c *Client) lost(err error) {
	c.mu.Lock()
	before := c.err
	c.err = err
	c.mu.Unlock()
	for _, l := range []*line{c.queries, c.control, c.starts, c.agents} {
		l.hangUp()
	}
	if before == nil || errors.Is(before, ErrNotYet) {
		c.watcher.Connectivity(unreachable(err))
	}
}
