package virtualmachine

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

// fakeSession is a session that is good for its process alone.
type fakeSession struct {
	Session
	pid int
}

func (s *fakeSession) PID() int { return s.pid }

// cluster is an API server with one VirtualMachine and its berth.
type cluster struct {
	vm  *v1alpha1.VirtualMachine // nil once it is gone
	pod *corev1.Pod              // nil if there is none
}

func (c cluster) copy() cluster { return cluster{c.vm.DeepCopy(), c.pod.DeepCopy()} }

// reader reads a cluster: by List as the cache of the node's agent has it, by Get as it is.
type reader struct {
	node *node
}

var errAPI = errors.New("the API server does not answer")

func (r reader) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	var o client.ListOptions
	for _, option := range options {
		option.ApplyToList(&o)
	}
	index, value := "", ""
	if o.FieldSelector != nil {
		index, value = o.FieldSelector.Requirements()[0].Field, o.FieldSelector.Requirements()[0].Value
	}
	c := r.node.cache
	switch list := list.(type) {
	case *v1alpha1.VirtualMachineList:
		if c.vm != nil && c.vm.Status.NodeName == r.node.name && (index == "" || value == string(c.vm.UID)) {
			list.Items = append(list.Items, *c.vm.DeepCopy())
		}
	case *corev1.PodList:
		if c.pod == nil || r.node.blind || c.pod.Spec.NodeName != r.node.name {
			return nil
		}
		owner, _ := berth.OwnerUID(c.pod)
		if index == IndexUID && value == string(c.pod.UID) || index == IndexOwner && value == string(owner) {
			list.Items = append(list.Items, *c.pod.DeepCopy())
		}
	}
	return nil
}

func (r reader) Get(_ context.Context, key types.NamespacedName, o client.Object, _ ...client.GetOption) error {
	if r.node.cutOff {
		return errAPI
	}
	c := r.node.world.cluster
	switch o := o.(type) {
	case *v1alpha1.VirtualMachine:
		if c.vm != nil && c.vm.Name == key.Name {
			c.vm.DeepCopyInto(o)
			return nil
		}
	case *corev1.Pod:
		if c.pod != nil && c.pod.Name == key.Name {
			c.pod.DeepCopyInto(o)
			return nil
		}
	}
	return apierrors.NewNotFound(schema.GroupResource{}, key.Name)
}

// Write is a StatusWriter's. The admission policy lets an agent write its own node's guests alone.
func (n *node) Write(_ context.Context, o client.Object, want, _ any) (bool, error) {
	if n.cutOff {
		return false, errAPI
	}
	vm := n.world.cluster.vm
	if vm == nil || vm.UID != o.GetUID() {
		return false, apierrors.NewNotFound(schema.GroupResource{}, o.GetName())
	}
	if vm.Status.NodeName != n.name {
		return false, apierrors.NewForbidden(schema.GroupResource{}, o.GetName(), errors.New("it is on another node"))
	}
	part, s := want.(*v1alpha1.VirtualMachineStatus), &vm.Status
	for _, c := range part.Conditions {
		if !v1alpha1.Reason(c.Reason).StandsIn(c.Type) {
			n.world.t.Fatalf("the table of reasons does not have %s in %s", c.Reason, c.Type)
		}
	}
	s.Guest, s.Disks, s.LastExit, s.ReleasedBerth, s.PendingChanges = part.Guest, part.Disks, part.LastExit, part.ReleasedBerth, part.PendingChanges
	s.Resets, s.LastReset = part.Resets, part.LastReset
	s.Kernel = part.Kernel
	s.Conditions = part.Conditions // the operator's play no part here
	return true, nil
}

// shim is a container of a berth, with the shim in it.
type shim struct {
	*hosttest.Container
	node         *node
	ended        bool
	lease        shimproto.Lease  // what it was told to serve
	has          []shimproto.Kind // what it was handed
	directKernel bool             // what it was told of the guest
	refuses      shimproto.Kind   // it takes no such device
	plan.Shim
	terminatingSince time.Duration // since boot
}

// State is that of the shim, if it has spoken to this agent.
func (s *shim) State(needs []shimproto.Device) *plan.Shim {
	if s.node.silent {
		return nil
	}
	state := s.Shim
	if slices.ContainsFunc(needs, func(d shimproto.Device) bool { return d.Kind == s.refuses }) {
		state.Lacks = []string{string(s.refuses)}
	}
	if state.Terminating {
		state.TerminatingFor = s.node.world.boot - s.terminatingSince
	}
	return &state
}

