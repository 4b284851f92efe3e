package host

import (
	"context"
	"errors"
	"fmt"
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
	Domains(ctx context.Context) ([]libvirtd.Summary, error)
	Domain(ctx context.Context, uuid string) (libvirtd.Domain, error)
	HostFacts(ctx context.Context) (libvirtd.HostFacts, error)
}

// Store is what a Reconciler asks of the store of images and disks.
type Store interface {
	Check() error
	Has(uid string) (bool, error)
	List() ([]store.Guest, error)
	Images() ([]store.Image, error)
}

// Options are what a Reconciler knows and uses.
type Options struct {
	Node, Version  string // the node's name, which is its VirtualMachineHost's, and the agent's version
	Acceleration   v1alpha1.Acceleration
	UnifiedCgroups bool          // the host uses cgroup v2
	Client         client.Client // reads from the cache, which holds this node's objects
	Libvirt        Libvirt
	Store          Store
	// VirtualMachine finds one by its UID, nil if there is none, and FindQEMU the processes of its guest.
	VirtualMachine func(ctx context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error)
	FindQEMU       func(uuid string) ([]process.Process, error)
	Now            func() time.Time
}

// Reconciler keeps the VirtualMachineHost of one node true.
type Reconciler struct {
	Options
	status *kube.StatusWriter
	facts  factsCache
	wakes  chan event.GenericEvent
	life   context.Context // ends with the agent: questions to libvirt outlive a reconcile
}

// New makes a Reconciler. What it does in the background ends with ctx.
func New(ctx context.Context, o Options) *Reconciler {
	return &Reconciler{
		Options: o,
		status:  &kube.StatusWriter{Client: o.Client, Manager: kube.AgentManager},
		facts:   factsCache{away: errors.New("libvirtd was not reached yet"), since: o.Now()},
		wakes:   make(chan event.GenericEvent, 1),
		life:    ctx,
	}
}

// Setup registers the reconciler, its watches, and a first look.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	r.Wake()
	return ctrl.NewControllerManagedBy(mgr).Named("host").
		For(&v1alpha1.VirtualMachineHost{}).WatchesRawSource(source.Channel(r.wakes, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// Wake has the host looked at. It never blocks, and may be called by anyone at any time.
func (r *Reconciler) Wake() {
	select {
	case r.wakes <- event.GenericEvent{Object: r.object()}:
	default: // the one before it was not heard yet, and does for both
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
			return kube.Outcome(fmt.Errorf("making host %s: %w", r.Node, err), 0)
		}
	}
	wake, err := r.report(ctx, seen)
	return kube.Outcome(err, wake)
}
