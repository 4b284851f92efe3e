package libvirtd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	// controlTimeout is the deadline of calls that ask a running QEMU or end it. libvirtd may take 15 s until it kills a QEMU
	// that ignores SIGTERM.
	controlTimeout = 30 * time.Second
	// startTimeout is the deadline of starting a domain and of learning the host's capabilities.
	startTimeout = 90 * time.Second
)

// Options say where libvirtd is and how patient to be with it. Where nothing else is said, zero is right for a host.
type Options struct {
	// URI is the driver, qemu:///system by default.
	URI string
	// Sockets are tried in turn, as those of the monolithic daemon and of QEMU's own of the modular ones. There is no default.
	Sockets []string
	// QueryTimeout is the deadline of calls that libvirtd answers from memory; 5 s by default.
	QueryTimeout time.Duration
	// PingInterval is the time between two pings, 5 s by default. A hanging libvirtd is noticed after PingInterval and QueryTimeout.
	PingInterval time.Duration
	// ResyncInterval is the time between two lists of all domains, 30 s by default.
	ResyncInterval time.Duration
}

// Watcher has callbacks. They only take note, since they run where events are
// read: they must not block, call the Client or be nil.
type Watcher struct {
	// Changed: something happened to the domain with this UUID, to its guest agent, or to a device
	// that its guest was asked for. Of many resets some are told.
	Changed func(uuid string)
	// Resync: anything may have happened to any domain.
	Resync func()
	// Connectivity: libvirtd is reachable (nil) or not. It is called on changes only.
	Connectivity func(err error)
}

// Client is the way to one libvirt daemon. Its methods may be called from anywhere, while Run runs; without a connection
// they fail at once with LibvirtUnreachable.
type Client struct {
	options Options
	watcher Watcher
	// A pool for each kind of call, so that guests that answer slowly, or domains that start slowly, hold up only their kind.
	queries, control, starts, statistics *callPool

	monitor eventMonitor
	exits   exitLog
	resets  resetLog

	mu   sync.Mutex
	err  error // why there is no connection; nil while there is one
	peer int   // process ID of whoever made the daemon's socket
}

// ErrNotConnected is what calls fail with before the first attempt to connect has ended.
var ErrNotConnected = errors.New("not connected to libvirtd yet")

// New returns a Client that Run connects.
func New(o Options, w Watcher) *Client {
	o.URI = cmp.Or(o.URI, "qemu:///system")
	o.QueryTimeout = cmp.Or(o.QueryTimeout, 5*time.Second)
	o.PingInterval = cmp.Or(o.PingInterval, 5*time.Second)
	o.ResyncInterval = cmp.Or(o.ResyncInterval, 30*time.Second)
	c := &Client{options: o, watcher: w, err: ErrNotConnected}
	c.monitor.reset()
	dial := func(ctx context.Context) (*connection, error) {
		if err := c.Err(); err != nil {
			return nil, err
		}
		return connect(ctx, c.options.Sockets, c.options.URI)
	}
	c.queries = newCallPool("queries", "", c.options.QueryTimeout, dial)
	c.control = newCallPool("control", "QEMUs that do not answer", controlTimeout, dial)
	c.starts = newCallPool("starts", "domains that start slowly", startTimeout, dial)
	c.statistics = newCallPool("statistics", "QEMUs that do not answer", controlTimeout, dial)
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

// Root is the path to libvirtd's root directory: where its configuration and its logs are, as it sees them. It is good as
// long as Connected stays true. Where systemd made the socket this is the root of systemd, which is the host's.
func (c *Client) Root() (string, error) {
	pid, err := c.PID()
	return fmt.Sprintf("/proc/%d/root", pid), err
}

// PID is libvirtd's process. It is good as Root is.
func (c *Client) PID() (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, unreachable(c.err)
	}
	return c.peer, nil
}

// connected takes note of a connection to the daemon of process peer.
func (c *Client) connected(peer int) {
	c.mu.Lock()
	c.err, c.peer = nil, peer
	c.mu.Unlock()
	c.watcher.Connectivity(nil)
	c.watcher.Resync()
}

// disconnected takes note of why there is no connection, and closes the pools'.
func (c *Client) disconnected(err error) {
	c.mu.Lock()
	before := c.err
	c.err = err
	c.mu.Unlock()
	for _, p := range []*callPool{c.queries, c.control, c.starts, c.statistics} {
		p.close()
	}
	if before == nil || errors.Is(before, ErrNotConnected) {
		c.watcher.Connectivity(unreachable(err))
	}
}

// maxErrorText is how much of libvirt's message is passed on, in bytes: it may hold QEMU's whole output.
const maxErrorText = 1024

// isCode tells whether err is an answer of libvirt's with this number.
func isCode(err error, number golibvirt.ErrorNumber) bool {
	e, ok := errors.AsType[golibvirt.Error](err)
	return ok && golibvirt.ErrorNumber(e.Code) == number //nolint:gosec // a small number
}

func isNoDomain(err error) bool { return isCode(err, golibvirt.ErrNoDomain) }

// classify sorts an error of a call. What is no answer of libvirt's was classified by callPool.call.
func classify(err error) error {
	e, ok := errors.AsType[golibvirt.Error](err)
	if !ok {
		return err
	}
	err = fmt.Errorf("libvirt: %s (error %d)", fault.Printable(e.Message, maxErrorText), e.Code)
	switch golibvirt.ErrorNumber(e.Code) { //nolint:exhaustive,gosec // the rest may pass; a small number
	case golibvirt.ErrNoDomain:
		return fault.NewTransient(v1alpha1.ReasonNotRunning, err)
	case golibvirt.ErrXMLError, golibvirt.ErrXMLDetail, golibvirt.ErrXMLInvalidSchema, golibvirt.ErrConfigUnsupported,
		golibvirt.ErrInvalidArg, golibvirt.ErrArgumentUnsupported:
		return fault.NewUser(v1alpha1.ReasonLibvirtRefused, err)
	default:
		return fault.NewTransient(v1alpha1.ReasonLibvirtRefused, err)
	}
}
