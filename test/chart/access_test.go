package chart

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// install creates the chart's accounts, roles and policies.
func install(t *testing.T, c client.Client) {
	t.Helper()
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}
	for _, o := range objects(t) {
		switch o.GetKind() {
		case "CustomResourceDefinition", "Deployment", "DaemonSet":
			continue // the first are there, and nobody would run the others
		}
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatalf("creating %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
}

func TestAccess(t *testing.T) {
	config, c := env.APIServer(t)
	install(t, c)
	t.Run("roles", func(t *testing.T) { roles(t, c) })
	t.Run("policies", func(t *testing.T) { policies(t, config, c) })
	t.Run("tenants", func(t *testing.T) { tenants(t, config, c) })
	t.Run("berths", func(t *testing.T) { berths(t, config, c) })
	t.Run("the disks' finalizer", func(t *testing.T) { disksFinalizer(t, config, c) })
	t.Run("kept disks", func(t *testing.T) { keptDisks(t, c) }) // by now the policies hold
}

// may asks whether an account may do something, such as "patch pods/status in default".
func may(t *testing.T, c client.Client, account, verb, group, resource, namespace string) bool {
	t.Helper()
	resource, sub, _ := strings.Cut(resource, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:elsewhere:" + account,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:elsewhere", "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: verb, Group: group, Resource: resource, Subresource: sub, Namespace: namespace, Name: "any",
		},
	}}
	if err := c.Create(t.Context(), review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

func roles(t *testing.T, c client.Client) {
	const vms, hosts, images, commits, anywhere = "virtualmachines", "virtualmachinehosts", "virtualmachineimages", "virtualmachinecommits", "tenant"
	all := []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
	allowed := map[string]string{ // account group resource namespace → verbs; all others are refused
		"berth-operator  nodes ":                                          "get list watch patch",
		"berth-operator  pods " + anywhere:                                "get list watch create patch delete",
		"berth-operator berth.dev " + vms + " " + anywhere:                "get list watch patch delete",
		"berth-operator berth.dev " + vms + "/status " + anywhere:         "patch",
		"berth-operator berth.dev " + vms + "/finalizers " + anywhere:     "update",
		"berth-operator berth.dev " + hosts + " ":                         "get list watch delete",
		"berth-operator berth.dev " + images + " " + anywhere:             "get list watch",
		"berth-operator berth.dev " + images + "/status " + anywhere:      "patch",
		"berth-operator berth.dev " + images + "/finalizers " + anywhere:  "update",
		"berth-operator berth.dev " + commits + " " + anywhere:            "get list watch delete",
		"berth-operator berth.dev " + commits + "/status " + anywhere:     "patch",
		"berth-operator berth.dev " + commits + "/finalizers " + anywhere: "update",
		"berth-operator events.k8s.io events " + anywhere:                 "create patch update",
		"berth-operator  events " + anywhere:                              "list",
		"berth-operator coordination.k8s.io leases " + namespace:          "get list watch create update delete",
		"berth-operator coordination.k8s.io leases " + anywhere:           "get list watch create update delete",
		"berth-operator  persistentvolumeclaims " + anywhere:              "get list watch create patch",
		"berth-operator  events " + namespace:                             "list create patch",
		"berth-agent  pods " + anywhere:                                   "get list watch",
		"berth-agent berth.dev " + vms + " " + anywhere:                   "get list watch",
		"berth-agent berth.dev " + vms + "/status " + anywhere:            "patch",
		"berth-agent berth.dev " + images + " " + anywhere:                "get list watch",
		"berth-agent berth.dev " + hosts + " ":                            "get list watch create",
		"berth-agent berth.dev " + hosts + "/status ":                     "patch",
		"berth-agent events.k8s.io events " + anywhere:                    "create patch update",
	}
	things := []struct{ group, resource, namespace string }{
		{"", "nodes", ""},
		{"", "nodes/status", ""},
		{"", "nodes/proxy", ""},
		{"", "pods", anywhere},
		{"", "pods/status", anywhere},
		{"", "pods/exec", anywhere},
		{"", "pods/attach", anywhere},
		{"", "pods/binding", anywhere},
		{"", "pods/ephemeralcontainers", anywhere},
		{"", "secrets", anywhere},
		{"", "secrets", namespace},
		{"", "configmaps", anywhere},
		{"", "serviceaccounts/token", namespace},
		{"", "persistentvolumeclaims", anywhere},
		{"", "namespaces", ""},
		{"", "events", namespace},
		{"", "events", anywhere},
		{"berth.dev", vms, anywhere},
		{"berth.dev", vms + "/status", anywhere},
		{"berth.dev", vms + "/finalizers", anywhere},
		{"berth.dev", images, anywhere},
		{"berth.dev", images + "/status", anywhere},
		{"berth.dev", images + "/finalizers", anywhere},
		{"berth.dev", commits, anywhere},
		{"berth.dev", commits + "/status", anywhere},
		{"berth.dev", commits + "/finalizers", anywhere},
		{"berth.dev", hosts, ""},
		{"berth.dev", hosts + "/status", ""},
		{"events.k8s.io", "events", anywhere},
		{"coordination.k8s.io", "leases", namespace},
		{"coordination.k8s.io", "leases", anywhere},
		{"rbac.authorization.k8s.io", "clusterroles", ""},
		{"admissionregistration.k8s.io", "validatingadmissionpolicies", ""},
		{"apiextensions.k8s.io", "customresourcedefinitions", ""},
	}
	for _, account := range []string{"berth-operator", "berth-agent"} {
		for _, thing := range things {
			key := fmt.Sprintf("%s %s %s %s", account, thing.group, thing.resource, thing.namespace)
			verbs := " " + allowed[key] + " "
			delete(allowed, key)
			for _, verb := range all {
				want := strings.Contains(verbs, " "+verb+" ")
				if got := may(t, c, account, verb, thing.group, thing.resource, thing.namespace); got != want {
					t.Errorf("%s may %s %s in %q: %t, want %t", account, verb, thing.resource, thing.namespace, got, want)
				}
			}
		}
	}
	for key := range allowed {
		t.Errorf("%q was not asked for: is it written right?", key)
	}
}

// agentOn returns a client with the token of an agent's pod on a node; on no node if that is empty.
func agentOn(t *testing.T, config *rest.Config, c client.Client, node string) client.Client {
	t.Helper()
	request := &authenticationv1.TokenRequest{}
	if node != "" {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "agent-" + node},
			Spec: corev1.PodSpec{
				NodeName: node, ServiceAccountName: "berth-agent",
				Containers: []corev1.Container{{Name: "agent", Image: "agent"}},
			},
		}
		if err := c.Create(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "berth-agent"}}
	if err := c.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatalf("asking for a token: %v", err)
	}
	anonymous := rest.AnonymousClientConfig(config)
	anonymous.BearerToken = request.Status.Token
	agent, err := client.New(anonymous, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return agent
}

