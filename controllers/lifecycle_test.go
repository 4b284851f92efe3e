package controllers_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/env"
)

const (
	// user is the field manager of the user, who applies.
	user = "kubectl"
	// web is the name of the one VirtualMachine in each scenario.
	web = "web"
)

func TestOperator(t *testing.T) {
	config, c := env.APIServer(t)
	nodes := env.NewWorld(t, c)
	for _, name := range []string{"n1", "n2"} {
		nodes.Node(name)
		nodes.Host(name, v1alpha1.VirtualMachineHostStatus{
			Acceleration: v1alpha1.AccelerationKVM,
			Conditions:   []metav1.Condition{env.Condition(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady)},
		})
	}
	t.Run("writes no more than it must", func(t *testing.T) {
		w := scenario{env.NewWorld(t, c)}
		o := startOperator(t, config, "one")
		w.labelled()
		o.wrote()
		w.apply(nil)
		w.runs()
		w.delete()
		w.ends(w.Pod(web), true)
		want := []string{
			"patch virtualmachines",        // its finalizer
			"create pods",                  //
			"patch virtualmachines/status", // the berth's name, for the agent
			"patch virtualmachines/status", // Ready
			"delete pods",                  //
			"patch virtualmachines/status", // Stopping, since this scenario takes longer than statusDebounce
			"patch pods",                   // its finalizer
			"patch virtualmachines/status", // no berth
			"patch virtualmachines",        // its finalizer
		}
		// It may be fewer, if it sees two changes at once, and one more, if its cache has not seen its own last write.
		got := o.wrote()
		extra := slices.Clone(got)
		for _, what := range want {
			if i := slices.Index(extra, what); i >= 0 {
				extra = slices.Delete(extra, i, i+1)
			}
		}
		if len(extra) > 1 || len(extra) == 1 && !slices.Contains(want, extra[0]) {
			t.Errorf("it need not have written %q: -want +got:\n%s", extra, cmp.Diff(want, got))
		}
	})
	t.Run("leads a guest through its life", func(t *testing.T) {
		startOperator(t, config, "one")
		lifecycle(scenario{env.NewWorld(t, c)})
	})
	t.Run("may be killed after every write", func(t *testing.T) {
		o := startOperator(t, config, "one")
		o.setKillOnWrite(true)
		lifecycle(scenario{env.NewWorld(t, c)})
		o.setKillOnWrite(false)
		if berths := o.berths(); berths != 4 {
			t.Errorf("it asked for %d berths, want one for each of 4 starts", berths)
		}
	})
	t.Run("may be killed after every write of what becomes of a finished guest", func(t *testing.T) {
		o := startOperator(t, config, "one")
		o.setKillOnWrite(true)
		w := scenario{env.NewWorld(t, c)}
		finishes := map[string]any{"restartPolicy": "Never", "ttlSecondsAfterFinished": 31536000}
		w.apply(finishes)
		first := w.runs()
		w.Kubelet(web, corev1.PodSucceeded, false)
		w.until("a guest that succeeded", func(vm *v1alpha1.VirtualMachine) bool {
			return vm.Status.Phase == v1alpha1.PhaseSucceeded && vm.Status.Ended != nil && vm.Status.Ended.Time != nil
		})
		if err := c.Delete(t.Context(), w.Pod(web)); err != nil {
			t.Fatal(err)
		}
		w.KubeletEnds(first)
		status := guest(false, v1alpha1.ReasonPoweredOff)
		status.ReleasedBerth = first.UID
		w.Agent(web, status)
		w.until("a guest that succeeded, without a pod", func(vm *v1alpha1.VirtualMachine) bool {
			return w.Pod(web) == nil && vm.Status.Berth == nil && vm.Status.Phase == v1alpha1.PhaseSucceeded
		})
		finishes["ttlSecondsAfterFinished"] = 0
		w.apply(finishes)
		w.until("its deletion", func(vm *v1alpha1.VirtualMachine) bool { return vm.DeletionTimestamp != nil })
		status.Conditions, status.Disks = []metav1.Condition{env.Condition(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonDisksRemoved)}, nil
		w.Agent(web, status)
		env.Eventually(t, "the VirtualMachine's going", func() bool { return w.VM(web) == nil })
		o.setKillOnWrite(false)
		if berths := o.berths(); berths != 1 {
			t.Errorf("it asked for %d berths, want one", berths)
		}
	})
	for name, leaders := range map[string]int{"may be killed after every write for a guest on a claim": 1, "may be two leaders all the while, that are killed so": 2} {
		t.Run(name, func(t *testing.T) {
			for range leaders {
				startOperator(t, config, "one").setKillOnWrite(true)
			}
			onClaim(scenario{env.NewWorld(t, c)})
		})
	}
	t.Run("brings images to nodes", func(t *testing.T) {
		startOperator(t, config, "one")
		onNodes(scenario{env.NewWorld(t, c)}, "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64))
	})
	t.Run("may be killed after every write for an image", func(t *testing.T) {
		startOperator(t, config, "one").setKillOnWrite(true)
		onNodes(scenario{env.NewWorld(t, c)}, "sha256:"+strings.Repeat("c", 64), "sha256:"+strings.Repeat("d", 64))
	})
	t.Run("may be killed after every write for a commit", func(t *testing.T) {
		startOperator(t, config, "one").setKillOnWrite(true)
		commits(scenario{env.NewWorld(t, c)})
	})
	t.Run("creates one berth though it learns late that it exists", func(t *testing.T) {
		o := startOperator(t, config, "one")
		o.setDelayPods(true)
		w := scenario{env.NewWorld(t, c)}
		w.apply(nil)
		w.runs()
		o.setDelayPods(false)
		if berths := o.berths(); berths != 1 {
			t.Errorf("it asked for %d berths", berths)
		}
		w.delete()
		w.ends(w.Pod(web), true)
	})
	t.Run("ends a berth that has another name than its VirtualMachine", func(t *testing.T) {
		startOperator(t, config, "one")
		w := scenario{env.NewWorld(t, c)}
		w.apply(nil)
		first := w.runs()
		second, err := berth.PodFor(berth.Input{VM: w.VM(web), Options: berth.Options{ShimImage: "registry.example/berth-shim:1"}})
		if err != nil {
			t.Fatal(err)
		}
		second.Name += "-2"
		if err := c.Create(t.Context(), second); err != nil { // it alone wakes the operator
			t.Fatal(err)
		}
		env.Eventually(t, "the second berth's end", func() bool { p := w.Pod(second.Name); return p == nil || p.DeletionTimestamp != nil })
		w.KubeletEnds(second)
		env.Eventually(t, "the second berth's going", func() bool { return w.Pod(second.Name) == nil })
		if p := w.Pod(web); p == nil || p.UID != first.UID || p.DeletionTimestamp != nil {
			t.Errorf("the first berth is %+v", p)
		}
		w.delete()
		w.ends(first, true)
	})
	t.Run("is led by one of two replicas", func(t *testing.T) {
		first, second := startOperator(t, config, "elected"), startOperator(t, config, "elected")
		w := scenario{env.NewWorld(t, c)}
		w.apply(nil)
		w.runs()
		one, other := first.wrote(), second.wrote()
		if len(one) > 0 && len(other) > 0 {
			t.Errorf("both wrote: %q and %q", one, other)
		}
		if len(one) > 0 {
			first.kill()
		} else {
			second.kill()
		}
		w.delete()
		w.ends(w.Pod(web), true)
	})
}

// lifecycle leads a guest through everything that its user may ask for.
func lifecycle(w scenario) {
	t := w.T
	w.apply(nil)
	first := w.runs()
	w.promises(first)

	w.apply(map[string]any{"cpu": map[string]any{"cores": 2}})
	w.until("the change to be seen", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.ObservedGeneration == vm.Generation })
	if pod := w.Pod(web); pod.UID != first.UID || pod.DeletionTimestamp != nil {
		t.Fatal("a guest that ran lost its berth to a change")
	}
	w.Agent(web, guest(false, v1alpha1.ReasonPoweredOff))
	w.ends(first, false)
	second := w.runs()
	if second.Spec.Containers[0].Resources.Requests.Cpu().MilliValue() != 200 {
		t.Error("the new berth does not have the change")
	}

	w.apply(map[string]any{"state": "Stopped"})
	w.ends(second, false)
	w.until("a guest that is stopped", func(vm *v1alpha1.VirtualMachine) bool {
		return vm.Status.Phase == v1alpha1.PhaseStopped && meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady) == nil &&
			vm.Status.Berth == nil && vm.Status.NodeName == "n1"
	})
	w.apply(nil)
	third := w.runs()
	w.apply(map[string]any{"restartedAt": "today"})
	w.ends(third, false)
	fourth := w.runs()
	w.onlyUserWrites()
	w.delete()
	w.ends(fourth, true)
}

