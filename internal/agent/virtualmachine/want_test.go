package virtualmachine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/plan"
)

func TestExitOf(t *testing.T) {
	at := time.Date(2026, 11, 23, 21, 30, 5, 0, time.UTC)
	began := at.Add(-time.Hour)
	terminated := func(code int32, reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: code, Reason: reason, Message: message, StartedAt: metav1.NewTime(began), FinishedAt: metav1.NewTime(at),
		}}
	}
	for name, tt := range map[string]struct {
		is, was  corev1.ContainerState
		deletion time.Time
		want     *plan.Exit
	}{
		"a first run":                           {},
		"a shim's termination message":          {was: terminated(134, "Error", "GuestPanicked: oops: a"), want: &plan.Exit{Reason: v1alpha1.ReasonGuestPanicked, Code: 134, Message: "oops: a", ReportedAt: at}},
		"one word":                              {was: terminated(0, "Completed", "PoweredOff"), want: &plan.Exit{Reason: v1alpha1.ReasonPoweredOff, ReportedAt: at}},
		"the later of two ends":                 {is: terminated(0, "Completed", "PoweredOff"), was: terminated(1, "Error", "QEMUFailed"), want: &plan.Exit{Reason: v1alpha1.ReasonPoweredOff, ReportedAt: at}},
		"no word, and no memory":                {was: terminated(137, "OOMKilled", ""), want: &plan.Exit{Reason: v1alpha1.ReasonOOMKilled, Code: 137, Message: outOfMemory, ReportedAt: at}},
		"a word, and no memory":                 {was: terminated(0, "OOMKilled", "PoweredOff"), want: &plan.Exit{Reason: v1alpha1.ReasonPoweredOff, ReportedAt: at}},
		"a run without a guest":                 {was: terminated(0, "Completed", "NotRunning")},
		"words of somebody else":                {was: terminated(1, "Error", "exec: no such file")},
		"a shim that was killed":                {was: terminated(137, "Error", ""), want: &plan.Exit{Reason: v1alpha1.ReasonShimLost, Code: 137, Message: plan.ShimLost.Message, ReportedAt: at}},
		"a shim that crashed":                   {was: terminated(2, "Error", ""), want: &plan.Exit{Reason: v1alpha1.ReasonShimLost, Code: 2, Message: plan.ShimLost.Message, ReportedAt: at}},
		"killed when its grace period was over": {is: terminated(137, "Error", ""), deletion: at, want: &plan.Exit{Reason: v1alpha1.ReasonForcedOff, Code: 137, Message: plan.ForcedOff.Message, ReportedAt: at}},
		"killed before that":                    {is: terminated(137, "Error", ""), deletion: at.Add(time.Second), want: &plan.Exit{Reason: v1alpha1.ReasonShimLost, Code: 137, Message: plan.ShimLost.Message, ReportedAt: at}},
	} {
		t.Run(name, func(t *testing.T) {
			var deletion *metav1.Time
			if !tt.deletion.IsZero() {
				deletion = &metav1.Time{Time: tt.deletion}
			}
			if tt.want != nil {
				tt.want.Began = began
			}
			got := exitOf(corev1.ContainerStatus{State: tt.is, LastTerminationState: tt.was}, deletion)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("end (-want +got):\n%s", diff)
			}
		})
	}
	for cause, end := range exits {
		if !end.Reason.StandsIn(v1alpha1.InLastExit) {
			t.Errorf("the end of cause %q is not among those that are read again: %s", cause, end.Reason)
		}
	}
}

// TestAVirtualMachineOfWhichTheCacheKeepsLittle is read from the API server, and not known while that does not answer.
func TestAVirtualMachineOfWhichTheCacheKeepsLittle(t *testing.T) {
	w, n := one(t)
	n.slow, n.cache = true, w.cluster.copy()
	if err := berth.TrimVM(n.cache.vm, 0); err != nil {
		t.Fatal(err)
	}
	got, err := n.agent.VirtualMachine(t.Context(), vmUID)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w.cluster.vm.Spec, got.Spec); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	n.cutOff = true
	if got, err := n.agent.VirtualMachine(t.Context(), vmUID); err == nil {
		t.Errorf("while the API server does not answer: %+v", got)
	}
}
