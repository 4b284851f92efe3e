package host

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/kube"
)

// Libvirt is what a Reconciler asks of libvirtd.
type Libvirt interface {
	Root() (string, error)
	States(ctx context.Context) (map[string]libvirtd.Domain, error)
	Domain(ctx context.Context, uuid string) (libvirtd.Domain, error)
	HostFacts(ctx context.Context) (libvirtd.HostFacts, error)
}

// Store is what a Reconciler asks of the store of images and disks.
type Store interface {
	Check() error
	Identify(want string) (id string, err error)
	Images() ([]store.Image, error)
	Usage() (size int64, percent int32, err error)
	Guests
}

// Guests are those that have disks on this node.
type Guests interface {
	Has(uid string) (bool, error)
	List() ([]store.Guest, error)
	Remove(uid string) error
	Strays
}

// Strays are the disks that nobody knows any more.
type Strays interface {
	MarkStray(uid string) (since time.Time, err error)
	UnmarkStray(uid string) error
	Allocated(uid string) (int64, error)
}

// Options are what a Reconciler knows and uses.
type Options struct {
	Node, Version  string // the node's name, which is its VirtualMachineHost's, and the agent's version
	Acceleration   v1alpha1.Acceleration
	CheckVolumes   func(context.Context) error // tells why volumes cannot be attached
	UnifiedCgroups bool                        // the host uses cgroup v2
	// RequireConfinement: no guest starts where QEMU is not confined by seccomp and a security driver.
	RequireConfinement bool
	// KeepStrayDisks is for how long disks are kept whose VirtualMachine nobody knows; 0 is for ever.
	KeepStrayDisks time.Duration
	Client         client.Client // reads from the cache, which holds this node's objects
	Libvirt        Libvirt
	Store          Store
	// VirtualMachine finds one by its UID, nil if there is none, and FindQEMU the processes of its guest.
	VirtualMachine func(ctx context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error)
	FindQEMU       func(uuid string) ([]process.Process, error)
	// PodOf is the UID of the pod in whose container a process is, "" if it is in none.
	PodOf func(pid int) (types.UID, error)
	Now   func() time.Time
}

// Reconciler keeps the VirtualMachineHost of one node true.
type Reconciler struct {
	Options
	status     *kube.StatusWriter
	facts      factsCache
	strayBytes atomic.Int64
	wakes      chan event.GenericEvent
	background context.Context // ends with the agent: queries of libvirt outlive a reconcile
}

// New makes a Reconciler. What it does in the background ends with ctx.
func New(ctx context.Context, o Options) *Reconciler {
	return &Reconciler{
		Options:    o,
		status:     &kube.StatusWriter{Client: o.Client, Manager: kube.AgentManager},
		facts:      factsCache{disconnected: errors.New("not connected to libvirtd yet"), since: o.Now()},
		wakes:      make(chan event.GenericEvent, 1),
		background: ctx,
	}
}

// Setup registers the reconciler and its watches, and enqueues the host.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	r.Wake()
	return ctrl.NewControllerManagedBy(mgr).Named("host").
		For(&v1alpha1.VirtualMachineHost{}).WatchesRawSource(source.Channel(r.wakes, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// Wake enqueues the host. It never blocks, and may be called from anywhere.
func (r *Reconciler) Wake() {
	select {
	case r.wakes <- event.GenericEvent{Object: r.object()}:
	default: // the host is in the queue already
	}
}

func (r *Reconciler) object() *v1alpha1.VirtualMachineHost {
	return &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: r.Node}}
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch;create

// Reconcile reports what this host is and has, and whether guests can start on it.
func (r *Reconciler) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	seen, err := r.observe(ctx)
	if err != nil {
		return kube.Outcome(err, 0)
	}
	if seen.host.UID == "" {
		if err := r.Client.Create(ctx, seen.host); apierrors.IsAlreadyExists(err) {
			return kube.Outcome(nil, time.Second) // the cache is behind
		} else if err != nil {
			return kube.Outcome(fmt.Errorf("creating VirtualMachineHost %s: %w", r.Node, err), 0)
		}
	}
	if seen.storeErr == nil {
		err = r.removeStrays(ctx, seen.strays)
	}
	wake, e := r.report(ctx, seen)
	return kube.Outcome(errors.Join(err, e), wake)
}
