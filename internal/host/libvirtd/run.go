package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"golang.org/x/sys/unix"
)

// Between two tries to connect. The first ones are fast, since a restarted
// libvirtd is back in moments; the slowest still finds it within two seconds.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

var (
	errConnectionLost = errors.New("the connection to libvirtd is lost")
	errEventsLost     = errors.New("libvirtd's events stopped flowing")
)

// Run keeps the connection and hands on events until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	pause := firstPause
	for {
		err := c.session(ctx)
		if ctx.Err() != nil {
			c.lost(ctx.Err())
			return nil //nolint:nilerr // it was told to end
		}
		if c.Connected() {
			pause = firstPause
		}
		c.lost(err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// session is the life of one connection for events. It returns why it ended.
func (c *Client) session(ctx context.Context) error {
	events, err := c.connectEvents(ctx)
	if err != nil {
		return err
	}
	defer events.wire.close()
	peer, err := peerOf(events.wire.Conn)
	if err != nil {
		return err
	}
	// Events flow by now, so what happens before the full look that follows is not missed.
	c.connected(peer)
	if err := c.look(ctx); err != nil {
		return err
	}
	return c.keep(ctx, events)
}

// connectEvents connects and subscribes, once for the connection's whole life:
// the library blocks for ever on a subscriber that was cancelled.
func (c *Client) connectEvents(ctx context.Context) (*client, error) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Quick)
	defer cancel()
	events, err := connect(ctx, c.options.Sockets, c.options.URI)
	if err != nil {
		return nil, err
	}
	c.canary.reset()
	err = events.guarded(ctx, func(l *golibvirt.Libvirt) error {
		// The library ends a subscription with this context; a connection's end does that too.
		for _, id := range []golibvirt.DomainEventID{golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDAgentLifecycle} {
			stream, err := l.SubscribeEvents(context.WithoutCancel(ctx), id, nil)
			if err != nil {
				return fmt.Errorf("subscribing to events %d: %w", id, err)
			}
			go c.drain(stream)
		}
		return nil
	})
	if err != nil {
		events.wire.close()
		return nil, err
	}
	return events, nil
}

// keep returns when the connection is of no more use.
func (c *Client) keep(ctx context.Context, events *client) error {
	ping, resync := time.NewTicker(c.options.Ping), time.NewTicker(c.options.Resync)
	defer ping.Stop()
	defer resync.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-events.wire.dead:
			return fmt.Errorf("%w: %w", errConnectionLost, events.wire.err)
		case <-ping.C:
			if err := c.ping(ctx, events); err != nil {
				return err
			}
			if uuid := c.canary.silent(); uuid != "" {
				return fmt.Errorf("%w: nothing was heard of domain %s", errEventsLost, uuid)
			}
		case <-resync.C:
			if err := c.look(ctx); err != nil {
				return err
			}
			c.watcher.Resync()
		}
	}
}

// ping asks over both the events' connection and the queries'. It stands in for
// the protocol's keepalive, which the library does not answer.
func (c *Client) ping(ctx context.Context, events *client) error {
	ask := func(l *golibvirt.Libvirt) error {
		_, err := l.ConnectGetLibVersion()
		return err
	}
	quick, cancel := context.WithTimeout(ctx, c.options.Quick)
	defer cancel()
	if err := events.guarded(quick, ask); err != nil {
		return fmt.Errorf("waiting for libvirtd's answer to a ping: %w", err)
	}
	return c.queries.call(ctx, ask)
}

// look compares what is with what events have told.
func (c *Client) look(ctx context.Context) error {
	heard := c.canary.begin()
	var domains []golibvirt.Domain
	err := c.queries.call(ctx, func(l *golibvirt.Libvirt) (err error) {
		domains, err = list(l)
		return err
	})
	if err != nil {
		return err
	}
	now := make(map[string]int32, len(domains))
	for _, d := range domains {
		now[uuidText(d.UUID)] = d.ID
	}
	c.canary.compare(heard, now)
	return nil
}

// peerOf returns the process that listens at the other end (SO_PEERCRED of unix(7)).
func peerOf(conn net.Conn) (int, error) {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("libvirtd's connection is a %T", conn)
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("asking who libvirtd is: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("asking who libvirtd is: %w", err)
	}
	if optErr != nil {
		return 0, fmt.Errorf("asking who libvirtd is: %w", optErr)
	}
	if cred.Pid <= 0 {
		return 0, errors.New("libvirtd is in a PID namespace that cannot be seen from here: run the agent with hostPID")
	}
	return int(cred.Pid), nil
}
