package e2e

import (
	"encoding/json"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// forge makes a pod that claims, as the berth own does, to be the berth of a VirtualMachine, and runs a program of the
// tenant's on a node.
func (u tenant) forge(name, node string, owner types.UID) *corev1.Pod {
	u.Helper()
	genuine := u.pod("own", "to be there", func(p *corev1.Pod) bool { return p != nil })
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: u.ns, Name: name, Labels: map[string]string{berth.LabelVM: name},
		Annotations: genuine.Annotations, Finalizers: genuine.Finalizers, OwnerReferences: genuine.OwnerReferences,
	}, Spec: genuine.Spec}
	pod.OwnerReferences[0].Name, pod.OwnerReferences[0].UID = name, owner
	if node != pod.Spec.NodeName {
		pod.Spec.NodeName, pod.Spec.NodeSelector = node, nil
	}
	pod.Spec.Containers[0].Image, pod.Spec.Containers[0].Args = os.Getenv("LAB_IMAGE_TOOLS"), []string{"serve", ":8080", "evil"}
	return pod
}

// plain is the same pod before it claims anything.
func plain(pod *corev1.Pod) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.Labels, pod.Annotations, pod.Finalizers, pod.OwnerReferences = nil, nil, nil, nil
	return pod
}

// forgesBerths: the tenant is refused each pod that claims to be a berth. One that comes past the policies, by an
// administrator of the cluster say, gets no guest, ends, and touches none.
func (u tenant) forgesBerths(of *lab, node string) {
	u.Helper()
	victim, own := of.vm("tiny", "to be Ready", isReady), u.vm("own", "to be Ready", isReady).Status.NodeName
	if err := u.api.Create(u.Context(), plain(u.forge("waits", own, "1"))); err != nil {
		u.Fatal(err)
	}
	waits, stopped := u.likeOwn("waits", v1alpha1.StateRunning), u.likeOwn("stopped", v1alpha1.StateStopped)
	u.vm("waits", "to be told that its pod's name is taken", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonPodNameTaken)
	})
	claim := claims(u.forge("waits", own, waits))
	forged := []*corev1.Pod{
		u.forge("tiny", node, victim.UID), // of another namespace's guest
		u.forge("stray", node, types.UID("../../../../etc/"+u.ns)),
		u.forge("stopped", own, stopped),
	}

	var list []attempt
	for _, pod := range forged {
		list = append(list, attempt{"the pod " + pod.Name, func() error { return u.api.Create(u.Context(), pod.DeepCopy()) }, "make a VirtualMachine"})
	}
	for name, patch := range claim {
		list = append(list, attempt{"his pod, with " + name, func() error { return u.api.Patch(u.Context(), u.podWaits(), patch) }, "leave them as they are"})
	}
	u.attempts(list...)

	for _, pod := range forged {
		if err := u.Create(u.Context(), pod); err != nil {
			u.Fatalf("creating the pod %s past the policies: %v", pod.Name, err)
		}
	}
	if err := u.Patch(u.Context(), u.podWaits(), claim["all of it"]); err != nil {
		u.Fatal(err)
	}
	u.vm("waits", "to be told that its pod is none of Berth's", func(vm *v1alpha1.VirtualMachine) bool {
		c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionScheduled)
		return has(vm, v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonBerthMutated) &&
			strings.Contains(c.Message, `spec.containers[guest].args[0] is "serve"`)
	})
	u.deleteWithoutGuest("waits", waits) // before it is given a new berth, a minute after that one was made
	for _, pod := range forged {
		u.pod(pod.Name, "to be gone", isGone)
	}
	u.deleteWithoutGuest("stopped", stopped)
	if made := u.onNode(node, "sh", "-c", "ls -d /etc/"+u.ns+"* 2>/dev/null; true"); made != "" {
		u.Errorf("a UID that is a path made %s", made)
	}
}

// podWaits names the pod that was there before its VirtualMachine.
func (u tenant) podWaits() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: u.ns, Name: "waits"}}
}

// deleteWithoutGuest deletes a VirtualMachine that had a forged pod, and nothing else.
func (u tenant) deleteWithoutGuest(name string, uid types.UID) {
	u.Helper()
	vm := u.vm(name, "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil })
	if found := qemus(string(uid)); len(found) > 0 || vm.Status.Berth != nil {
		u.Errorf("with a pod that is none of Berth's, the guest %s has the QEMUs %v and the berth %v", name, found, vm.Status.Berth)
	}
	if err := u.kubectlAs("", "delete", "vm", name); err != nil {
		u.Error(err)
	}
	u.pod(name, "to be gone", isGone)
	nothingLeft(u.lab, string(uid))
}

// likeOwn makes a VirtualMachine with the spec of own, in a state, so that a copy of its berth fits, and returns its UID.
func (u tenant) likeOwn(name string, state v1alpha1.State) types.UID {
	u.Helper()
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: u.ns, Name: name}, Spec: u.vm("own", "to be Ready", isReady).Spec}
	vm.Spec.State = state
	if err := u.api.Create(u.Context(), vm); err != nil {
		u.Fatal(err)
	}
	return vm.UID
}

// claims are patches that make a pod a berth, each by one thing, and one by all of them.
func claims(pod *corev1.Pod) map[string]client.Patch {
	all := map[string]any{
		"labels": pod.Labels, "annotations": pod.Annotations, "finalizers": pod.Finalizers, "ownerReferences": pod.OwnerReferences,
	}
	patch := func(metadata any) client.Patch {
		raw, err := json.Marshal(map[string]any{"metadata": metadata})
		if err != nil {
			panic(err) // of strings
		}
		return client.RawPatch(types.MergePatchType, raw)
	}
	list := map[string]client.Patch{"all of it": patch(all)}
	for name, value := range all {
		list[name] = patch(map[string]any{name: value})
	}
	return list
}