// Send is heard at once.
func (s *shim) Send(_ context.Context, m shimproto.Message, _ ...*os.File) error {
	if s.ended {
		return errors.New("the shim has ended")
	}
	switch m := m.(type) {
	case shimproto.Acted:
		s.ResetsDone, s.NMIsDone = m.Resets, m.NMIs
	case shimproto.Exit:
		s.node.world.endContainer(s.node, int32(m.Code), m.TerminationMessage())
	case shimproto.Hello, shimproto.HandOver, shimproto.Running, shimproto.State: // the room says none of them
	}
	return nil
}

// Notify is heard at once.
func (s *shim) Notify(_ context.Context, _ shimproto.Phase, reset time.Time) error {
	if s.ended {
		return errors.New("the shim has ended")
	}
	s.Running, s.ResetTold = true, reset
	return nil
}

// HandOver opens what a shim is given. A shim serves one guest in its life.
func (s *shim) HandOver(_ context.Context, h shimproto.HandOver, open func(*shimproto.Device) (*os.File, error)) error {
	if s.ended {
		return errors.New("the shim has ended")
	}
	if s.Attached {
		s.node.world.t.Fatal("a shim got a second guest")
	}
	s.directKernel = h.DirectKernel
	for _, d := range h.Devices {
		file, err := open(&d)
		if err != nil {
			return err
		}
		file.Close()
		s.has = append(s.has, d.Kind)
		if d.Lease != nil {
			s.lease = *d.Lease
		}
	}
	s.Attached = true
	return nil
}

// String is the node's name.
func (n *node) String() string { return n.name }

// node is a host with its agent and kubelet.
type node struct {
	world       *world
	name        string
	host        *hosttest.Host
	agent       *Reconciler
	shim        *shim   // of the last container; nil before the first
	cache       cluster // what the agent has heard of the API server
	cutOff      bool    // it hears and says nothing
	slow        bool    // the shim has not made its socket yet
	runtimeDown bool    // the container runtime answers nobody
	blind       bool    // its cache lacks the berth
	silent      bool    // the agent is new, and the shim has not spoken to it yet
	image       plan.ImageState
	pulled      string // the digest that the last pull asked for, "" for what the tag means
	// retained are the images whose pulls go on.
	retained []machine.Image
	// forgotten: libvirt has lost its record of the guest, which is its end.
	forgotten bool
	starts    int // of QEMU
	// giveBack brings the guest's directory back, which is lost; nil if it is not.
	giveBack func()
	// unreadable is what of the guest cannot be read at the moment, in a word of unreadables.
	unreadable map[string]bool
	events     []string // the reasons of those that the agent has raised
	// enqueue is the agent's.
	enqueue func(types.UID)
	ticks   int // how often the agent looks at the clock before amid happens; negative is never
	amid    func()
	ending  bool // what happens amid ends the guest
}

// killed ends an agent amid its work.
type killed struct{}

// clock is the agent's. It looks at it before and after each step, among others: so that is when things happen amid.
func (n *node) clock() time.Time {
	if n.ticks == 0 {
		amid := n.amid
		n.ticks, n.amid = -1, nil
		amid()
	}
	n.ticks--
	return n.world.now
}

// libvirt is a node's, with an eye on what vCPUs may do.
type libvirt struct {
	*hosttest.Libvirt
	node *node
}

// Resume lets them run in the container of a shim that lives, and nowhere else.
func (l libvirt) Resume(ctx context.Context, uuid string) error {
	for _, q := range l.node.host.QEMUs(uuid) {
		if !l.node.containerAlive() || q.Container != l.node.shim.ContainerID() || len(l.node.host.QEMUs(uuid)) > 1 {
			l.node.world.t.Fatalf("the vCPUs of %+v were to run outside of the berth's container", q)
		}
	}
	return l.Libvirt.Resume(ctx, uuid)
}

// unreadables are what a failing disk of the node may hide.
var unreadables = []string{"directory", "disks", "image", "seed"}

var errUnreadable = errors.New("input/output error")

// disk is a node's store, on a disk that may fail.
type disk struct {
	*hosttest.Store
	node *node
}

func (d disk) Has(uid string) (bool, error) {
	if d.node.unreadable["directory"] {
		return false, errUnreadable
	}
	return d.Store.Has(uid)
}

func (d disk) Disks(uid string) ([]store.GuestDisk, error) {
	if d.node.unreadable["disks"] {
		return nil, errUnreadable
	}
	return d.Store.Disks(uid)
}

func (d disk) HasSeed(uid string) (bool, error) {
	if d.node.unreadable["seed"] {
		return false, errUnreadable
	}
	return d.Store.HasSeed(uid)
}

// CreatePaused counts starts.
func (l libvirt) CreatePaused(ctx context.Context, xml string) error {
	l.node.starts++
	return l.Libvirt.CreatePaused(ctx, xml)
}

