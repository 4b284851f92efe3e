package shimproto

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// AgentFD is the descriptor number in the shim at which the agent's end stands.
const AgentFD = 100

// A shim may send maxBurst messages at once, as those for agents that ended are still there, and one more each
// messageInterval: it is not trusted with the agent's processor time. In a guest's whole life it sends a handful.
const (
	maxBurst        = 50
	messageInterval = 500 * time.Millisecond
)

// ErrAbsent means that the shim has no socket for an agent: not yet, or no more.
var ErrAbsent = errors.New("the shim has no socket for an agent")

// ErrBroken means that the shim did not keep to the protocol some minutes ago, or has something else in its socket's place.
var ErrBroken = errors.New("the shim did not keep to the protocol, and is connected with again later")

// ErrFull means that the socket has no room for a message. A shim reads each as soon as it comes, and the few that there
// are fit by far: one that is full has a shim that does not read, or that took the room away.
var ErrFull = errors.New("the shim does not read from its socket, which is full")

// Agent is the agent's copy of its end of one shim's socket pair.
type Agent struct {
	socket *os.File
	closed atomic.Bool
}

// Take copies the agent's end out of the shim behind pidfd. The caller has proven by facts of the host whose process that
// is; Take only proves that the descriptor is what it should be. It returns ErrAbsent when there is none, and ErrBroken for
// anything else: who does so is not to be asked often.
func Take(pidfd int) (*Agent, error) {
	fd, err := unix.PidfdGetfd(pidfd, AgentFD, 0) // close-on-exec by itself
	switch {
	case errors.Is(err, unix.EBADF), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("taking the shim's socket: %w (%w)", ErrAbsent, err)
	case err != nil:
		return nil, fmt.Errorf("taking the shim's socket: %w", err)
	}
	if err := check(fd); err != nil {
		go unix.Close(fd) // of a file on a stuck file system it would block
		return nil, fmt.Errorf("taking the shim's socket: %w (%w)", ErrBroken, err)
	}
	s, err := pollable(fd, "agent's end")
	if err != nil {
		return nil, fmt.Errorf("taking the shim's socket: %w", err)
	}
	return &Agent{socket: s}, nil
}

func check(fd int) error {
	domain, domainErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	kind, kindErr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	_, peerErr := unix.Getpeername(fd)
	if err := cmp.Or(domainErr, kindErr, peerErr); err != nil {
		return fmt.Errorf("it is no connected socket: %w", err)
	}
	if domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET {
		return fmt.Errorf("it is a socket of domain %d and type %d, not a UNIX SEQPACKET", domain, kind)
	}
	return nil
}

// Send sends one message, with copies of files in the order that its type tells, at most MaxDescriptors. It never waits: a tenant can be the shim, and its socket is full when it wants it to
// be. Then Send fails with ErrFull. It may be called from several goroutines.
func (a *Agent) Send(ctx context.Context, m Message, files ...*os.File) error {
	if len(files) > MaxDescriptors {
		return fmt.Errorf("sending %T: %d descriptors are more than %d", m, len(files), MaxDescriptors)
	}
	data, err := encode(m)
	if err = cmp.Or(err, ctx.Err()); err == nil {
		err = trySend(a.socket, data, files)
	}
	if err != nil {
		return fmt.Errorf("sending %T: %w", m, err)
	}
	return nil
}

// Receive calls handle with each State, in order, until Close (it then returns
// nil), the end of the shim (io.EOF), or a protocol error. It closes the socket.
func (a *Agent) Receive(handle func(State)) error {
	defer a.Close()
	data := make([]byte, MaxMessage+1)
	var due time.Time // when as many messages as came would have come one each messageInterval
	for {
		n, _, _, err := ReadPacket(a.socket, data, nil)
		if err != nil && a.closed.Load() { // raw reads tell of it by no exported error
			return nil
		}
		if err != nil {
			return fmt.Errorf("receiving from a shim: %w", err)
		}
		now := time.Now()
		if due.Before(now) {
			due = now
		}
		if due = due.Add(messageInterval); due.Sub(now) > maxBurst*messageInterval {
			return fmt.Errorf("receiving from a shim: more than %d messages, and one each %v", maxBurst, messageInterval)
		}
		m, err := decode(data[:n])
		if errors.Is(err, errUnknown) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving from a shim: %w", err)
		}
		state, ok := m.(State)
		if !ok {
			return fmt.Errorf("receiving from a shim: a %T, which only an agent sends", m)
		}
		handle(state)
	}
}

// Close gives the copy back. The shim and its guest do not notice.
func (a *Agent) Close() error {
	a.closed.Store(true)
	return a.socket.Close()
}
