package shims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

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

// ErrBroken says that the shim did not keep to the protocol a moment ago.
var ErrBroken = errors.New("the shim did not keep to the protocol, and is connected with again later")

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
	// pause is for how long there is no session with a shim that broke the protocol: a tenant's program could have the
	// agent connect again and again.
	pause time.Duration

	mu    sync.Mutex
	byPod map[types.UID]*Session
}

// New returns sessions, of which there are none yet.
func New(o Options) *Sessions {
	return &Sessions{Options: o, pause: 10 * time.Second, byPod: map[types.UID]*Session{}}
}

// of returns the session with a berth's shim, or nil.
func (s *Sessions) of(pod types.UID) *Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byPod[pod]
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
			return nil, plan.ContainerAlive, ErrBroken
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
	p, exists, err := s.Runtime.Pod(ctx, string(pod))
	switch {
	case err != nil:
		return nil, plan.ContainerUnknown, err
	case !exists:
		return nil, plan.ContainerUnknown, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, errors.New("the runtime does not know the berth's sandbox"))
	case p.Foreign() != "":
		return nil, plan.ContainerAlive, UnsupportedRuntimeError(p.Foreign())
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
	s.mu.Lock()
	s.byPod[pod] = n
	s.mu.Unlock()
	go s.hear(vm, pod, n) //nolint:gosec,contextcheck // it outlives the call, and ends with the session
	return n, plan.ContainerAlive, nil
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

// Session is the connection with the shim of one container, for as long as that lives.
type Session struct {
	container string
	shim      *process.Handle
	group     cgroup.Group
	conn      *shimproto.Agent
	bootTime  func() time.Duration
	broken    atomic.Bool // the shim did not keep to the protocol

	mu    sync.Mutex
	known bool // the shim has spoken
	state shimproto.State
	// What was said to it and is not in its state.
	handedOver bool
	phase      shimproto.Phase
	exiting    bool
}

// PID is the shim's process ID. It means the shim only while it is Alive: ask after the use.
func (n *Session) PID() int { return n.shim.PID() }

// Alive tells whether the shim has not ended.
func (n *Session) Alive() bool { return n.shim.Alive() }

// ContainerID is the runtime's ID of the shim's container.
func (n *Session) ContainerID() string { return n.container }

// Cgroup is where the shim is.
func (n *Session) Cgroup() cgroup.Group { return n.group }

// NetworkNamespace opens the berth's network namespace; the shim that it is read from was alive after.
func (n *Session) NetworkNamespace() (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID()))
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, fmt.Errorf("opening the berth's network namespace: %w", err))
	}
	if !n.Alive() {
		_ = ns.Close()
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, errors.New("the berth's container has ended"))
	}
	return ns, nil
}

// hear hears a shim until it ends, and wakes its guest at everything that it says, its end included.
func (s *Sessions) hear(vm, pod types.UID, n *Session) {
	log := ctrl.Log.WithValues("vm", vm, "berth", pod)
	go func() { // the socket stays open while the shim's descriptors are inherited: only its pidfd tells
		if err := n.shim.Wait(); err != nil && !n.broken.Load() {
			log.Error(err, "Lost sight of a shim")
		}
		s.drop(pod, n)
		_ = n.conn.Close()
		_ = n.shim.Close()
		s.Wake(vm)
	}()
	if err := n.Send(context.Background(), shimproto.Hello{}); err != nil {
		log.Info("Lost a shim", "cause", err.Error())
	}
	err := n.conn.Receive(func(state shimproto.State) {
		n.mu.Lock()
		n.known, n.state = true, state
		n.mu.Unlock()
		s.Wake(vm)
	})
	if err != nil && !errors.Is(err, io.EOF) && n.Alive() { // at its end the socket tells before the pidfd does
		log.Info("Shim does not keep to the protocol", "cause", err.Error())
		s.CountProtocolError()
		n.broken.Store(true)
		time.AfterFunc(s.pause, func() { _ = n.shim.Close() }) // which ends the wait above. Until then it tells of the shim's end
		s.Wake(vm)
	}
}

// Send speaks to the shim and notes what was said, as its answer takes a moment.
func (n *Session) Send(ctx context.Context, m shimproto.Message, files ...*os.File) error {
	if err := n.conn.Send(ctx, m, files...); err != nil {
		return fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("speaking to the shim: %w", err))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch m := m.(type) {
	case shimproto.HandOver:
		n.handedOver = true
	case shimproto.Running:
		n.phase = m.Phase
	case shimproto.Exit:
		n.exiting = true
	case shimproto.Hello, shimproto.State: // its answer tells all
	}
	return nil
}

// HandOver hands those of a guest's devices to the shim that it takes, each with the descriptor that open returns, which
// may also fill in what the device needs to have said. Of the others State tells.
func (n *Session) HandOver(ctx context.Context, devices []shimproto.Device, open func(*shimproto.Device) (*os.File, error)) error {
	n.mu.Lock()
	takes := n.state
	n.mu.Unlock()
	message := shimproto.HandOver{InstanceID: n.container}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, d := range devices {
		if !takes.Takes(d.Kind) {
			continue
		}
		file, err := open(&d)
		if err != nil {
			return err
		}
		d.FD = len(files)
		files, message.Devices = append(files, file), append(message.Devices, d)
	}
	return n.Send(ctx, message, files...)
}

// State is what the plan needs to know of the shim of a guest with those devices; nil until the shim has spoken.
func (n *Session) State(devices []shimproto.Device) *plan.Shim {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	s := &plan.Shim{
		Attached: n.handedOver || n.state.InstanceID != "",
		Running:  n.phase != "",
		Exiting:  n.exiting,
	}
	for _, d := range devices {
		if !n.state.Takes(d.Kind) {
			s.Lacks = append(s.Lacks, string(d.Kind))
		}
	}
	slices.Sort(s.Lacks)
	s.Lacks = slices.Compact(s.Lacks)
	now := n.bootTime()
	if since := n.state.RunningSinceNS; since != 0 {
		s.RunningFor = now - time.Duration(since)
	}
	if since := n.state.TerminatingSinceNS; since != 0 {
		s.Terminating, s.TerminatingFor = true, now-time.Duration(since)
	}
	return s
}
