package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// tenantsExample bounds a tenant, whose users are a group.
const tenantsExample = "tenant.yaml"

// member is one of those users in the test's namespace.
type member struct{ *lab }

func (u member) try(stdin string, args ...string) error {
	_, err := u.tryKubectl(stdin, append([]string{"--as=jane", "--as-group=team-a", "--as-group=system:authenticated"}, args...)...)
	return err
}

func (u member) must(stdin string, args ...string) {
	u.Helper()
	if err := u.try(stdin, args...); err != nil {
		u.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
}

// refused sees that what the user asks for is refused, in these words.
func (u member) refused(words, stdin string, args ...string) {
	u.Helper()
	if err := u.try(stdin, args...); err == nil || !strings.Contains(err.Error(), words) {
		u.Errorf("kubectl %s: %v, want %q", strings.Join(args, " "), err, words)
	}
}

// TestBounds has an administrator apply the example of a tenant, and one of the tenant's users the guest in it, which runs.
// What is beyond the tenant's bounds is refused, in words that name the bound, whoever asks; lifting them is, too.
func TestBounds(t *testing.T) {
	l := start(t)
	u := member{l}
	var fits *unstructured.Unstructured
	for _, o := range readExample(t, filepath.Join(env.Root(), "examples", tenantsExample)) {
		switch o.GetKind() {
		case "Namespace":
			l.standsFor(o)
			continue
		case "VirtualMachine":
			fits = o
			continue
		}
		o.SetNamespace(l.ns)
		if err := l.Create(t.Context(), o); err != nil {
			t.Fatalf("creating %s %s: %v", o.GetKind(), o.GetName(), err)
		}
	}
	l.kubectl("", "wait", "--for=jsonpath={.status.hard}", "quota/team-a") // before that it does not count
	fits.SetNamespace(l.ns)
	manifest, err := json.Marshal(fits)
	if err != nil {
		t.Fatal(err)
	}
	u.must(string(manifest), "create", "-f", "-")

	const quota = "exceeded quota: team-a, requested: "
	for _, b := range []struct{ name, spec, says string }{
		{"large", "memory: {size: 4Gi}", "maximum memory usage per Container is 4Gi"},
		{"disk", "memory: {size: 64Mi}, disks: [{name: root, image: $TINY, size: 100Gi}]", quota + "requests.ephemeral-storage="},
		{"many", "memory: {size: 64Mi}, cpu: {cores: 32}", quota + "limits.cpu="},
		{"waits", "memory: {size: 3700Mi}, nodeSelector: {disk: golden}", ""}, // and counts meanwhile
		{"second", "memory: {size: 3700Mi}, nodeSelector: {disk: golden}", quota + "limits.memory="},
	} {
		env.Eventually(t, b.name+" to be refused: "+b.says, func() bool {
			u.must(guestOf(b.name, b.spec), "create", "-f", "-")
			vm := l.vm(b.name, "to be refused, or to find no node", func(vm *v1alpha1.VirtualMachine) bool {
				return has(vm, v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonBerthRefused) ||
					has(vm, v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonUnschedulable)
			})
			scheduled := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionScheduled)
			as := strings.Contains(scheduled.Message, b.says) && (scheduled.Reason == string(v1alpha1.ReasonUnschedulable)) == (b.says == "")
			if !as {
				u.must("", "delete", "vm", b.name) // let in by a quota that missed what was just made: see below
			}
			return as
		})
	}
	u.must(guestOf("seventh", "memory: {size: 64Mi}, state: Stopped"), "create", "-f", "-")
	u.must(guestOf("eighth", "memory: {size: 64Mi}, state: Stopped"), "create", "-f", "-")
	env.Eventually(t, "a ninth VirtualMachine to be refused because of the eight", func() bool {
		err := u.try(guestOf("ninth", "memory: {size: 64Mi}, state: Stopped"), "create", "-f", "-")
		if err == nil { // kube-controller-manager counts anew now and then, and may miss for a moment what was just made
			u.must("", "delete", "vm", "ninth")
			return false
		}
		const count = "count/virtualmachines.berth.dev="
		return strings.Contains(err.Error(), quota+count+"1, used: "+count+"8, limited: "+count+"8")
	})
	u.refused("cannot delete resource \"resourcequotas\"", "", "delete", "quota", "team-a")

	vm := l.vm("fits", "to be Ready", isReady)
	u.must("", "exec", "fits", "--", "/berth-shim", "started", "1s")
	u.refused("no guest program answers", "", "exec", "fits", "--", "/bin/sh") // the container has no shell but the guest's
	u.must("", "delete", "vm", "--all")
	l.vm("fits", "to be gone", isGone)
	nothingLeft(l, string(vm.UID))
}

// guestOf is a VirtualMachine, which boots the lab's kernel unless it has disks.
func guestOf(name, spec string) string {
	if !strings.Contains(spec, "disks:") {
		spec += ", kernel: {image: $KERNEL, initrdPath: /boot/initrd}"
	}
	return expand(fmt.Sprintf("{apiVersion: berth.dev/v1alpha1, kind: VirtualMachine, metadata: {name: %s}, spec: {%s}}", name, spec))
}

// standsFor sees that the test's namespace, which is there already, is what the example's would be.
func (l *lab) standsFor(example *unstructured.Unstructured) {
	l.Helper()
	ns := &corev1.Namespace{}
	if err := l.Get(l.Context(), client.ObjectKey{Name: l.ns}, ns); err != nil {
		l.Fatal(err)
	}
	for key, value := range example.GetLabels() {
		if ns.Labels[key] != value {
			l.Errorf("the test's namespace has %s=%q, the example's %q", key, ns.Labels[key], value)
		}
	}
}
