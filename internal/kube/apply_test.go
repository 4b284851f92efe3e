package kube

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestStatusIsWrittenOnce: while the cache is behind, a second look makes the same status anew, a second later.
func TestStatusIsWrittenOnce(t *testing.T) {
	writes := 0
	c := fake.NewClientBuilder().WithScheme(Scheme()).WithInterceptorFuncs(interceptor.Funcs{
		SubResourceApply: func(context.Context, client.Client, string, runtime.ApplyConfiguration, ...client.SubResourceApplyOption) error {
			writes++
			return nil
		},
	}).Build()
	w := StatusWriter{Client: c, Manager: AgentManager}
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "a", UID: "1"}}
	now := time.Now()
	status := func(holds metav1.ConditionStatus, at time.Time) *v1alpha1.VirtualMachineStatus {
		return &v1alpha1.VirtualMachineStatus{Conditions: []metav1.Condition{{
			Type: v1alpha1.ConditionRunning, Status: holds, LastTransitionTime: metav1.NewTime(at),
		}}}
	}
	for _, step := range []struct {
		name  string
		want  *v1alpha1.VirtualMachineStatus
		wrote bool
	}{
		{"what is new", status(metav1.ConditionTrue, now), true},
		{"the same, by a cache that is behind", status(metav1.ConditionTrue, now.Add(time.Second)), false},
		{"what is new again", status(metav1.ConditionFalse, now.Add(time.Second)), true},
		{"and back", status(metav1.ConditionTrue, now.Add(time.Second)), true},
	} {
		before := writes
		wrote, err := w.Write(t.Context(), vm, step.want, &vm.Status)
		if err != nil || wrote != step.wrote || writes-before > 0 != step.wrote {
			t.Errorf("%s: wrote %t, %d writes, %v", step.name, wrote, writes-before, err)
		}
	}
}