// Connect is that of Shims.
func (n *node) Connect(ctx context.Context, _, pod types.UID) (Session, plan.Container, error) {
	c, found, err := n.host.Runtime.Container(ctx, string(pod), berth.Container)
	switch {
	case err != nil:
		return nil, plan.ContainerUnknown, err
	case !found:
		return nil, plan.ContainerAbsent, nil
	case c.State != runtime.Running:
		return nil, plan.ContainerDead, nil
	}
	if n.slow {
		return nil, plan.ContainerAlive, shimproto.ErrAbsent
	}
	if p, _, err := n.host.Runtime.Pod(ctx, string(pod)); err == nil && p.Unsupported() != "" {
		return nil, plan.ContainerAlive, runtime.UnsupportedError(p.Unsupported())
	}
	return n.shim, plan.ContainerAlive, nil
}

// The images of a node: one that each guest needs.
func (n *node) State(_ types.UID, i machine.Image, _ Keys) (plan.Image, error) {
	if n.unreadable["image"] {
		return plan.Image{}, errUnreadable
	}
	if n.image != plan.ImageReady {
		return plan.Image{State: n.image}, nil
	}
	return plan.Image{State: plan.ImageReady, Digest: digest}, nil
}

// Start begins a pull.
func (n *node) Start(_ types.UID, _ string, i machine.Image, _ Keys) {
	n.image, n.pulled = plan.ImagePulling, i.Digest
}

// Retain notes the images whose pulls go on.
func (n *node) Retain(_ types.UID, images []machine.Image) { n.retained = images }

// facts are those of a host.
type facts struct{}

func (facts) Facts() (libvirtd.HostFacts, bool, error) {
	return libvirtd.HostFacts{Q35: "pc-q35-7.2", MachineTypes: []string{"pc-q35-7.2"}}, true, nil
}
func (facts) IsOurs(context.Context, string) bool { return true }
func (facts) Wake()                               {}

// newMetrics are metrics that nobody else has.
func newMetrics() *Metrics {
	counters := func(name string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "x"}, labels)
	}
	return &Metrics{
		Steps:        prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "steps", Help: "x"}, []string{"step"}),
		StepFailures: counters("failures", "step", "reason"), Exits: counters("exits", "reason"),
		GuestAgentFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "guest_agent_failures_total", Help: "x"}), States: NewStates(),
	}
}

// startAgent starts the agent, anew if there was one: it knows nothing then.
func (n *node) startAgent() {
	n.ticks, n.silent = -1, n.shim != nil
	n.agent = New(context.Background(), Options{
		Node: n.name, Guests: n.world.guests,
		Host: Host{
			Libvirt: libvirt{n.host.Libvirt, n}, Backups: libvirt{n.host.Libvirt, n}, Processes: n.host.Processes, Cgroups: n.host.Cgroups, Store: disk{n.host.Store, n}, Consoles: n.host.Consoles,
			Network: n.host.Network, Volumes: claims{n.host.Volumes}, ReadFile: n.host.ReadFile, Shims: n, Images: n, Facts: facts{},
			OpenGuestAgent: func(_ context.Context, pid, pts int) (GuestAgent, error) { return n.host.OpenGuestAgent(pid, pts) },
		},
		Partition: func(string) string { return "" }, HoldBackPulls: func() func() { return func() {} },
		Cache: reader{n}, Live: reader{n}, Status: n,
		Events: recorder{n}, Metrics: n.world.metrics, Enqueue: n.enqueue, Now: n.clock,
	})
}

// claims are volumes whose workers are done at once.
type claims struct{ *hosttest.Volumes }

func (c claims) State(vm types.UID) (list []plan.Volume, err error) {
	attached, err := c.Attached(string(vm))
	for _, a := range attached {
		list = append(list, plan.Volume{Disk: a.Disk, Claim: types.UID(a.Claim), Made: a.Made, Size: a.Size, Target: a.Target, Capacity: a.Capacity, Seed: a.Seed})
	}
	return list, err
}

func (c claims) Start(vm types.UID, disk string, r worker.Request, _ sandbox.Job) {
	made := volume.Made{Size: r.Capacity, Target: r.Capacity, Capacity: r.Capacity}
	attached, _ := c.Attached(string(vm)) // else RecordMade fails
	for _, a := range attached {
		if a.Disk == disk && a.Made {
			made.Size = a.Size
		}
	}
	if err := c.RecordMade(string(vm), disk, made); err != nil {
		panic(err)
	}
}

func (c claims) Grown(uid string, a volume.Attached, size int64) error {
	return c.RecordMade(uid, a.Disk, volume.Made{Size: size, Target: a.Target, Capacity: a.Capacity})
}

// recorder keeps the reasons of Events.
type recorder struct{ node *node }

func (r recorder) Eventf(_, _ apiruntime.Object, _, reason, _, _ string, _ ...any) {
	r.node.events = append(r.node.events, reason)
}

// fatal is what a world needs of a test.
type fatal interface {
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}
