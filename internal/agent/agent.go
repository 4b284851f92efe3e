package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/virtualmachine"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/image"
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
	// RequireConfinement: no guest starts here unless libvirt confines QEMU by seccomp and by AppArmor or SELinux.
	RequireConfinement bool
	// KeepStrayDisks is for how long disks are kept whose VirtualMachine nobody knows; 0 is for ever.
	KeepStrayDisks time.Duration
	// StateDir holds images and disks; RunDir what is gone with a reboot.
	StateDir, RunDir string
	// LibvirtDir holds libvirt's sockets; RuntimeSocket is the container runtime's.
	LibvirtDir, RuntimeSocket string
	// InsecureRegistries are spoken to by plain HTTP; host:port.
	InsecureRegistries []string
	// Registries have mirrors, or certificates of their own.
	Registries image.Registries
	// MaxImageSize limits what is unpacked from an image, in bytes.
	MaxImageSize int64
	// Pulls say how many images are pulled at once, Reserve what they leave free of StateDir's file system.
	Pulls   pulls.Limits
	Reserve store.Reserve
	// Images say how long images stay that no guest uses.
	Images store.Limits
	// MaxUnsizedDisk is the most that a disk may have whose spec has no size, in bytes.
	MaxUnsizedDisk int64
	// GuestSubnet is the private subnet between a berth and its guest: its first address is the berth's, its second the guest's.
	GuestSubnet netip.Prefix
	// GuestProgram is the path of the program that guests are offered.
	GuestProgram string
	// MetricsAddress and HealthAddress are host:port; "0" serves nothing.
	MetricsAddress, HealthAddress string
}

// What an agent's token may do. A ValidatingAdmissionPolicy of the chart binds the writes to its node; the reads cannot be bound,
// so nothing secret is in what it reads.
//
// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines;virtualmachineimages,verbs=get;list;watch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines/status,verbs=patch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch;update
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// Run runs the agent until ctx ends. Guests run on.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	mgr, err := ctrl.NewManager(kube.RetryReads(config), ctrl.Options{
		Scheme: kube.Scheme(),
		Metrics: server.Options{
			BindAddress: o.MetricsAddress, SecureServing: true, FilterProvider: kube.MetricsFilter,
		},
		HealthProbeBindAddress: o.HealthAddress,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Pod{}:                  {Field: fields.OneTermEqualSelector("spec.nodeName", o.Node), Transform: trimPod},
				&v1alpha1.VirtualMachine{}:     {Field: fields.OneTermEqualSelector("status.nodeName", o.Node), Transform: trimVM},
				&v1alpha1.VirtualMachineHost{}: {Field: fields.OneTermEqualSelector("metadata.name", o.Node)},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("making the controller manager: %w", err)
	}
	w, err := wire(ctx, mgr, o)
	if err != nil {
		return err
	}
	err = errors.Join(
		index(ctx, mgr.GetFieldIndexer()),
		w.setup(mgr),
		fault.Doing(mgr.AddHealthzCheck("workers", w.workers.Check), "adding healthz"),
		fault.Doing(mgr.AddReadyzCheck("readyz", healthz.Ping), "adding readyz"),
	)
	if err != nil {
		return err
	}
	return mgr.Start(ctx)
}

// index has the cache find guests and berths as virtualmachine.Options.Cache wants it.
func index(ctx context.Context, indexer client.FieldIndexer) error {
	uid := func(o client.Object) []string { return []string{string(o.GetUID())} }
	owner := func(o client.Object) []string {
		if uid, ok := berth.OwnerUID(o); ok {
			return []string{string(uid)}
		}
		return nil
	}
	return errors.Join(
		indexer.IndexField(ctx, &v1alpha1.VirtualMachine{}, virtualmachine.IndexUID, uid),
		indexer.IndexField(ctx, &corev1.Pod{}, virtualmachine.IndexUID, uid),
		indexer.IndexField(ctx, &corev1.Pod{}, virtualmachine.IndexOwner, owner),
	)
}

