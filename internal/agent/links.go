package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
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

// errShimAbsent says that the shim has not made its socket yet.
var errShimAbsent = errors.New("the shim is not ready yet")

// runtimeError says that the berth is run by something that Berth cannot work with, and by what.
type runtimeError string

func (e runtimeError) Error() string { return "the berth is run by " + string(e) }

// link is the connection with the shim of one container, for as long as that lives.
type link struct {
	container string
	shim      *process.Handle
	group     cgroup.Group
	conn      *shimproto.Agent

	mu    sync.Mutex
	known bool // the shim has spoken
	state shimproto.State
	// What was said to it and is not in its state.
	attached bool
	phase    shimproto.Phase
	exiting  bool
}

// links holds the link of each berth on the node.
type links struct {
	mu    sync.Mutex
	byPod map[types.UID]*link
}

// of returns the link of a berth whose shim is alive, or nil.
func (l *links) of(pod types.UID) *link {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byPod[pod]
}

func (l *links) put(pod types.UID, n *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.byPod[pod] = n
}

func (l *links) drop(pod types.UID, n *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byPod[pod] == n {
		delete(l.byPod, pod)
	}
}

// connect finds the container of a berth and takes its shim's socket. It knows
// the shim by facts of the host: what the runtime says of the container, and in
// which cgroup its process is. A nil link comes with the container's state.
func (a *Agent) connect(ctx context.Context, vm, pod types.UID) (*link, plan.Container, error) {
	if n := a.links.of(pod); n != nil && n.shim.Alive() {
		return n, plan.ContainerAlive, nil
	}
	found, exists, err := a.runtime.Container(ctx, string(pod), berth.Container)
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
	if n, err := a.foreignRuntime(ctx, pod); err != nil {
		return nil, plan.ContainerUnknown, err
	} else if n != "" {
		return nil, plan.ContainerAlive, runtimeError(n)
	}
	shim, err := process.Open(found.PID)
	if errors.Is(err, unix.ESRCH) { // it has ended, and the runtime will not say so before QEMU has left its cgroup
		return nil, plan.ContainerDead, nil
	}
	if err != nil {
		return nil, plan.ContainerUnknown, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("opening the shim's process: %w", err))
	}
	n, err := a.take(found.PID, found.ID, pod, shim)
	if err != nil {
		_ = shim.Close()
		if errors.Is(err, shimproto.ErrAbsent) {
			return nil, plan.ContainerAlive, errShimAbsent
		}
		return nil, plan.ContainerUnknown, err
	}
	a.links.put(pod, n)
	go a.read(vm, pod, n) //nolint:gosec,contextcheck // it outlives the step, and ends with the link
	return n, plan.ContainerAlive, nil
}

// foreignRuntime is what runs a berth if Berth cannot work with it, "" if it can.
func (a *Agent) foreignRuntime(ctx context.Context, pod types.UID) (string, error) {
	p, exists, err := a.runtime.Pod(ctx, string(pod))
	if err != nil {
		return "", err
	}
	if !exists {
		return "", fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, errors.New("the runtime does not know the berth's sandbox"))
	}
	return p.Foreign(), nil
}

func (a *Agent) take(pid int, container string, pod types.UID, shim *process.Handle) (*link, error) {
	group, err := cgroup.Of(pid)
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("reading the shim's cgroup: %w", err))
	}
	if p, c, ok := group.Container(); !ok || p != string(pod) || c != container || !shim.Alive() {
		return nil, fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf(
			"process %d is in cgroup %s, not in that of container %s of pod %s", pid, group, container, pod))
	}
	conn, err := shimproto.Take(shim.FD())
	if err != nil {
		return nil, err
	}
	return &link{container: container, shim: shim, group: group, conn: conn}, nil
}

// read hears a shim out until it ends, and tells the loop of everything that it says, its end included.
func (a *Agent) read(vm, pod types.UID, n *link) {
	ctx := context.Background()
	log := ctrl.Log.WithValues("vm", vm, "berth", pod)
	go func() { // the socket stays open while the shim's descriptors are inherited: only its pidfd tells
		if err := n.shim.Wait(); err != nil {
			log.Error(err, "Lost sight of a shim")
		}
		a.links.drop(pod, n)
		_ = n.conn.Close()
		_ = n.shim.Close()
		a.enqueue(vm)
	}()
	if err := n.send(ctx, shimproto.Hello{}); err != nil {
		log.Info("Lost a shim", "cause", err.Error())
	}
	err := n.conn.Receive(func(s shimproto.State) {
		n.mu.Lock()
		n.known, n.state = true, s
		n.mu.Unlock()
		a.enqueue(vm)
	})
	if err != nil && !errors.Is(err, io.EOF) && n.shim.Alive() { // at its end the socket tells before the pidfd does
		log.Info("Shim does not keep to the protocol", "cause", err.Error())
		a.meters.protocolErrors.Inc()
		a.links.drop(pod, n)
		a.enqueue(vm)
	}
}

// send speaks to the shim and notes what was said, as its answer takes a moment.
func (n *link) send(ctx context.Context, m shimproto.Message, files ...*os.File) error {
	if err := n.conn.Send(ctx, m, files...); err != nil {
		return fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, fmt.Errorf("speaking to the shim: %w", err))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch m := m.(type) {
	case shimproto.HandOver:
		n.attached = true
	case shimproto.Running:
		n.phase = m.Phase
	case shimproto.Exit:
		n.exiting = true
	case shimproto.Hello, shimproto.State: // its answer tells all
	}
	return nil
}

// spoken is what the shim has said last.
func (n *link) spoken() shimproto.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// shimState is what the plan needs to know of the shim of a VM, which is nil if there is none any more; nil until it has spoken.
func (n *link) shimState(vm *v1alpha1.VirtualMachine) *plan.Shim {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.known {
		return nil
	}
	s := &plan.Shim{
		Attached: n.attached || n.state.InstanceID != "",
		Running:  n.phase != "",
		Exiting:  n.exiting,
	}
	if vm != nil {
		s.Lacks = lacks(vm, n.state)
	}
	now := bootTime()
	if since := n.state.RunningSinceNS; since != 0 {
		s.RunningFor = now - time.Duration(since)
	}
	if since := n.state.TerminatingSinceNS; since != 0 {
		s.Terminating, s.TerminatingFor = true, now-time.Duration(since)
	}
	return s
}

// bootTime is the time since boot; it never jumps.
func bootTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail: the clock exists since Linux 2.6.39
	return time.Duration(t.Nano())
}
