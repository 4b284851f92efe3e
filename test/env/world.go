package env

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// World plays, against an API server, the parts of a cluster that a test of the
// operator lacks: scheduler, kubelet and agent.
type World struct {
	client.Client
	T         testing.TB
	Namespace string
}

// NewWorld makes a namespace in which the restricted Pod Security Standard is enforced.
func NewWorld(t testing.TB, c client.Client) *World {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "world-", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return &World{Client: c, T: t, Namespace: ns.Name}
}

func (w *World) must(what string, err error) {
	w.T.Helper()
	if err != nil {
		w.T.Fatalf("%s: %v", what, err)
	}
}

// VM returns the VirtualMachine of a name, nil if there is none.
func (w *World) VM(name string) *v1alpha1.VirtualMachine {
	w.T.Helper()
	var vm v1alpha1.VirtualMachine
	err := w.Get(w.T.Context(), types.NamespacedName{Namespace: w.Namespace, Name: name}, &vm)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must("reading VirtualMachine", err)
	return &vm
}

// Pod returns the pod of a name, nil if there is none.
func (w *World) Pod(name string) *corev1.Pod {
	w.T.Helper()
	var pod corev1.Pod
	err := w.Get(w.T.Context(), types.NamespacedName{Namespace: w.Namespace, Name: name}, &pod)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must("reading pod", err)
	return &pod
}

// Node makes a node that is ready.
func (w *World) Node(name string) *corev1.Node {
	w.T.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.must("making node", w.Create(w.T.Context(), node))
	node.Spec.Taints = nil // which the API server gives each until somebody says that it is ready
	w.must("admitting node", w.Update(w.T.Context(), node))
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	w.must("reporting node", w.Status().Update(w.T.Context(), node))
	return node
}

// Host makes a host, or reports of it, as its agent does.
func (w *World) Host(name string, status v1alpha1.VirtualMachineHostStatus) {
	w.T.Helper()
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
	w.must("making host", client.IgnoreAlreadyExists(w.Create(w.T.Context(), host)))
	w.must("reading host", w.Get(w.T.Context(), client.ObjectKeyFromObject(host), host))
	status.Conditions = condition.MergeTransitionTimes(status.Conditions, nil, 0, time.Now())
	w.agentWrites(host, &status)
}

func (w *World) agentWrites(obj client.Object, status any) {
	w.T.Helper()
	agent := kube.StatusWriter{Client: w, Manager: kube.AgentManager}
	_, err := agent.Write(w.T.Context(), obj, status, nil)
	w.must("reporting as agent", err)
}

// Agent reports of a guest, as its node's agent does: all that the agent owns.
func (w *World) Agent(name string, status v1alpha1.VirtualMachineStatus) {
	w.T.Helper()
	vm := w.VM(name)
	status.Conditions = condition.MergeTransitionTimes(status.Conditions, vm.Status.Conditions, vm.Generation, time.Now())
	w.agentWrites(vm, &status)
}

// Bind gives a pod a node, as the scheduler does.
func (w *World) Bind(name, node string) {
	w.T.Helper()
	pod := w.Pod(name)
	w.must("binding pod", w.SubResource("binding").Create(w.T.Context(), pod, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: name, UID: pod.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
	}))
}

// Kubelet reports of a pod.
func (w *World) Kubelet(name string, phase corev1.PodPhase, ready bool) {
	w.T.Helper()
	pod := w.Pod(name)
	pod.Status.Phase = phase
	pod.Status.PodIP, pod.Status.PodIPs = "10.9.8.7", []corev1.PodIP{{IP: "10.9.8.7"}}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status})
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest"}}
	w.must("reporting pod", w.Status().Update(w.T.Context(), pod))
}

// KubeletEnds says that a pod's containers are gone: from now on only finalizers keep it.
func (w *World) KubeletEnds(pod *corev1.Pod) {
	w.T.Helper()
	err := w.Delete(w.T.Context(), pod, client.GracePeriodSeconds(0), client.Preconditions{UID: &pod.UID})
	w.must("ending pod", client.IgnoreNotFound(err))
}

// Condition makes a condition that is true or false.
func Condition(kind string, holds bool, reason v1alpha1.Reason) metav1.Condition {
	return condition.New(kind, holds, reason, "")
}
