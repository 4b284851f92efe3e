package chart

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// anyPods lets the users of TestAccess do anything with pods, as far as roles go: what is left are the policies.
func anyPods(t *testing.T, c client.Client, users ...string) {
	t.Helper()
	var subjects []any
	for _, user := range users {
		subjects = append(subjects, map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user})
	}
	for _, o := range []client.Object{
		rbacObject("ClusterRole", "any-pods", map[string]any{"rules": []any{
			map[string]any{"apiGroups": []any{""}, "resources": []any{"pods", "pods/status", "pods/binding", "pods/resize", "pods/ephemeralcontainers"}, "verbs": []any{"*"}},
		}}),
		rbacObject("ClusterRoleBinding", "any-pods", map[string]any{
			"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "any-pods"},
			"subjects": subjects,
		}),
	} {
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// as is a client of a user.
func as(t *testing.T, config *rest.Config, user string, groups ...string) client.Client {
	t.Helper()
	config = rest.CopyConfig(config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append(groups, "system:authenticated")}
	c, err := client.New(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// berths: a berth is created and changed by the operator alone, and yet everybody does his part of a pod's life.
func berths(t *testing.T, config *rest.Config, c client.Client) {
	const tenantName, kubeletName, schedulerName = "tenant", "system:node:n1", "system:kube-scheduler"
	const collectorName, operatorName = "system:serviceaccount:kube-system:generic-garbage-collector", "system:serviceaccount:" + namespace + ":berth-operator"
	anyPods(t, c, tenantName, kubeletName, schedulerName, collectorName)
	tenant, kubelet, scheduler := as(t, config, tenantName), as(t, config, kubeletName, "system:nodes"), as(t, config, schedulerName)
	collector, operator := as(t, config, collectorName), as(t, config, operatorName, "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	w := env.NewWorld(t, c)
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
	vm.Spec.Memory.Size.Set(1 << 30)
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "root", Image: "a"}}
	if err := c.Create(t.Context(), vm); err != nil {
		t.Fatal(err)
	}
	made := func(name string, changes ...func(*corev1.Pod)) *corev1.Pod {
		pod, err := berth.PodFor(berth.Input{VM: vm, Options: berth.Options{ShimImage: "shim", CPURequest: resource.MustParse("100m")}})
		if err != nil {
			t.Fatal(err)
		}
		pod.Name = name
		for _, change := range changes {
			change(pod)
		}
		return pod
	}
	creates := func(c client.Client, pod *corev1.Pod, how ...client.CreateOption) func() error {
		return func() error { return c.Create(t.Context(), pod, how...) }
	}
	bare := func(pod *corev1.Pod) { // a pod that is nobody's
		pod.OwnerReferences, pod.Finalizers, pod.Labels, pod.Annotations = nil, nil, nil, nil
	}
	patches := func(c client.Client, name, patch string) func() error {
		return func() error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
			return c.Patch(t.Context(), pod, client.RawPatch(types.StrategicMergePatchType, []byte(patch)), client.DryRunAll)
		}
	}
	sub := func(c client.Client, resource, patch string) func() error {
		return func() error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "web"}}
			return c.SubResource(resource).Patch(t.Context(), pod, client.RawPatch(types.StrategicMergePatchType, []byte(patch)))
		}
	}
	env.Eventually(t, "the policy of berths to hold", func() bool { return creates(tenant, made("forged"), client.DryRunAll)() != nil })

	const evil = `{"spec":{"containers":[{"name":"guest","image":"evil"}]}}`
	const owns = `{"metadata":{"ownerReferences":[{"apiVersion":"berth.dev/v1alpha1","kind":"VirtualMachine","name":"web","uid":"1","controller":true}]}}`
	const debug = `{"name":"debug","image":"busybox","targetContainerName":"guest","securityContext":{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]}}}`
	for _, tt := range []struct {
		name string
		does func() error
		says string // "" where it is allowed
	}{
		{"the operator makes a berth", creates(operator, made("web")), ""},
		{"a tenant makes a pod", creates(tenant, made("plain", bare)), ""},
		{"a tenant makes a berth", creates(tenant, made("forged")), "make a VirtualMachine"},
		{"or a pod with its owner", creates(tenant, made("forged", func(p *corev1.Pod) { p.Finalizers, p.Labels, p.Annotations = nil, nil, nil })), "make a VirtualMachine"},
		{"or with its finalizer", creates(tenant, made("forged", func(p *corev1.Pod) { p.OwnerReferences, p.Labels, p.Annotations = nil, nil, nil })), "make a VirtualMachine"},
		{"or with its label", creates(tenant, made("forged", func(p *corev1.Pod) { p.OwnerReferences, p.Finalizers, p.Annotations = nil, nil, nil })), "make a VirtualMachine"},
		{"or with its annotations", creates(tenant, made("forged", func(p *corev1.Pod) { p.OwnerReferences, p.Finalizers, p.Labels = nil, nil, nil })), "make a VirtualMachine"},
		{"a tenant makes a berth of his pod, by owner", patches(tenant, "plain", owns), "leave them as they are"},
		{"by finalizer", patches(tenant, "plain", `{"metadata":{"finalizers":["berth.dev/guest"]}}`), "leave them as they are"},
		{"by label", patches(tenant, "plain", `{"metadata":{"labels":{"vm.berth.dev/name":"web"}}}`), "leave them as they are"},
		{"by annotation", patches(tenant, "plain", `{"metadata":{"annotations":{"berth.dev/spec":"{}"}}}`), "leave them as they are"},
		{"a tenant sets the image of his pod", patches(tenant, "plain", evil), ""},
		{"a tenant sets the image of a berth", patches(tenant, "web", evil), "change its VirtualMachine"},
		{"a deadline", patches(tenant, "web", `{"spec":{"activeDeadlineSeconds":1}}`), "change its VirtualMachine"},
		{"takes its finalizer off", patches(tenant, "web", `{"metadata":{"$deleteFromPrimitiveList/finalizers":["berth.dev/guest"]}}`), "leave them as they are"},
		{"its label", patches(tenant, "web", `{"metadata":{"labels":{"vm.berth.dev/name":null}}}`), "leave them as they are"},
		{"changes its label", patches(tenant, "web", `{"metadata":{"labels":{"vm.berth.dev/name":"other"}}}`), "leave them as they are"},
		{"takes off all labels", patches(tenant, "web", `{"metadata":{"labels":null}}`), "leave them as they are"},
		{"its record", patches(tenant, "web", `{"metadata":{"annotations":{"berth.dev/spec":"{}"}}}`), "leave them as they are"},
		{"that it was restarted", patches(tenant, "web", `{"metadata":{"annotations":{"berth.dev/restarted-at":"x"}}}`), "leave them as they are"},
		{"another label", patches(tenant, "web", `{"metadata":{"labels":{"app":"web"}}}`), ""},
		{"another annotation, as a network plugin does", patches(kubelet, "web", `{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/network-status":"[]"}}}`), ""},
		{"the garbage collector takes the owner off", patches(collector, "web", `{"metadata":{"ownerReferences":[{"$patch":"delete","uid":"`+string(vm.UID)+`"}]}}`), "leave them as they are"},
		{"and sets a finalizer of its own", patches(collector, "web", `{"metadata":{"finalizers":["foregroundDeletion"]}}`), ""},
		{"an autoscaler resizes a berth", sub(tenant, "resize", `{"spec":{"containers":[{"name":"guest","resources":{"limits":{"cpu":"2"}}}]}}`), "change spec.memory or spec.cpu"},
		{"a tenant debugs a berth", sub(tenant, "ephemeralcontainers", `{"spec":{"ephemeralContainers":[`+debug+`]}}`), "kubectl debug node/NAME"},
		{"and so does an administrator", sub(c, "ephemeralcontainers", `{"spec":{"ephemeralContainers":[`+debug+`]}}`), "kubectl debug node/NAME"},
		{"an administrator repairs a berth", patches(c, "web", `{"metadata":{"$deleteFromPrimitiveList/finalizers":["berth.dev/guest"]}}`), ""},
		{"the operator lets it go", patches(operator, "web", `{"metadata":{"$deleteFromPrimitiveList/finalizers":["berth.dev/guest"]}}`), ""},
		{"the scheduler binds it", func() error {
			pod := w.Pod("web")
			return scheduler.SubResource("binding").Create(t.Context(), pod, &corev1.Binding{
				ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"},
			})
		}, ""},
		{"kubelet reports it", sub(kubelet, "status", `{"status":{"phase":"Running"}}`), ""},
		{"a tenant deletes it", func() error { return tenant.Delete(t.Context(), w.Pod("web"), client.DryRunAll) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.does()
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}