// onClaim leads a guest on a claim through starts and ends: the claim is taken by each berth that the status names, and by
// none else.
func onClaim(w scenario) {
	t := w.T
	spec := map[string]any{
		"disks": []any{map[string]any{"name": "data", "persistentVolumeClaim": map[string]any{"templateName": "data"}}},
		"volumeClaimTemplates": []any{map[string]any{
			"metadata": map[string]any{"name": "data"},
			"spec": map[string]any{
				"accessModes": []any{"ReadWriteOnce"}, "resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}},
			},
		}},
	}
	leases := func() []coordinationv1.Lease {
		var list coordinationv1.LeaseList
		if err := w.List(t.Context(), &list, client.InNamespace(w.Namespace)); err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	runs := func() *corev1.Pod {
		t.Helper()
		pod := w.runs()
		l := leases()
		if len(l) != 1 || *l[0].Spec.HolderIdentity != string(w.VM(web).UID) || !slices.Contains(slices.Collect(maps.Values(l[0].Annotations)), string(pod.UID)) {
			t.Fatalf("the guest runs in %s, and the Leases are %+v", pod.UID, l)
		}
		if pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "web-data" {
			t.Errorf("the volumes are %+v", pod.Spec.Volumes)
		}
		return pod
	}
	w.apply(spec)
	first := runs()
	spec["restartedAt"] = "today"
	w.apply(spec)
	w.ends(first, false)
	second := runs()
	spec["state"] = "Stopped"
	w.apply(spec)
	w.ends(second, false)
	env.Eventually(t, "the claim's release", func() bool { return len(leases()) == 0 })
	spec["state"] = "Running"
	w.apply(spec)
	third := runs()
	w.onlyUserWrites()
	w.delete()
	w.ends(third, true)
}

// scenario is a world with a user in it.
type scenario struct{ *env.World }

// apply applies a VirtualMachine as its user does, with changes to its spec.
func (w scenario) apply(changes map[string]any) {
	w.T.Helper()
	spec := map[string]any{
		"memory": map[string]any{"size": "1Gi"},
		"disks":  []any{map[string]any{"name": "root", "image": "registry.example/debian:12"}},
	}
	maps.Copy(spec, changes)
	u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("VirtualMachine"))
	u.SetNamespace(w.Namespace)
	u.SetName(web)
	u.SetLabels(map[string]string{"team": "blue"})
	u.SetAnnotations(map[string]string{"example.com/why": "a test"})
	if err := w.Apply(w.T.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner(user)); err != nil {
		w.T.Fatalf("applying: %v", err)
	}
}