func policies(t *testing.T, config *rest.Config, c client.Client) {
	w := env.NewWorld(t, c)
	for _, name := range []string{"n1", "n2"} {
		w.Node(name)
		w.Host(name, v1alpha1.VirtualMachineHostStatus{Acceleration: v1alpha1.AccelerationKVM})
	}
	place := func(name, node string) {
		vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		vm.Spec.Memory.Size.Set(1 << 30)
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: "a"}}
		if err := c.Create(t.Context(), vm); err != nil {
			t.Fatal(err)
		}
		if node == "" {
			return
		}
		operator := kube.StatusWriter{Client: c, Manager: kube.OperatorManager}
		if _, err := operator.Write(t.Context(), vm, &v1alpha1.VirtualMachineStatus{NodeName: node}, nil); err != nil {
			t.Fatal(err)
		}
	}
	place("mine", "n1")
	place("theirs", "n2")
	place("nobodys", "")
	bound, unbound := agentOn(t, config, c, "n1"), agentOn(t, config, c, "")

	// says patches the status of a guest as an agent does.
	says := func(agent client.Client, name, status string) func() error {
		return func() error {
			vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
			return agent.Status().Patch(t.Context(), vm, client.RawPatch(types.MergePatchType, []byte(`{"status":`+status+`}`)))
		}
	}
	// seen reports of a host as an agent does.
	seen := func(agent client.Client, name string) func() error {
		return func() error {
			host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}}
			return agent.Status().Patch(t.Context(), host, client.RawPatch(types.MergePatchType, []byte(`{"status":{"cpus":4}}`)))
		}
	}
	makes := func(agent client.Client, name string) func() error {
		return func() error {
			return agent.Create(t.Context(), &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	// tells makes an Event as that of a controller about an object of a kind.
	tells := func(controller, apiVersion, kind string) func() error {
		return func() error { return bound.Create(t.Context(), event(w.Namespace, controller, apiVersion, kind)) }
	}
	rewrites := func() error {
		kubelets := event(w.Namespace, "kubelet", "v1", "Pod")
		if err := c.Create(t.Context(), kubelets); err != nil {
			t.Fatal(err)
		}
		return bound.Patch(t.Context(), kubelets, client.RawPatch(types.MergePatchType,
			[]byte(`{"series":{"count":1000,"lastObservedTime":"2026-01-02T03:04:05.000000Z"}}`)))
	}
	const exit = `{"lastExit":{"reason":"PoweredOff","exitCode":0,"time":"2026-01-02T03:04:05Z"}}`
	env.Eventually(t, "the policies to hold", func() bool { return apierrors.IsInvalid(says(bound, "theirs", exit)()) })

	tests := []struct {
		name string
		does func() error
		says string // "" where it is allowed
	}{
		{"its own guest's status", says(bound, "mine", exit), ""},
		{"its own host's status", seen(bound, "n1"), ""},
		{"another node's guest's status", says(bound, "theirs", exit), "not on the agent's node"},
		{"to steal a guest", says(bound, "theirs", `{"nodeName":"n1"}`), "not on the agent's node"},
		{"to take a guest that has no node", says(bound, "nobodys", `{"nodeName":"n1"}`), "not on the agent's node"},
		{"to push a guest away", says(bound, "mine", `{"nodeName":"n2"}`), "does not move guests"},
		{"to drop a guest", says(bound, "mine", `{"nodeName":null}`), "does not move guests"},
		{"to drop a status", says(bound, "mine", `null`), "does not move guests"},
		{"another host's status", seen(bound, "n2"), "its own host only"},
		{"to make another host", makes(bound, "n3"), "its own host only"},
		{"an Event about a guest", tells("berth-agent", "berth.dev/v1alpha1", "VirtualMachine"), ""},
		{"an Event in the name of kubelet", tells("kubelet", "berth.dev/v1alpha1", "VirtualMachine"), "its own Events about VirtualMachines only"},
		{"an Event about a pod", tells("berth-agent", "v1", "Pod"), "its own Events about VirtualMachines only"},
		{"an Event about another's VirtualMachine", tells("berth-agent", "kubevirt.io/v1", "VirtualMachine"), "its own Events about VirtualMachines only"},
		{"to rewrite an Event of kubelet", rewrites, "its own Events about VirtualMachines only"},
		{"a guest's status without a node", says(unbound, "mine", exit), "not bound to a node"},
		{"a host's status without a node", seen(unbound, "n1"), "its own host only"},
		{"a spec", func() error {
			vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "mine"}}
			return bound.Patch(t.Context(), vm, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"state":"Stopped"}}`)))
		}, "cannot patch"},
		{"a spec, through the status", func() error {
			vm := w.VM("mine")
			vm.Spec.State = v1alpha1.StateStopped
			return bound.Status().Patch(t.Context(), vm, client.MergeFrom(w.VM("mine")))
		}, ""}, // the API server drops it; see below
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.does()
			switch {
			case tt.says == "" && err != nil:
				t.Errorf("it was refused: %v", err)
			case tt.says != "" && err == nil:
				t.Error("it was allowed")
			case tt.says != "" && !strings.Contains(err.Error(), tt.says):
				t.Errorf("the message does not say %q: %v", tt.says, err)
			}
		})
	}
	if vm := w.VM("mine"); vm.Spec.State != v1alpha1.StateRunning || vm.Status.NodeName != "n1" || vm.Status.LastExit == nil {
		t.Errorf("the guest is %+v", vm)
	}

	t.Run("a role that grants too much changes nothing", func(t *testing.T) {
		generous := agentOn(t, config, c, "n2")
		for _, o := range grants() {
			if err := c.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "theirs"}}
		var err error
		env.Eventually(t, "the role", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err = generous.Patch(ctx, vm, client.RawPatch(types.MergePatchType, []byte(`{"spec":{"state":"Stopped"}}`)))
			return err == nil || !strings.Contains(err.Error(), "cannot patch")
		})
		if err == nil || !strings.Contains(err.Error(), "the status of guests only") {
			t.Errorf("an agent wrote a spec: %v", err)
		}
		if err := generous.Delete(t.Context(), vm); err == nil {
			t.Error("an agent deleted a guest")
		}
	})
}

// event is one about the object "mine".
func event(in, controller, apiVersion, kind string) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: in, GenerateName: "mine-"}, EventTime: metav1.NowMicro(),
		ReportingController: controller, ReportingInstance: controller + "-n1", Type: corev1.EventTypeNormal, Reason: "Started", Action: "Start",
		Regarding: corev1.ObjectReference{APIVersion: apiVersion, Kind: kind, Namespace: in, Name: "mine"},
	}
}

// grants let agents do anything with guests, as far as roles go.
func grants() []client.Object {
	return []client.Object{
		rbacObject("ClusterRole", "generous", map[string]any{"rules": []any{
			map[string]any{"apiGroups": []any{"berth.dev"}, "resources": []any{"*"}, "verbs": []any{"*"}},
		}}),
		rbacObject("ClusterRoleBinding", "generous", map[string]any{
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "generous"},
			"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": namespace, "name": "berth-agent"}},
		}),
	}
}

func rbacObject(kind, name string, rest map[string]any) client.Object {
	o := &unstructured.Unstructured{Object: rest}
	o.SetAPIVersion("rbac.authorization.k8s.io/v1")
	o.SetKind(kind)
	o.SetName(name)
	return o
}
