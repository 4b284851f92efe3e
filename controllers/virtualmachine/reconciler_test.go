package virtualmachine

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

func TestNodeChange(t *testing.T) {
	node := func(ready corev1.ConditionStatus, beat int64, taints ...string) *corev1.Node {
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeReady, Status: ready, LastHeartbeatTime: metav1.Unix(beat, 0)},
		}}}
		for _, key := range taints {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key})
		}
		return n
	}
	for _, tt := range []struct {
		name     string
		old, now *corev1.Node
		want     bool
	}{
		{"a heartbeat", node("True", 1), node("True", 2), false},
		{"it is lost", node("True", 1), node("Unknown", 1), true},
		{"it is back", node("Unknown", 1), node("True", 2), true},
		{"it is lost in another way", node("False", 1), node("Unknown", 1), false},
		{"it is cordoned", node("True", 1), node("True", 1, "node.kubernetes.io/unschedulable"), false},
		{"it is out of service", node("Unknown", 1), node("Unknown", 1, "node.kubernetes.io/out-of-service"), true},
		{"it is no longer out of service", node("Unknown", 1, "node.kubernetes.io/out-of-service"), node("Unknown", 1), true},
	} {
		if got := nodeChange.Update(event.UpdateEvent{ObjectOld: tt.old, ObjectNew: tt.now}); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

func TestHostChange(t *testing.T) {
	host := func(ready bool, message string, released ...types.UID) *v1alpha1.VirtualMachineHost {
		return &v1alpha1.VirtualMachineHost{Status: v1alpha1.VirtualMachineHostStatus{
			Conditions:     []metav1.Condition{condition.New(v1alpha1.ConditionHostReady, ready, v1alpha1.ReasonHostReady, message)},
			ReleasedBerths: released,
		}}
	}
	images := host(true, "")
	images.Status.Images = []v1alpha1.HostImage{{Digest: "sha256:1"}}
	for _, tt := range []struct {
		name     string
		old, now *v1alpha1.VirtualMachineHost
		want     bool
	}{
		{"another image", host(true, ""), images, false},
		{"its first report", &v1alpha1.VirtualMachineHost{}, host(true, ""), true},
		{"it is ready", host(false, "no libvirt"), host(true, ""), true},
		{"something else is wrong", host(false, "no libvirt"), host(false, "no KVM"), true},
		{"a berth is released", host(true, "", "a"), host(true, "", "a", "b"), true},
	} {
		if got := hostChange.Update(event.UpdateEvent{ObjectOld: tt.old, ObjectNew: tt.now}); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}

// TestOnBerth: a berth wakes the VirtualMachine that owns it, whatever the pod is called.
func TestOnBerth(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web-2", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualMachine", Name: "web", UID: "1", Controller: new(true)},
	}}}
	want := []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: "shop", Name: "web"}}}
	if diff := cmp.Diff(want, wake(pod.Namespace, ownerName(pod)...)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	pod.OwnerReferences[0].Kind = "ReplicaSet"
	if got := wake(pod.Namespace, ownerName(pod)...); got != nil {
		t.Errorf("a pod of a ReplicaSet wakes %v", got)
	}
}
