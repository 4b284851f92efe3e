package shims

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
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

// Runtime is what the container runtime says of a berth, as runtime.Runtime does.
type Runtime interface {
	Container(ctx context.Context, podUID, name string) (c runtime.Container, found bool, err error)
	Pod(ctx context.Context, podUID string) (p runtime.Pod, found bool, err error)
}

// Options are what sessions need of others.
type Options struct {
	Runtime Runtime
	// Wake enqueues a guest, by the UID of its VirtualMachine: its shim has sent a message, or has ended. It does not block.
	Wake func(vm types.UID)
	// BootTime is the time since boot, by CLOCK_BOOTTIME as in shimproto.State.
	BootTime func() time.Duration
	// CountProtocolError counts a shim that did not keep to the protocol.
	CountProtocolError func()
}

// Sessions are those with the shims of all berths on the node.
type Sessions struct {
	Options
	// protocolErrorBackoff is for how long nobody talks with a shim that violated the protocol: a tenant's program could have
	// the agent connect again and again. Meanwhile its session stands for it, with one pidfd.
	protocolErrorBackoff time.Duration

	byPod sync.Map // *Session by the berth's types.UID
}

// New returns sessions, of which there are none yet.
func New(o Options) *Sessions {
	return &Sessions{Options: o, protocolErrorBackoff: 5 * time.Minute}
}

// session returns the session with a berth's shim, or nil.
func (s *Sessions) session(pod types.UID) *Session {
	n, _ := s.byPod.Load(pod)
	session, _ := n.(*Session)
	return session
}

// Connect returns the session with the shim of a VirtualMachine's berth. Without one it finds the berth's container and
// takes its shim's socket. It knows the shim by facts of the host: what the runtime says of the container, and in which
// cgroup its process is. A nil Session comes with the container's state; one that is alive has an error nevertheless,
// such as shimproto.ErrAbsent, shimproto.ErrBroken or a runtime.UnsupportedError.
func (s *Sessions) Connect(ctx context.Context, vm, pod types.UID) (*Session, plan.Container, error) {
	if n := s.session(pod); n != nil && n.Alive() {
		if n.protocolError.Load() {
			return nil, plan.ContainerAlive, shimproto.ErrBroken
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
		return nil, plan.ContainerUnknown, fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("the container runtime reports state UNKNOWN for container %s", found.ID))
	case found.State != runtime.Running:
		return nil, plan.ContainerDead, nil
	}
	p, exists, err := s.Runtime.Pod(ctx, string(pod))
	switch {
	case err != nil:
		return nil, plan.ContainerUnknown, err
	case !exists:
		return nil, plan.ContainerUnknown, fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, errors.New("the container runtime has no sandbox for the berth"))
	case p.Unsupported() != "":
		return nil, plan.ContainerAlive, runtime.UnsupportedError(p.Unsupported())
	}
	shim, err := process.Open(found.PID)
	if errors.Is(err, unix.ESRCH) { // it has ended, and the runtime will not say so before QEMU has left its cgroup
		return nil, plan.ContainerDead, nil
	}
	if err != nil {
		return nil, plan.ContainerUnknown, fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("opening the shim's process: %w", err))
	}
	n, err := openSession(shim, pod, found.ID)
	broken := errors.Is(err, shimproto.ErrBroken)
	if err != nil && !broken {
		_ = shim.Close()
		if errors.Is(err, shimproto.ErrAbsent) {
			return nil, plan.ContainerAlive, err
		}
		return nil, plan.ContainerUnknown, err
	}
	n.bootTime = s.BootTime
	s.byPod.Store(pod, n)
	go s.await(vm, pod, n)
	if broken {
		s.endTalk(vm, pod, n, err)
		return nil, plan.ContainerAlive, shimproto.ErrBroken
	}
	go s.serve(vm, pod, n) //nolint:gosec,contextcheck // it outlives the call, and ends with the session
	return n, plan.ContainerAlive, nil
}

// openSession proves that a process is in the container, and takes its socket. With shimproto.ErrBroken comes a session
// without one.
func openSession(shim *process.Handle, pod types.UID, container string) (*Session, error) {
	group, err := cgroup.Of(shim.PID())
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("reading the shim's cgroup: %w", err))
	}
	if p, c, ok := group.Container(); !ok || p != string(pod) || c != container || !shim.Alive() {
		return nil, fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf(
			"process %d is in cgroup %s, not in that of container %s of pod %s", shim.PID(), group, container, pod))
	}
	conn, err := shimproto.Take(shim.FD())
	if err != nil && !errors.Is(err, shimproto.ErrBroken) {
		return nil, err
	}
	return &Session{container: container, shim: shim, group: group, conn: conn}, err
}

