package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/host"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/kube"
)

// workers is how many guests are looked at side by side.
const workers = 8

// Options configure an agent.
type Options struct {
	// Node is the name of the node that the agent runs on.
	Node string
	// Version is the agent's own.
	Version string
	// Acceleration is how guests run here.
	Acceleration v1alpha1.Acceleration
	// StateDir holds images and disks; RunDir what is gone with a reboot.
	StateDir, RunDir string
	// LibvirtDir holds libvirt's sockets; RuntimeSocket is the container runtime's.
	LibvirtDir, RuntimeSocket string
	// InsecureRegistries are spoken to by plain HTTP; host:port.
	InsecureRegistries []string
	// MaxImageSize limits what is unpacked from an image, in bytes.
	MaxImageSize int64
	// Images say how long images stay that no guest uses.
	Images store.Limits
	// GuestSubnet is the private subnet between a berth and its guest: its first address is the berth's, its second the guest's.
	GuestSubnet netip.Prefix
	// MetricsAddress and HealthAddress are host:port; "0" serves nothing.
	MetricsAddress, HealthAddress string
}

// Agent runs the guests of one node.
type Agent struct {
	Options
	hands
	host   *host.Reconciler
	client client.Client // from the cache: this node's guests and berths
	live   client.Reader // from the API server
	status *kube.StatusWriter
	events events.EventRecorder
	meters *meters
	now    func() time.Time

	queue queue // of guests, by their VirtualMachine's UID
}

// queue is what a loop works off.
type queue = workqueue.TypedRateLimitingInterface[types.UID]

// Names of indices in the cache.
const (
	indexUID   = "uid"
	indexOwner = "owner"
)

// Run runs the agent until ctx ends. Guests run on.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	mgr, err := ctrl.NewManager(kube.Patient(config), ctrl.Options{
		Scheme: kube.Scheme(),
		Metrics: server.Options{
			BindAddress: o.MetricsAddress, SecureServing: true, FilterProvider: kube.GuardMetrics,
		},
		HealthProbeBindAddress: o.HealthAddress,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Pod{}:                  {Field: fields.OneTermEqualSelector("spec.nodeName", o.Node), Transform: slimPod},
				&v1alpha1.VirtualMachine{}:     {Field: fields.OneTermEqualSelector("status.nodeName", o.Node)},
				&v1alpha1.VirtualMachineHost{}: {Field: fields.OneTermEqualSelector("metadata.name", o.Node)},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("making manager: %w", err)
	}
	a := &Agent{
		Options: o, client: mgr.GetClient(), live: mgr.GetAPIReader(),
		status: &kube.StatusWriter{Client: mgr.GetClient(), Manager: kube.AgentManager},
		events: mgr.GetEventRecorder("berth-agent"), now: time.Now, meters: newMeters(),
	}
	if a.hands, err = a.takeHands(ctx); err != nil {
		return err
	}
	a.host = host.New(ctx, host.Options{
		Node: o.Node, Version: o.Version, Acceleration: o.Acceleration, UnifiedCgroups: a.cgroups.Unified(),
		Client: a.client, Libvirt: a.libvirt, Store: a.store, VirtualMachine: a.virtualMachine, FindQEMU: process.Find, Now: a.now,
	})
	if err := a.meters.register(metrics.Registry, o.StateDir, a.libvirt.Connected); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if err := a.index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if err := a.setup(mgr); err != nil {
		return err
	}
	if err := mgr.AddHealthzCheck("healthz", healthz.Ping); err != nil {
		return fmt.Errorf("adding healthz: %w", err)
	}
	if err := mgr.AddReadyzCheck("readyz", healthz.Ping); err != nil {
		return fmt.Errorf("adding readyz: %w", err)
	}
	return mgr.Start(ctx)
}

func (a *Agent) index(ctx context.Context, indexer client.FieldIndexer) error {
	err := indexer.IndexField(ctx, &v1alpha1.VirtualMachine{}, indexUID, func(o client.Object) []string {
		return []string{string(o.GetUID())}
	})
	if err != nil {
		return fmt.Errorf("indexing guests: %w", err)
	}
	err = indexer.IndexField(ctx, &corev1.Pod{}, indexUID, func(o client.Object) []string {
		return []string{string(o.GetUID())}
	})
	if err != nil {
		return fmt.Errorf("indexing berths: %w", err)
	}
	err = indexer.IndexField(ctx, &corev1.Pod{}, indexOwner, func(o client.Object) []string {
		if uid, ok := berth.OwnerUID(o); ok {
			return []string{string(uid)}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("indexing berths: %w", err)
	}
	return nil
}

// setup makes one loop whose key is a guest's UID: the API's watches and the host's events feed the same queue.
func (a *Agent) setup(mgr ctrl.Manager) error {
	loop, err := controller.NewTyped("guest", mgr, controller.TypedOptions[types.UID]{
		MaxConcurrentReconciles: workers,
		Reconciler:              reconcile.TypedFunc[types.UID](a.reconcile),
		// A step that fails is tried again soon: most failures here are races with kubelet.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](20*time.Millisecond, 10*time.Second),
	})
	if err != nil {
		return fmt.Errorf("making the guests' loop: %w", err)
	}
	for _, s := range []source.TypedSource[types.UID]{
		source.TypedKind(mgr.GetCache(), &v1alpha1.VirtualMachine{}, onGuest[*v1alpha1.VirtualMachine](guestUID)),
		source.TypedKind(mgr.GetCache(), &corev1.Pod{}, onGuest[*corev1.Pod](berthUID)),
		source.TypedFunc[types.UID](a.listen),
	} {
		if err := loop.Watch(s); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	if err := mgr.Add(manager.RunnableFunc(a.pulls.GarbageCollect)); err != nil {
		return fmt.Errorf("adding the collector of images: %w", err)
	}
	if err := mgr.Add(kube.Lean{Each: 20 * time.Second}); err != nil {
		return fmt.Errorf("adding what makes the process small: %w", err)
	}
	return a.host.Setup(mgr)
}

func (a *Agent) reconcile(ctx context.Context, uid types.UID) (ctrl.Result, error) {
	wake, err := a.sync(ctrl.LoggerInto(ctx, ctrl.LoggerFrom(ctx).WithValues("guest", uid)), uid)
	return kube.Outcome(err, wake)
}

// enqueue has a guest looked at. It never blocks, so every event handler may call it.
func (a *Agent) enqueue(uid types.UID) {
	if uid != "" {
		a.queue.Add(uid)
	}
}

// ownerOf is the guest whose berth a pod is.
func (a *Agent) ownerOf(pod types.UID) (types.UID, bool) {
	var pods corev1.PodList
	if err := a.client.List(a.life, &pods, client.MatchingFields{indexUID: string(pod)}); err != nil || len(pods.Items) == 0 {
		return "", false
	}
	return berth.OwnerUID(&pods.Items[0])
}
