// Package controllers joins the operator's reconcilers into one process.
package controllers

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/controllers/host"
	"github.com/berth-dev/berth/controllers/image"
	"github.com/berth-dev/berth/controllers/virtualmachine"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
)

// Options configure the operator.
type Options struct {
	Berth          berth.Options // the administrator's options of berths
	Namespace      string        // holds the leader's lease
	LeaderElection bool          // lets several replicas run, one of them leading
	// Identity is what this replica calls itself in the lease, also after a restart: a leader that restarts leads on at
	// once, and does not wait until its own lease expires. "" is a new identity at each start.
	Identity string
	// MetricsAddress and HealthAddress are host:port; "0" serves nothing.
	MetricsAddress, HealthAddress string
}

// lease is the name of the Lease of leader election.
const lease = "berth-operator"

// lock is the Lease under the replica's own identity, nil if it has none.
func (o *Options) lock(config *rest.Config) (resourcelock.Interface, error) {
	if o.Identity == "" {
		return nil, nil
	}
	config = rest.AddUserAgent(rest.CopyConfig(config), "leader-election") // which does not copy it
	config.Timeout = 5 * time.Second                                       // half of the deadline for its renewal
	leases, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("creating a client for the Lease: %w", err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: lease}, Client: leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.Identity},
	}, nil
}

// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// Run runs the operator until ctx ends.
func Run(ctx context.Context, config *rest.Config, o Options) error {
	berths, err := labels.Parse(berth.LabelVM) // which is there, whatever it says
	if err != nil {
		return fmt.Errorf("selecting berths: %w", err)
	}
	lock, err := o.lock(config)
	if err != nil {
		return err
	}
	mgr, err := ctrl.NewManager(kube.RetryReads(config), ctrl.Options{
		Scheme:                              kube.Scheme(),
		LeaderElection:                      o.LeaderElection,
		LeaderElectionID:                    lease,
		LeaderElectionNamespace:             o.Namespace,
		LeaderElectionReleaseOnCancel:       true,
		LeaderElectionResourceLockInterface: lock,
		Metrics: server.Options{
			BindAddress: o.MetricsAddress, SecureServing: true, FilterProvider: kube.MetricsFilter,
		},
		HealthProbeBindAddress: o.HealthAddress,
		// A replica that is not the leader fills its cache, so that it can lead at once.
		Controller: ctrlconfig.Controller{EnableWarmup: new(true)},
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&corev1.Pod{}:                   {Label: berths, Transform: trimForCache},
				&v1alpha1.VirtualMachine{}:      {Transform: trimForCache},
				&corev1.PersistentVolumeClaim{}: {Transform: trimForCache},
				&coordinationv1.Lease{}:         {Label: berths}, // of claims
				// These are read with each VirtualMachine, and changed by nobody.
				&corev1.Node{}:                 {Transform: trimForCache, UnsafeDisableDeepCopy: new(true)},
				&v1alpha1.VirtualMachineHost{}: {UnsafeDisableDeepCopy: new(true)},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("creating the manager: %w", err)
	}
	if err := errors.Join(mgr.AddHealthzCheck("healthz", healthz.Ping), mgr.AddReadyzCheck("readyz", healthz.Ping)); err != nil {
		return fmt.Errorf("adding health checks: %w", err)
	}
	vms := &virtualmachine.Reconciler{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorder("berth-operator"),
		Status:  &kube.StatusWriter{Client: mgr.GetClient(), Manager: kube.OperatorManager},
		Options: o.Berth, Now: time.Now,
	}
	hosts := &host.Reconciler{Client: mgr.GetClient()}
	images := &image.Reconciler{Client: mgr.GetClient(), Status: vms.Status, Options: o.Berth, Now: time.Now}
	if err := errors.Join(vms.Setup(ctx, mgr), hosts.Setup(mgr), images.Setup(ctx, mgr), (*image.Commits)(images).Setup(mgr)); err != nil {
		return fmt.Errorf("setting up the controllers: %w", err)
	}
	return mgr.Start(ctx)
}

// maxCached is the most bytes that the cache keeps of a VirtualMachine beside its status. People write a few thousand.
const maxCached = 16 << 10

// trimForCache keeps of an object what decisions depend on: there may be many thousands.
func trimForCache(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		berth.TrimForCache(o)
	case *corev1.PersistentVolumeClaim:
		virtualmachine.TrimClaim(o)
	case *corev1.Node: // whose images are long
		o.ManagedFields, o.Annotations = nil, nil
		o.Status = corev1.NodeStatus{Conditions: o.Status.Conditions}
	case *v1alpha1.VirtualMachine:
		berth.HashTexts(&o.Spec)
		return o, berth.TrimVM(o, maxCached)
	}
	return o, nil
}
