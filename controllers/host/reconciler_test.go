package host

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// report is what an agent says.
func report(ready bool, reason v1alpha1.Reason, models ...string) v1alpha1.VirtualMachineHostStatus {
	return v1alpha1.VirtualMachineHostStatus{
		Acceleration: v1alpha1.AccelerationKVM, CPUModels: models,
		Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionHostReady, ready, reason)},
	}
}

func TestLabels(t *testing.T) {
	_, c := env.APIServer(t)
	w := env.NewWorld(t, c)
	r := &Reconciler{Client: c}
	look := func(t *testing.T, name string) {
		t.Helper()
		if _, err := r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	node := w.Node("n1")
	foreign := map[string]string{"disk": "ssd", "berth.dev.example.com/x": "y", "notberth.dev/x": "y", "feature.node.kubernetes.io/cpu-model.id": "1"}
	node.Labels = maps.Clone(foreign)
	node.Labels["host.berth.dev/forged"] = "true"
	if err := c.Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}

	const capable, ready, kvm, rome, milan = "host.berth.dev/capable", "host.berth.dev/ready", "host.berth.dev/acceleration", "cpu-model.berth.dev/EPYC-Rome", "cpu-model.berth.dev/EPYC-Milan"
	steps := []struct {
		name string
		says v1alpha1.VirtualMachineHostStatus
		want map[string]string
	}{
		{"a host that never was ready is not capable, even if libvirtd does not answer", report(false, v1alpha1.ReasonLibvirtUnreachable), map[string]string{kvm: "KVM"}},
		{"a host that is ready", report(true, v1alpha1.ReasonHostReady, "EPYC-Rome", "EPYC-Milan"), map[string]string{capable: "true", ready: "true", kvm: "KVM", rome: "true", milan: "true"}},
		{"one whose libvirtd restarts stays capable", report(false, v1alpha1.ReasonLibvirtUnreachable, "EPYC-Rome"), map[string]string{capable: "true", kvm: "KVM", rome: "true"}},
		{"and is ready again", report(true, v1alpha1.ReasonHostReady), map[string]string{capable: "true", ready: "true", kvm: "KVM"}},
		{"one whose disk fails does, too", report(false, v1alpha1.ReasonStoreFailed), map[string]string{capable: "true", kvm: "KVM"}},
		{"one that can run no guest is not capable", report(false, v1alpha1.ReasonKVMUnavailable), map[string]string{kvm: "KVM"}},
		{
			"models that are no labels, or reach for other labels, are left out",
			report(true, v1alpha1.ReasonHostReady, "EPYC-Rome", "", "a/b", "../x", "a b", "x=y", "-x", strings.Repeat("a", 64), "ä", "node-role.kubernetes.io/control-plane"),
			map[string]string{capable: "true", ready: "true", kvm: "KVM", rome: "true"},
		},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			w.Host("n1", step.says)
			look(t, "n1")
			want := maps.Clone(foreign)
			maps.Copy(want, step.want)
			var node corev1.Node
			if err := c.Get(t.Context(), client.ObjectKey{Name: "n1"}, &node); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, node.Labels); diff != "" {
				t.Errorf("labels -want +got:\n%s", diff)
			}
			version := node.ResourceVersion
			look(t, "n1")
			if err := c.Get(t.Context(), client.ObjectKey{Name: "n1"}, &node); err != nil {
				t.Fatal(err)
			}
			if node.ResourceVersion != version {
				t.Error("the same labels were written again")
			}
		})
	}

	t.Run("a host that is gone leaves no label", func(t *testing.T) {
		if err := c.Delete(t.Context(), &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}); err != nil {
			t.Fatal(err)
		}
		look(t, "n1")
		var node corev1.Node
		if err := c.Get(t.Context(), client.ObjectKey{Name: "n1"}, &node); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(foreign, node.Labels); diff != "" {
			t.Errorf("labels -want +got:\n%s", diff)
		}
	})

	t.Run("a host goes with its node", func(t *testing.T) {
		w.Host("n2", report(true, v1alpha1.ReasonHostReady))
		look(t, "n2")
		if err := c.Get(t.Context(), client.ObjectKey{Name: "n2"}, &v1alpha1.VirtualMachineHost{}); !apierrors.IsNotFound(err) {
			t.Errorf("it is still there: %v", err)
		}
		look(t, "n2") // neither is there
	})
}