func (w scenario) delete() {
	w.T.Helper()
	if err := w.Delete(w.T.Context(), w.VM(web)); err != nil {
		w.T.Fatal(err)
	}
}

func (w scenario) until(what string, claim func(*v1alpha1.VirtualMachine) bool) {
	w.T.Helper()
	var vm *v1alpha1.VirtualMachine
	w.T.Cleanup(func() {
		if w.T.Failed() && vm != nil {
			raw, _ := json.MarshalIndent(vm.Status, "", " ")
			w.T.Logf("when %s was awaited: %s", what, raw)
			vm = nil
		}
	})
	env.Eventually(w.T, what, func() bool {
		vm = w.VM(web)
		return vm != nil && claim(vm)
	})
	vm = nil
}

// runs waits for a new berth, gives it a node, and starts a guest in it.
func (w scenario) runs() *corev1.Pod {
	w.T.Helper()
	env.Eventually(w.T, "a berth", func() bool { return w.Pod(web) != nil })
	w.Bind(web, "n1")
	pod := w.Pod(web)
	w.until("a status that names the berth", func(vm *v1alpha1.VirtualMachine) bool {
		return vm.Status.NodeName == "n1" && vm.Status.Berth != nil && vm.Status.Berth.PodUID == pod.UID
	})
	w.Agent(web, guest(true, v1alpha1.ReasonStarted))
	w.Kubelet(web, corev1.PodRunning, true)
	w.until("a guest that is ready", func(vm *v1alpha1.VirtualMachine) bool {
		return vm.Status.Phase == v1alpha1.PhaseRunning && says(vm, v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady) &&
			cmp.Equal(vm.Status.Addresses, []string{"10.9.8.7"})
	})
	return pod
}

