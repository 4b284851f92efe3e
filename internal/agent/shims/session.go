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

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/process"
)

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
	ctx := context.Background()
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
	if err := n.Send(ctx, shimproto.Hello{}); err != nil {
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
		Lacks:    lacks(devices, n.state),
	}
	now := n.bootTime()
	if since := n.state.RunningSinceNS; since != 0 {
		s.RunningFor = now - time.Duration(since)
	}
	if since := n.state.TerminatingSinceNS; since != 0 {
		s.Terminating, s.TerminatingFor = true, now-time.Duration(since)
	}
	return s
}

// lacks are the kinds of those devices that a shim does not take, sorted.
func lacks(devices []shimproto.Device, s shimproto.State) (kinds []string) {
	for _, d := range devices {
		if !s.Takes(d.Kind) {
			kinds = append(kinds, string(d.Kind))
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}
