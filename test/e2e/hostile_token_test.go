package e2e

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const system = "berth-system"

// stolenToken tries what the token of the agent of a node is good for against the guest tiny of another, and what that of
// its own node's is not.
func stolenToken(l *lab, there string) {
	l.Helper()
	vm := l.vm("tiny", "to be Ready", isReady)
	here := vm.Status.NodeName
	thief, agent := agentOf(l, there), agentOf(l, here)
	meta := metav1.ObjectMeta{Namespace: l.ns, Name: "tiny"}
	merge := func(patch string) client.Patch { return client.RawPatch(types.MergePatchType, []byte(patch)) }
	status := func(c client.Client, patch string) func() error {
		return func() error {
			return c.Status().Patch(l.Context(), &v1alpha1.VirtualMachine{ObjectMeta: meta}, merge(patch))
		}
	}
	patches := func(o client.Object, patch string) func() error {
		return func() error { return thief.Patch(l.Context(), o, merge(patch)) }
	}
	deletes := func(o client.Object) func() error { return func() error { return thief.Delete(l.Context(), o) } }
	creates := func(o client.Object) func() error { return func() error { return thief.Create(l.Context(), o) } }
	pod := func() *corev1.Pod { return &corev1.Pod{ObjectMeta: meta} }
	sub := func(o client.Object, resource string, body client.Object) func() error {
		return func() error { return thief.SubResource(resource).Create(l.Context(), o, body) }
	}
	host := func(name string) *v1alpha1.VirtualMachineHost {
		return &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	kubelets := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, GenerateName: "tiny-"}, EventTime: metav1.NowMicro(),
		ReportingController: "kubelet", ReportingInstance: here, Type: corev1.EventTypeWarning, Reason: "Failed", Action: "Start",
		Regarding: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: l.ns, Name: "tiny"},
	}
	const (
		exit       = `{"status":{"lastExit":{"reason":"PoweredOff","exitCode":0,"time":"2026-01-02T03:04:05Z"}}}`
		everything = `{"metadata":{"labels":{"mine":"x"},"finalizers":null,"ownerReferences":null},"spec":{"state":"Stopped"}}`
		notItsNode = "not on the agent's node"
	)
	l.attempts(
		attempt{"how the guest ended", status(thief, exit), notItsNode},
		attempt{"that nothing is left of its berth", status(thief, `{"status":{"releasedBerth":"`+string(vm.Status.Berth.PodUID)+`"}}`), notItsNode},
		attempt{"to steal it", status(thief, `{"status":{"nodeName":"`+there+`"}}`), notItsNode},
		attempt{"to drop its node", status(thief, `{"status":{"nodeName":null}}`), notItsNode},
		attempt{"to drop its status", status(thief, `{"status":null}`), notItsNode},
		attempt{"spec, labels and finalizers, through its status", status(thief, everything), notItsNode},
		attempt{"its spec", patches(&v1alpha1.VirtualMachine{ObjectMeta: meta}, everything), "cannot patch"},
		attempt{"to delete it", deletes(&v1alpha1.VirtualMachine{ObjectMeta: meta}), "cannot delete"},
		attempt{"to delete all", func() error {
			return thief.DeleteAllOf(l.Context(), &v1alpha1.VirtualMachine{}, client.InNamespace(l.ns))
		}, "cannot deletecollection"},
		attempt{"to make one", creates(&v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, GenerateName: "x-"}}), "cannot create"},
		attempt{"the host's status", func() error { return thief.Status().Patch(l.Context(), host(here), merge(`{"status":{"cpus":1}}`)) }, "its own host only"},
		attempt{"to make a host", creates(host(l.ns)), "its own host only"},
		attempt{"to delete the host", deletes(host(here)), "cannot delete"},
		attempt{"the node", patches(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: here}}, `{"spec":{"unschedulable":true}}`), "cannot patch"},
		attempt{"to change its pod", patches(pod(), `{"metadata":{"finalizers":null}}`), "cannot patch"},
		attempt{"to delete its pod", deletes(pod()), "cannot delete"},
		attempt{"to evict its pod", sub(pod(), "eviction", &policyv1.Eviction{}), "cannot create resource \"pods/eviction\""},
		attempt{"a pod", creates(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, GenerateName: "x-"}}), "cannot create"},
		attempt{"exec in its pod", func() error {
			return thief.SubResource("exec").Get(l.Context(), pod(), &corev1.Pod{})
		}, "cannot get resource \"pods/exec\""},
		attempt{"Secrets", func() error { return thief.List(l.Context(), &corev1.SecretList{}, client.InNamespace(l.ns)) }, "cannot list"},
		attempt{"another token", sub(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "berth-operator"}}, "token", &authenticationv1.TokenRequest{}), "cannot create resource \"serviceaccounts/token\""},
		attempt{"an Event in the name of kubelet", creates(kubelets), "its own Events about VirtualMachines only"},
		attempt{"its own agent, to push it away", status(agent, `{"status":{"nodeName":"`+there+`"}}`), "does not move guests"},
		attempt{"its own agent, to drop its node", status(agent, `{"status":{"nodeName":null}}`), "does not move guests"},
		attempt{"its own agent, spec, labels and finalizers, through its status", status(agent, everything), ""}, // and nothing comes of it
	)
	now := l.vm("tiny", "to be Ready", isReady)
	if now.Generation != vm.Generation || now.Labels["mine"] != "" || len(now.Finalizers) != len(vm.Finalizers) {
		l.Errorf("an agent wrote generation %d, labels %v, finalizers %v", now.Generation, now.Labels, now.Finalizers)
	}
}

// agentOf is a client with a token of the agent of a node, as kubelet gives it to its pod.
func agentOf(l *lab, node string) client.Client {
	l.Helper()
	var pods corev1.PodList
	if err := l.List(l.Context(), &pods, client.InNamespace(system), client.MatchingLabels{"app.kubernetes.io/name": "berth-agent"}); err != nil {
		l.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{}
	for _, p := range pods.Items {
		if p.Spec.NodeName == node && p.DeletionTimestamp.IsZero() {
			request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}
		}
	}
	if request.Spec.BoundObjectRef == nil {
		l.Fatalf("there is no agent on node %s", node)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "berth-agent"}}
	if err := l.SubResource("token").Create(l.Context(), account, request); err != nil {
		l.Fatal(err)
	}
	config := rest.AnonymousClientConfig(restConfig(l))
	config.BearerToken = request.Status.Token
	return clientOf(l, config)
}