// ends waits until the operator ends a berth, plays kubelet and agent, and sees that the
// operator removes finalizers only on evidence, first the pod's.
func (w scenario) ends(pod *corev1.Pod, forGood bool) {
	w.T.Helper()
	env.Eventually(w.T, "the berth's end", func() bool { return w.Pod(web).DeletionTimestamp != nil })
	w.until("a guest that stops", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.Phase == v1alpha1.PhaseStopping })
	w.KubeletEnds(pod)
	if p := w.Pod(web); p == nil || p.UID != pod.UID {
		w.T.Fatal("the berth went before its guest was proven gone")
	}
	status := guest(false, v1alpha1.ReasonNotRunning)
	status.ReleasedBerth = pod.UID
	w.Agent(web, status)
	env.Eventually(w.T, "the berth's going", func() bool { p := w.Pod(web); return p == nil || p.UID != pod.UID })
	if !forGood {
		return
	}
	if w.VM(web) == nil {
		w.T.Fatal("the VirtualMachine went before its disks")
	}
	w.until("a status without berth", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.Berth == nil })
	status.Disks = nil
	status.Conditions = []metav1.Condition{env.Condition(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonDisksRemoved)}
	w.Agent(web, status)
	env.Eventually(w.T, "the VirtualMachine's going", func() bool { return w.VM(web) == nil })
}

// promises checks what the documentation promises of a berth, as the API server took it.
func (w scenario) promises(pod *corev1.Pod) {
	t := w.T
	t.Helper()
	vm := w.VM(pod.Name)
	if owner, ours := berth.OwnerUID(pod); !ours || owner != vm.UID {
		t.Error("the berth is not its VirtualMachine's")
	}
	if reason := berth.Mutation(pod, vm); reason != "" {
		t.Errorf("the berth counts as altered: %s", reason)
	}
	if !cmp.Equal(pod.Finalizers, []string{berth.PodFinalizer}) {
		t.Errorf("finalizers of the berth are %q", pod.Finalizers)
	}
	s := pod.Spec
	if len(s.Containers) != 1 || len(s.Volumes) != 0 || *s.AutomountServiceAccountToken || *s.TerminationGracePeriodSeconds != 70 || s.RestartPolicy != corev1.RestartPolicyAlways {
		t.Errorf("the berth is not as promised: %+v", s)
	}
	memory := resource.NewQuantity(berth.Memory(vm, false), resource.BinarySI)
	r := s.Containers[0].Resources
	if !r.Limits.Memory().Equal(*memory) || !r.Requests.Memory().Equal(*memory) || r.Limits.Cpu().MilliValue() != 2000 || r.Limits.StorageEphemeral().IsZero() || r.Requests.Cpu().MilliValue() != 100 {
		t.Errorf("the berth's resources are %+v", r)
	}
}

// onlyUserWrites checks that nobody but the user wrote anything but status and finalizers.
func (w scenario) onlyUserWrites() {
	w.T.Helper()
	managers := map[string]bool{}
	for _, entry := range w.VM(web).ManagedFields {
		managers[entry.Manager] = true
		if entry.Manager == user {
			continue
		}
		var fields map[string]map[string]any
		if err := json.Unmarshal(entry.FieldsV1.GetRawBytes(), &fields); err != nil {
			w.T.Fatal(err)
		}
		for key, inside := range fields {
			for field := range inside {
				if key != "f:status" && (key != "f:metadata" || field != "f:finalizers") {
					w.T.Errorf("%s wrote %s of %s", entry.Manager, field, key)
				}
			}
		}
	}
	if !managers["berth-operator"] || !managers["berth-agent"] {
		w.T.Errorf("operator and agent should be among the managers: %v", managers)
	}
}

// guest is what an agent says of a guest.
func guest(running bool, reason v1alpha1.Reason) v1alpha1.VirtualMachineStatus {
	return v1alpha1.VirtualMachineStatus{
		Conditions: []metav1.Condition{
			env.Condition(v1alpha1.ConditionDisksReady, true, v1alpha1.ReasonDisksReady),
			env.Condition(v1alpha1.ConditionRunning, running, reason),
		},
		Disks:         []v1alpha1.DiskStatus{{Name: "root", Size: resource.NewQuantity(1<<30, resource.BinarySI)}},
		ReleasedBerth: types.UID(""),
	}
}

func says(vm *v1alpha1.VirtualMachine, kind string, status metav1.ConditionStatus, reason v1alpha1.Reason) bool {
	return condition.Is(vm.Status.Conditions, kind, status) && condition.Reason(vm.Status.Conditions, kind) == reason
}

// labelled waits for the labels of both nodes.
func (w scenario) labelled() {
	w.T.Helper()
	env.Eventually(w.T, "labels of both nodes", func() bool {
		var nodes corev1.NodeList
		err := w.List(w.T.Context(), &nodes, client.MatchingLabels{berth.LabelReady: "true"})
		return err == nil && len(nodes.Items) == 2
	})
}
