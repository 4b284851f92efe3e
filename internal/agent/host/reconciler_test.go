package host

import (
	"errors"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// TestWake: libvirtd's watchers and guests wake the host before its loop runs, while it starts, and ever after, as the
// race detector sees.
func TestWake(t *testing.T) {
	r := New(t.Context(), Options{Node: "n1", Now: time.Now})
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer queue.ShutDown()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		for range 1000 {
			r.Wake()
		}
	}()
	if err := source.Channel(r.wakes, &handler.EnqueueRequestForObject{}).Start(t.Context(), queue); err != nil {
		t.Fatal(err)
	}
	<-woken
	key, _ := queue.Get()
	if want := (reconcile.Request{NamespacedName: types.NamespacedName{Name: "n1"}}); key != want {
		t.Errorf("%s is looked at, want %s", key, want)
	}
}

// TestReconcile lets the loop run on an API server.
func TestReconcile(t *testing.T) {
	configuration, c := env.APIServer(t)
	mgr, err := ctrl.NewManager(configuration, ctrl.Options{
		Scheme: kube.Scheme(), Metrics: server.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	images, libvirt := &fakeStore{}, &fakeLibvirt{
		root: t.TempDir(), facts: libvirtd.HostFacts{LibvirtVersion: "9.0.0", QEMUVersion: "7.2.0", Emulation: &libvirtd.DomainCaps{}},
	}
	r := newReconciler(t, mgr.GetClient(), libvirt, images)
	if err := r.Setup(mgr); err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := mgr.Start(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var host v1alpha1.VirtualMachineHost
	is := func(status metav1.ConditionStatus, reason v1alpha1.Reason) func() bool {
		return func() bool {
			host = v1alpha1.VirtualMachineHost{}
			err := c.Get(t.Context(), client.ObjectKey{Name: "n1"}, &host)
			return err == nil && condition.Is(host.Status.Conditions, v1alpha1.ConditionHostReady, status) &&
				condition.Reason(host.Status.Conditions, v1alpha1.ConditionHostReady) == reason
		}
	}
	env.Eventually(t, "a host that is made when the agent starts", is(metav1.ConditionUnknown, v1alpha1.ReasonStarting))
	r.LibvirtConnectivity(nil)
	r.Wake()
	env.Eventually(t, "it is ready when libvirt has answered", is(metav1.ConditionTrue, v1alpha1.ReasonHostReady))
	if host.Status.QEMUVersion != "7.2.0" || host.Status.AgentVersion != "v1" || host.Status.StoreCapacity.String() != "1Ti" || *host.Status.StoreUsedPercent != 43 {
		t.Errorf("its status is %+v", host.Status)
	}

	version, looks := host.ResourceVersion, images.looks.Load()
	for range 3 { // a look has ended when the next one begins
		looks = images.looks.Load()
		r.Wake()
		env.Eventually(t, "a look", func() bool { return images.looks.Load() > looks })
	}
	if is(metav1.ConditionTrue, v1alpha1.ReasonHostReady)(); host.ResourceVersion != version {
		t.Errorf("the same status was written again: %+v", host.Status)
	}

	failure := fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("input/output error"))
	images.failure.Store(&failure)
	r.Wake()
	env.Eventually(t, "its store fails", is(metav1.ConditionFalse, v1alpha1.ReasonStoreFailed))

	if err := c.Delete(t.Context(), &host); err != nil {
		t.Fatal(err)
	}
	uid := host.UID
	env.Eventually(t, "a host that somebody deleted is made again", func() bool {
		return is(metav1.ConditionFalse, v1alpha1.ReasonStoreFailed)() && host.UID != uid
	})
}
