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

// onNodes has an image brought to both nodes: one porter finds out what its name means, the other is told. What hosts tell of
// lasts, so an image has a digest of its own.
func onNodes(w scenario, digest, other string) {
	t := w.T
	w.labelled()
	image := &v1alpha1.VirtualMachineImage{ObjectMeta: metav1.ObjectMeta{Namespace: w.Namespace, Name: "debian"}}
	image.Spec.Image = "registry.example/debian:12"
	if err := w.Create(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	until := func(what string, reason v1alpha1.Reason, digest string, ready int32) {
		t.Helper()
		env.Eventually(t, what, func() bool {
			if err := w.Get(t.Context(), client.ObjectKeyFromObject(image), image); err != nil {
				t.Fatal(err)
			}
			nodes := image.Status.Nodes
			return condition.Reason(image.Status.Conditions, v1alpha1.ConditionReady) == reason && image.Status.Digest == digest &&
				nodes != nil && *nodes == v1alpha1.ImageNodes{Ready: ready, Total: 2}
		})
	}
	// porter waits for the one that there is, for a node and with a digest.
	porter := func(node, digest string) *corev1.Pod {
		t.Helper()
		var pods corev1.PodList
		env.Eventually(t, "one porter for "+node, func() bool {
			if err := w.List(t.Context(), &pods, client.InNamespace(w.Namespace)); err != nil {
				t.Fatal(err)
			}
			return len(pods.Items) == 1 && pods.Items[0].Name == berth.PorterName("debian", node)
		})
		if e, err := berth.ParseErrand(&pods.Items[0]); err != nil || e.Digest != digest {
			t.Fatalf("the porter is sent for %+v, %v", e, err)
		}
		return &pods.Items[0]
	}
	has := func(node string, digests ...string) {
		t.Helper()
		status := v1alpha1.VirtualMachineHostStatus{
			Acceleration: v1alpha1.AccelerationKVM,
			Conditions:   []metav1.Condition{env.Condition(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady)},
		}
		for _, d := range digests {
			status.Images = append(status.Images, v1alpha1.HostImage{Digest: d})
		}
		w.Host(node, status)
	}

	first := porter("n1", "")
	until("a node to be asked", v1alpha1.ReasonPullingImage, "", 0)
	ends(w, first, corev1.PodSucceeded, digest)
	has("n1", digest)
	second := porter("n2", digest)
	until("one node to have it", v1alpha1.ReasonPullingImage, digest, 1)
	ends(w, second, corev1.PodFailed, "RegistryUnreachable: no route to host")
	until("the failure to be told", v1alpha1.ReasonRegistryUnreachable, digest, 1)
	has("n2", digest)
	until("both nodes to have it", v1alpha1.ReasonImageReady, digest, 2)

	image.Spec.RefreshedAt = "today"
	if err := w.Update(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	ends(w, porter("n1", ""), corev1.PodSucceeded, other)
	has("n1", digest, other)
	has("n2", digest, other)
	until("what it is now to be on both nodes", v1alpha1.ReasonImageReady, other, 2)
	env.Eventually(t, "all porters to be gone", func() bool {
		var pods corev1.PodList
		return w.List(t.Context(), &pods, client.InNamespace(w.Namespace)) == nil && len(pods.Items) == 0
	})
	if err := w.Delete(t.Context(), image); err != nil { // or it wants porters as soon as hosts tell of other images
		t.Fatal(err)
	}
}

// ends has a pod end with a termination message.
func ends(w scenario, pod *corev1.Pod, phase corev1.PodPhase, message string) {
	w.T.Helper()
	pod.Status.Phase = phase
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: berth.Container, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{Message: message, FinishedAt: metav1.Now()},
	}}}
	if err := w.Status().Update(w.T.Context(), pod); err != nil {
		w.T.Fatal(err)
	}
}
