package libvirtd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
)

// Backoff between two attempts to connect. The first are fast, since a restarted
// libvirtd is back in moments; the slowest still finds it within two seconds.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

var (
	errConnectionLost = errors.New("the connection to libvirtd is lost")
	errEventsLost     = errors.New("libvirtd's events stopped flowing")
)

// Run keeps the connection and hands on events until ctx ends.
func (c *Client) Run(ctx context.Context) {
	backoff := minBackoff
	for ctx.Err() == nil {
		err := c.serveConnection(ctx)
		if c.Connected() {
			backoff = minBackoff
		}
		c.disconnected(cmp.Or(ctx.Err(), err))
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// serveConnection makes one connection for events and stays until it ends. It returns why it ended.
func (c *Client) serveConnection(ctx context.Context) error {
	events, err := c.connectEvents(ctx)
	if err != nil {
		return err
	}
	defer events.conn.close()
	peer, err := peerOf(events.conn.Conn)
	if err != nil {
		return err
	}
	// Events flow by now, so what happens before the list that follows is not missed.
	c.connected(peer)
	if err := c.compareEvents(ctx); err != nil {
		return err
	}
	return c.watchConnection(ctx, events)
}

// connectEvents connects and subscribes, once for the connection's whole life:
// the library blocks for ever on a subscriber that was cancelled.
func (c *Client) connectEvents(ctx context.Context) (*connection, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.QueryTimeout)
	defer cancel()
	events, err := connect(ctx, c.options.Sockets, c.options.URI)
	if err != nil {
		return nil, err
	}
	c.monitor.reset()
	err = events.guarded(ctx, func(l *golibvirt.Libvirt) error {
		// The library ends a subscription with this context; a connection's end does that too.
		for _, id := range []golibvirt.DomainEventID{
			golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDReboot, golibvirt.DomainEventIDAgentLifecycle,
			golibvirt.DomainEventIDDeviceRemoved, golibvirt.DomainEventIDDeviceRemovalFailed,
		} {
			stream, err := l.SubscribeEvents(context.WithoutCancel(ctx), id, nil)
			if err != nil {
				return fmt.Errorf("subscribing to events %d: %w", id, err)
			}
			go c.handleEvents(stream)
		}
		return nil
	})
	if err != nil {
		events.conn.close()
		return nil, err
	}
	return events, nil
}

// watchConnection returns when the connection is of no more use.
func (c *Client) watchConnection(ctx context.Context, events *connection) error {
	ping, resync := time.Tick(c.options.PingInterval), time.Tick(c.options.ResyncInterval)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-events.conn.ended.Done():
			return fmt.Errorf("%w: %w", errConnectionLost, context.Cause(events.conn.ended)) //nolint:contextcheck // it is the connection's
		case <-ping:
			if err := c.ping(ctx, events); err != nil {
				return err
			}
			if uuid := c.monitor.missed(); uuid != "" {
				return fmt.Errorf("%w: domain %s changed without one", errEventsLost, uuid)
			}
		case <-resync:
			if err := c.compareEvents(ctx); err != nil {
				return err
			}
			c.watcher.Resync()
		}
	}
}

// ping calls over both the events' connection and the queries'. It stands in for
// the protocol's keepalive, which the library does not answer.
func (c *Client) ping(ctx context.Context, events *connection) error {
	version := func(l *golibvirt.Libvirt) error {
		_, err := l.ConnectGetLibVersion()
		return err
	}
	quick, cancel := context.WithTimeout(ctx, c.options.QueryTimeout)
	defer cancel()
	if err := events.guarded(quick, version); err != nil {
		return fmt.Errorf("waiting for libvirtd's answer to a ping: %w", err)
	}
	return c.queries.call(ctx, version)
}

// compareEvents compares a list of all domains with the events since the last.
func (c *Client) compareEvents(ctx context.Context) error {
	noted := c.monitor.beginList()
	domains, err := ask(ctx, c.queries, func(l *golibvirt.Libvirt) ([]golibvirt.Domain, error) {
		domains, _, err := l.ConnectListAllDomains(1, 0) // flags 0: all
		return domains, err
	})
	if err != nil {
		return err
	}
	now := make(map[string]int32, len(domains))
	for _, d := range domains {
		now[uuidText(d.UUID)] = d.ID
	}
	c.monitor.endList(noted, now)
	return nil
}

// peerOf returns the process that listens at the other end (SO_PEERCRED of unix(7)).
func peerOf(conn net.Conn) (int, error) {
	var cred *unix.Ucred
	raw, err := conn.(*net.UnixConn).SyscallConn() // dialFirst knows no other
	if err == nil {
		var optErr error
		err = raw.Control(func(fd uintptr) { cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
		err = errors.Join(err, optErr)
	}
	if err != nil {
		return 0, fmt.Errorf("reading the credentials of libvirtd's socket (SO_PEERCRED): %w", err)
	}
	if cred.Pid <= 0 {
		return 0, errors.New("libvirtd is in a PID namespace that cannot be seen from here: run the agent with hostPID")
	}
	return int(cred.Pid), nil
}

// eventMonitor tells when events have stopped flowing. It needs no event of its own, which would have to change some domain:
// every list of domains is compared with the one before, and whatever differs must have had an event. An event that is late
// is waited for until the next ping.
type eventMonitor struct {
	mu          sync.Mutex
	known       map[string]int32 // libvirt's ID of each domain in the last list; nil before the first
	noted       map[string]bool  // had an event since that list was begun
	unannounced map[string]int   // changed without an event, and how often missed was called since
}

// reset forgets all, for a new connection.
func (c *eventMonitor) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.noted, c.unannounced = nil, map[string]bool{}, map[string]int{}
}

// note takes note of an event.
func (c *eventMonitor) note(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted[uuid] = true
	delete(c.unannounced, uuid)
}

// beginList is called before domains are listed, and returns those with an event since the last list. Events that come
// while libvirtd lists count for both lists.
func (c *eventMonitor) beginList() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	noted := c.noted
	c.noted = map[string]bool{}
	return noted
}

// endList compares a list, the domains now, with the one before.
func (c *eventMonitor) endList(noted map[string]bool, now map[string]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.known
	c.known = now
	if before == nil {
		return
	}
	for _, list := range []map[string]int32{before, now} {
		for uuid := range list {
			old, was := before[uuid]
			id, is := now[uuid]
			if (was != is || old != id) && !noted[uuid] && !c.noted[uuid] {
				c.unannounced[uuid] = 0
			}
		}
	}
}

// missed returns a domain that changed without an event, or "". It returns one
// at its second call only: the first may come right after the list.
func (c *eventMonitor) missed() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid, asked := range c.unannounced {
		if asked > 0 {
			return uuid
		}
		c.unannounced[uuid]++
	}
	return ""
}
