package controllers_test

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/env"
)

// commits has disks of a guest become images, of which one registry refuses one.
func commits(w scenario) {
	t := w.T
	w.labelled()
	create := func(name string, ttl *int32) *v1alpha1.VirtualMachineCommit {
		t.Helper()
		c := &v1alpha1.VirtualMachineCommit{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: name}}
		c.Spec = v1alpha1.VirtualMachineCommitSpec{
			VirtualMachineName: web, DiskName: "root", Image: "registry.example/" + name + ":1", PushSecretName: "push", TTLSecondsAfterFinished: ttl,
		}
		if err := w.Create(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	until := func(c *v1alpha1.VirtualMachineCommit, reason v1alpha1.Reason, done, failed metav1.ConditionStatus) {
		t.Helper()
		env.Eventually(t, c.Name+" to say "+string(reason), func() bool {
			if err := w.Get(t.Context(), client.ObjectKeyFromObject(c), c); err != nil {
				t.Fatal(err)
			}
			list := c.Status.Conditions
			return condition.Reason(list, v1alpha1.ConditionComplete) == reason && condition.Is(list, v1alpha1.ConditionComplete, done) && condition.Is(list, v1alpha1.ConditionFailed, failed)
		})
	}
	porter := func(c *v1alpha1.VirtualMachineCommit) (found *corev1.Pod) {
		t.Helper()
		env.Eventually(t, "the porter of "+c.Name, func() bool {
			var pods corev1.PodList
			if err := w.List(t.Context(), &pods, client.InNamespace(w.Namespace)); err != nil {
				t.Fatal(err)
			}
			for i := range pods.Items {
				if owner := berth.PorterOwner(&pods.Items[i]); owner != nil && owner.UID == c.UID {
					found = &pods.Items[i]
				}
			}
			return found != nil
		})
		return found
	}

	early := create("early", nil)
	until(early, v1alpha1.ReasonNothingToCommit, metav1.ConditionFalse, metav1.ConditionFalse)
	w.apply(nil)
	w.runs()
	e, err := berth.ParseErrand(porter(early))
	vm := w.VM(web)
	if err != nil || e.Commit == nil || *e.Commit != (berth.Commit{VM: vm.UID, Disk: "root", Quiesce: v1alpha1.QuiesceIfPossible}) || e.PullSecrets[0] != "push" {
		t.Errorf("the porter is sent for %+v, %v", e, err)
	}
	until(early, v1alpha1.ReasonCommitting, metav1.ConditionFalse, metav1.ConditionFalse)
	ends(w, porter(early), corev1.PodSucceeded, `{"digest":"sha256:aa","size":5,"quiesced":true,"takenAt":"2026-01-01T00:00:00Z"}`)
	until(early, v1alpha1.ReasonCommitted, metav1.ConditionTrue, metav1.ConditionFalse)
	if s := early.Status; s.Digest != "sha256:aa" || s.Size.Value() != 5 || !*s.Quiesced || s.TakenAt.IsZero() || s.FinishedAt.IsZero() {
		t.Errorf("its status is %+v", s)
	}

	refused := create("refused", new(int32(1)))
	ends(w, porter(refused), corev1.PodFailed, "PushFailed: pushing image: no space")
	env.Eventually(t, "its going", func() bool { // or it was seen failed before
		err := w.Get(t.Context(), client.ObjectKeyFromObject(refused), refused)
		return client.IgnoreNotFound(err) == nil && err != nil
	})
	if got := condition.Reason(refused.Status.Conditions, v1alpha1.ConditionFailed); got != "" && got != v1alpha1.ReasonPushFailed && got != v1alpha1.ReasonCommitting {
		t.Errorf("it said %s", got)
	}
	env.Eventually(t, "the porters to be gone", func() bool {
		var pods corev1.PodList
		return w.List(t.Context(), &pods, client.InNamespace(w.Namespace)) == nil && len(pods.Items) == 1 // the berth
	})
}
