package agent

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

func guestUID(vm *v1alpha1.VirtualMachine) types.UID { return vm.UID }

func berthUID(pod *corev1.Pod) types.UID {
	uid, _ := berth.OwnerUID(pod)
	return uid
}

// onGuest enqueues the guest that an object belongs to, whatever happened to the object.
func onGuest[T client.Object](of func(T) types.UID) handler.TypedEventHandler[T, types.UID] {
	add := func(q queue, object T) {
		if uid := of(object); uid != "" {
			q.Add(uid)
		}
	}
	return handler.TypedFuncs[T, types.UID]{
		CreateFunc:  func(_ context.Context, e event.TypedCreateEvent[T], q queue) { add(q, e.Object) },
		UpdateFunc:  func(_ context.Context, e event.TypedUpdateEvent[T], q queue) { add(q, e.ObjectNew) },
		DeleteFunc:  func(_ context.Context, e event.TypedDeleteEvent[T], q queue) { add(q, e.Object) },
		GenericFunc: func(_ context.Context, e event.TypedGenericEvent[T], q queue) { add(q, e.Object) },
	}
}

// trimPod keeps little of berths, and nothing of other pods but their names: a node has many.
func trimPod(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	berth.TrimForCache(pod)
	if _, ours := berth.OwnerUID(pod); !ours {
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
