package shims

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/runtime"
)

// ErrAbsent says that the shim has not made its socket yet.
var ErrAbsent = errors.New("the shim is not ready yet")

// errBroken says that the shim did not keep to the protocol a moment ago.
var errBroken = errors.New("the shim did not keep to the protocol, and is connected with again later")

// brokenPause is for how long there is no session with such a shim: a tenant's program could have the agent connect
// again and again.
const brokenPause = 10 * time.Second

// UnsupportedRuntimeError says that the berth is run by something that Berth cannot work with, and by what.
type UnsupportedRuntimeError string

// Error is for people.
func (e UnsupportedRuntimeError) Error() string { return "the berth is run by " + string(e) }

// Runtime is what the container runtime says of a berth, as runtime.Runtime does.
type Runtime interface {
	Container(ctx context.Context, podUID, name string) (c runtime.Container, found bool, err error)
	Pod(ctx context.Context, podUID string) (p runtime.Pod, found bool, err error)
}

// Options are what sessions need of others.
type Options struct {
	Runtime Runtime
	// Wake has a guest looked at, by the UID of its VirtualMachine: its shim has spoken, or has ended. It does not block.
	Wake func(vm types.UID)
	// BootTime is the time since boot, by CLOCK_BOOTTIME as in shimproto.State.
	BootTime func() time.Duration
	// CountProtocolError counts a shim that did not keep to the protocol.
	CountProtocolError func()
}

// Sessions are those of all berths on the node.
type Sessions struct {
	Options
	pause time.Duration // brokenPause, but in tests

	mu    sync.Mutex
	byPod map[types.UID]*Session
}

// New returns sessions, of which there are none yet.
func New(o Options) *Sessions {
	return &Sessions{Options: o, pause: brokenPause, byPod: map[types.UID]*Session{}}
}

// of returns the session with a berth's shim, or nil.
func (s *Sessions) of(pod types.UID) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byPod[pod]
}

func (s *Sessions) put(pod types.UID, n *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byPod[pod] = n
}

func (s *Sessions) drop(pod types.UID, n *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byPod[pod] == n {
		delete(s.byPod, pod)
	}
}

// Connect returns the session with the shim of a VirtualMachine's berth. Without one it finds the berth's container and
// takes its shim's socket. It knows the shim by facts of the host: what the runtime says of the container, and in which
// cgroup its process is. A nil Session comes with the container's state; one that is alive has an error nevertheless,
// such as ErrAbsent or an UnsupportedRuntimeError.
func (s *Sessions) Connect(ctx context.Context, vm, pod types.UID) (*Session, plan.Container, error) {
	if n := s.of(pod); n != nil && n.Alive() {
		if n.broken.Load() {
			return nil, plan.ContainerAlive, errBroken
		}
		return n, plan.ContainerAlive, nil
	}
	found, exists, err := s.Runtime.Container(ctx, string(pod), berth.Container)
	switch {
	case err != nil:
		return nil, plan.ContainerUnknown, err
	case !exists || found.State == runtime.Created:
		return nil, plan.ContainerAbsent, nil
	case found.State == runtime.Unknown:
		return nil, plan.ContainerUnknown, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, errors.New("the runtime does not know what the container does"))
	case found.State != runtime.Running:
		return nil, plan.ContainerDead, nil
	}
	if name, err := s.unsupportedRuntime(ctx, pod); err != nil {
		return nil, plan.ContainerUnknown, err
	} else if name != "" {
		return nil, plan.ContainerAlive, UnsupportedRuntimeError(name)
	}
	shim, err := process.Open(found.PID)
	if errors.Is(err, unix.ESRCH) { // it has ended, and the runtime will not say so before QEMU has left its cgroup
		return nil, plan.ContainerDead, nil
	}
	if err != nil {
		return nil, plan.ContainerUnknown, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("opening the shim's process: %w", err))
	}
	n, err := take(shim, pod, found.ID)
	if err != nil {
		_ = shim.Close()
		if errors.Is(err, shimproto.ErrAbsent) {
			return nil, plan.ContainerAlive, ErrAbsent
		}
		return nil, plan.ContainerUnknown, err
	}
	n.bootTime = s.BootTime
	s.put(pod, n)
	go s.hear(vm, pod, n) //nolint:gosec,contextcheck // it outlives the call, and ends with the session
	return n, plan.ContainerAlive, nil
}

// unsupportedRuntime is what runs a berth if Berth cannot work with it, "" if it can.
func (s *Sessions) unsupportedRuntime(ctx context.Context, pod types.UID) (string, error) {
	p, exists, err := s.Runtime.Pod(ctx, string(pod))
	if err != nil {
		return "", err
	}
	if !exists {
		return "", fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, errors.New("the runtime does not know the berth's sandbox"))
	}
	return p.Foreign(), nil
}

// take proves that a process is in the container, and takes its socket.
func take(shim *process.Handle, pod types.UID, container string) (*Session, error) {
	group, err := cgroup.Of(shim.PID())
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("reading the shim's cgroup: %w", err))
	}
	if p, c, ok := group.Container(); !ok || p != string(pod) || c != container || !shim.Alive() {
		return nil, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf(
			"process %d is in cgroup %s, not in that of container %s of pod %s", shim.PID(), group, container, pod))
	}
	conn, err := shimproto.Take(shim.FD())
	if err != nil {
		return nil, err
	}
	return &Session{container: container, shim: shim, group: group, conn: conn}, nil
}