// setup makes one loop whose key is a guest's UID: the API's watches and the host's events feed the same queue.
func (w *wiring) setup(mgr ctrl.Manager) error {
	loop, err := controller.NewTyped("guest", mgr, controller.TypedOptions[types.UID]{
		MaxConcurrentReconciles: workers,
		Reconciler:              w.workers,
		// A step that fails is tried again soon: most failures here are races with kubelet.
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[types.UID](20*time.Millisecond, 10*time.Second),
	})
	if err != nil {
		return fmt.Errorf("making the guests' loop: %w", err)
	}
	for _, s := range []source.TypedSource[types.UID]{
		source.TypedKind(mgr.GetCache(), &v1alpha1.VirtualMachine{}, onGuest[*v1alpha1.VirtualMachine](guestUID)),
		source.TypedKind(mgr.GetCache(), &corev1.Pod{}, onGuest[*corev1.Pod](berthUID)),
		source.TypedKind(mgr.GetCache(), &v1alpha1.VirtualMachineImage{}, handler.TypedEnqueueRequestsFromMapFunc(w.onImage)),
		source.TypedFunc[types.UID](w.listen),
	} {
		if err := loop.Watch(s); err != nil {
			return fmt.Errorf("watching: %w", err)
		}
	}
	if err := mgr.Add(manager.RunnableFunc(w.pulls.GarbageCollect)); err != nil {
		return fmt.Errorf("adding the collector of images: %w", err)
	}
	return w.host.Setup(mgr)
}

// onImage enqueues the guests that name a VirtualMachineImage.
func (w *wiring) onImage(ctx context.Context, image *v1alpha1.VirtualMachineImage) (uids []types.UID) {
	var vms v1alpha1.VirtualMachineList
	if err := w.cache.List(ctx, &vms, client.InNamespace(image.Namespace)); err != nil {
		return nil
	}
	for i := range vms.Items {
		vm := &vms.Items[i]
		if slices.ContainsFunc(vm.Spec.Disks, func(d v1alpha1.Disk) bool { return d.VirtualMachineImage == image.Name }) {
			uids = append(uids, vm.UID)
		}
	}
	return uids
}

func guestUID(vm *v1alpha1.VirtualMachine) types.UID { return vm.UID }

// berthUID is the UID of the guest whose berth a pod is, or a porter's own.
func berthUID(pod *corev1.Pod) types.UID {
	if berth.PorterOwner(pod) != nil {
		return pod.UID
	}
	uid, _ := berth.OwnerUID(pod)
	return uid
}

// onGuest enqueues the guest that an object belongs to, whatever happened to the object.
func onGuest[T client.Object](of func(T) types.UID) handler.TypedEventHandler[T, types.UID] {
	return handler.TypedEnqueueRequestsFromMapFunc(func(_ context.Context, object T) []types.UID {
		if uid := of(object); uid != "" {
			return []types.UID{uid}
		}
		return nil
	})
}

// trimPod keeps little of berths, and nothing of other pods but their names: a node has many.
func trimPod(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	berth.TrimForCache(pod)
	if berthUID(pod) == "" {
		pod.Spec, pod.Status = corev1.PodSpec{NodeName: pod.Spec.NodeName}, corev1.PodStatus{}
		pod.Labels, pod.Annotations = nil, nil
	}
	return pod, nil
}

// maxCached is the most bytes that the cache keeps of a VirtualMachine beside its status: the longest first-boot data and
// keys, and more than people write of all the rest.
const maxCached = 128 << 10

// trimVM keeps the texts of a VirtualMachine only while it may be started, which must not need the API server: those that
// only have their disks here are in no quota of pods.
func trimVM(o any) (any, error) {
	vm, ok := o.(*v1alpha1.VirtualMachine)
	if !ok {
		return o, nil
	}
	if vm.Spec.State == v1alpha1.StateStopped || !vm.DeletionTimestamp.IsZero() {
		berth.HashTexts(&vm.Spec)
	}
	return vm, berth.TrimVM(vm, maxCached)
}

// lockNode makes this the only agent of its node, for as long as the process lives: two would end each other's guests. The
// kernel lets go of the lock with the process, however that ends.
func lockNode(runDir string) error {
	path := filepath.Join(runDir, "agent.lock")
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("another berth-agent runs on this node and has locked %s: end it, or uninstall the second Berth of this cluster", path)
	}
	return fault.Doing(err, "locking %s", path) // the descriptor stays open
}