// Session is the connection with the shim of one container, for as long as that lives.
type Session struct {
	container     string
	shim          *process.Handle
	group         cgroup.Group
	conn          *shimproto.Agent
	bootTime      func() time.Duration
	protocolError atomic.Bool // the shim violated the protocol

	mu         sync.Mutex
	stateKnown bool // the shim has sent its State
	state      shimproto.State
	// What was sent to it and is not in its state yet.
	handedOver bool
	phase      shimproto.Phase
	resetTold  time.Time
	acted      shimproto.Acted
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
		return nil, fault.NewTransient(v1alpha1.ReasonNetworkFailed, fmt.Errorf("opening the berth's network namespace: %w", err))
	}
	if !n.Alive() {
		_ = ns.Close()
		return nil, fault.NewTransient(v1alpha1.ReasonNetworkFailed, errors.New("the berth's container has ended"))
	}
	return ns, nil
}

// await forgets a session when its shim has ended, and wakes its guest. The socket stays open while the shim's descriptors
// are inherited: only its pidfd tells.
func (s *Sessions) await(vm, pod types.UID, n *Session) {
	if err := n.shim.Wait(); err != nil && !n.protocolError.Load() {
		ctrl.Log.Error(err, "Waiting for shim process", "vm", vm, "berth", pod)
	}
	s.byPod.CompareAndDelete(pod, n)
	if n.conn != nil {
		_ = n.conn.Close()
	}
	_ = n.shim.Close()
	s.Wake(vm)
}

// serve receives a shim's messages until it ends, and wakes its guest at each that says something new.
func (s *Sessions) serve(vm, pod types.UID, n *Session) {
	if err := n.Send(context.Background(), shimproto.Hello{}); err != nil {
		ctrl.Log.Info("Sending Hello to shim failed", "vm", vm, "berth", pod, "err", err.Error())
	}
	err := n.conn.Receive(func(state shimproto.State) {
		n.mu.Lock()
		news := !n.stateKnown || !reflect.DeepEqual(n.state, state)
		n.stateKnown, n.state = true, state
		n.mu.Unlock()
		if news {
			s.Wake(vm)
		}
	})
	if err != nil && !errors.Is(err, io.EOF) && n.Alive() { // at its end the socket tells before the pidfd does
		s.endTalk(vm, pod, n, err)
	}
}

// endTalk leaves a shim alone that violated the protocol. Its pidfd tells of its end meanwhile.
func (s *Sessions) endTalk(vm, pod types.UID, n *Session, why error) {
	ctrl.Log.Info("Shim violated the protocol", "vm", vm, "berth", pod, "err", why.Error())
	s.CountProtocolError()
	n.protocolError.Store(true)
	time.AfterFunc(s.protocolErrorBackoff, func() { _ = n.shim.Close() }) // which ends await
	s.Wake(vm)
}

// Send sends a message to the shim and notes what was sent, as its answer takes a moment.
func (n *Session) Send(ctx context.Context, m shimproto.Message, files ...*os.File) error {
	if err := n.conn.Send(ctx, m, files...); err != nil {
		return fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("sending to the shim: %w", err))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch m := m.(type) {
	case shimproto.HandOver:
		n.handedOver = true
	case shimproto.Running:
		n.phase = m.Phase
	case shimproto.Acted:
		n.acted = m
	case shimproto.Exit:
		n.exiting = true
	case shimproto.Hello, shimproto.State: // its answer tells all
	}
	return nil
}

// Notify tells the shim whether the guest's vCPUs run, and when it was last reset if it was.
func (n *Session) Notify(ctx context.Context, phase shimproto.Phase, reset time.Time) error {
	m := shimproto.Running{Phase: phase}
	if !reset.IsZero() {
		m.LastResetNS = int64(n.bootTime() - time.Since(reset))
	}
	err := n.Send(ctx, m)
	if err == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.resetTold = reset
	}
	return err
}

// HandOver hands those of a guest's devices to the shim that it takes, each with the descriptor that open returns, which
// may also fill in what the device needs to have said. Of the others State tells.
func (n *Session) HandOver(ctx context.Context, h shimproto.HandOver, open func(*shimproto.Device) (*os.File, error)) error {
	n.mu.Lock()
	state := n.state
	n.mu.Unlock()
	devices := h.Devices
	h.InstanceID, h.Devices = n.container, nil
	var files []*os.File
	defer func() { shimproto.CloseAll(files) }()
	for _, d := range devices {
		if !state.Takes(d.Kind) {
			continue
		}
		file, err := open(&d)
		if err != nil {
			return err
		}
		d.FD = len(files)
		files, h.Devices = append(files, file), append(h.Devices, d)
	}
	return n.Send(ctx, h, files...)
}

// State is what the plan needs to know of the shim of a guest with those devices; nil until the shim has sent its State.
func (n *Session) State(devices []shimproto.Device) *plan.Shim {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.stateKnown {
		return nil
	}
	s := &plan.Shim{
		Attached:   n.handedOver || n.state.InstanceID != "",
		Running:    n.phase != "",
		ResetTold:  n.resetTold,
		Exiting:    n.exiting,
		Draining:   n.state.Takes(shimproto.KindExit) && !n.state.ConsoleClosed, // without, nothing is waited for
		GuestTools: n.state.GuestTools, ExitText: n.state.ExitText,
		Resets: n.state.Resets, ResetsDone: max(n.state.ResetsDone, n.acted.Resets),
		NMIs: n.state.NMIs, NMIsDone: max(n.state.NMIsDone, n.acted.NMIs),
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
