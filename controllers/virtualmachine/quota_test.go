package virtualmachine

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/env"
)

// TestQuotas: what an administrator may set for a namespace binds its guests as it binds pods, and its users learn of it.
func TestQuotas(t *testing.T) {
	config, c := env.APIServer(t)
	start := func(t *testing.T) *harness { return newHarness(t, config, c) }
	env.NewWorld(t, c).Node("n1")
	if err := schedulingv1.AddToScheme(c.Scheme()); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000}); err != nil {
		t.Fatal(err)
	}

	large := func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Size = new(resource.MustParse("20Gi")) }
	for name, most := range map[corev1.ResourceName]string{
		"count/pods": "0", "pods": "0",
		corev1.ResourceRequestsCPU: "50m", corev1.ResourceRequestsMemory: "512Mi", corev1.ResourceRequestsEphemeralStorage: "10Gi",
		corev1.ResourceLimitsCPU: "1", corev1.ResourceLimitsMemory: "512Mi", corev1.ResourceLimitsEphemeralStorage: "10Gi",
	} {
		t.Run("of "+string(name), func(t *testing.T) {
			s := start(t)
			s.quota(corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{name: resource.MustParse(most)}})
			s.make(large)
			s.refused("exceeded quota: small", string(name))
		})
	}

	t.Run("of a priority", func(t *testing.T) {
		s := start(t)
		s.quota(corev1.ResourceQuotaSpec{
			Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")},
			ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{{
				ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"},
			}}},
		})
		s.make(func(vm *v1alpha1.VirtualMachine) { vm.Spec.PriorityClassName = "high" })
		s.refused("exceeded quota: small")
	})

	t.Run("of VirtualMachines", func(t *testing.T) {
		s := start(t)
		const name = "count/virtualmachines.berth.dev"
		s.quota(corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{name: resource.MustParse("0")}})
		env.Eventually(t, "the quota to count", func() bool {
			vm := vm(stopped, noFinalizer)
			vm.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: "web"}
			err := s.World.Create(t.Context(), vm)
			if err == nil { // the API server learns of a quota by a watch of its own
				s.must("deleting VirtualMachine", s.World.Delete(t.Context(), vm))
			} else if !apierrors.IsForbidden(err) {
				t.Fatal(err)
			}
			return err != nil
		})
	})

	t.Run("of a container, by a LimitRange", func(t *testing.T) {
		s := start(t)
		s.limits(corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Max: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("512Mi")}})
		s.make()
		s.refused("maximum memory usage per Container is 512Mi")
	})

	t.Run("that is exceeded is told once, and recovered from", func(t *testing.T) { recovers(t, start(t)) })
	t.Run("have no defaults that throttle or refuse a guest", func(t *testing.T) { defaults(t, start(t)) })
}

// quota limits the namespace, of which nothing is used.
func (s *harness) quota(spec corev1.ResourceQuotaSpec) *corev1.ResourceQuota {
	s.T.Helper()
	quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "small"}, Spec: spec}
	s.must("making quota", s.World.Create(s.T.Context(), quota))
	quota.Status.Hard, quota.Status.Used = spec.Hard, corev1.ResourceList{}
	for name := range spec.Hard {
		quota.Status.Used[name] = resource.MustParse("0")
	}
	s.must("reporting quota", s.World.Status().Update(s.T.Context(), quota))
	return quota
}

// limits makes a LimitRange.
func (s *harness) limits(item corev1.LimitRangeItem) {
	s.T.Helper()
	s.must("making LimitRange", s.World.Create(s.T.Context(), &corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "limits"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{item}},
	}))
}

// refused waits until the berth is refused, in these words.
func (s *harness) refused(words ...string) {
	s.T.Helper()
	env.Eventually(s.T, "the berth to be refused", func() bool {
		s.reconcile()
		if pod := s.Pod("web"); pod != nil { // the API server learns of a limit by a watch of its own
			s.KubeletEnds(pod)
			s.settle()
		}
		return condition.Reason(s.VM("web").Status.Conditions, v1alpha1.ConditionScheduled) == v1alpha1.ReasonBerthRefused
	})
	s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthRefused, words...)
}

func recovers(t *testing.T, s *harness) {
	quota := s.quota(corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourceRequestsMemory: resource.MustParse("512Mi")}})
	s.make()
	s.refused("exceeded quota: small")
	if wake := s.reconcile().RequeueAfter; wake == 0 || wake > time.Minute {
		t.Errorf("reconciles again after %s, want within a minute: nothing watches quotas", wake)
	}
	if got := s.eventReasons(); !slices.Equal(slices.Compact(got), []string{"BerthRefused"}) {
		t.Errorf("Events are %q", got)
	}
	s.must("lifting quota", s.World.Delete(t.Context(), quota))
	env.Eventually(t, "a berth", func() bool { s.reconcile(); return s.Pod("web") != nil })
	s.settle()
	s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending)
}

func defaults(t *testing.T, s *harness) {
	s.limits(corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Default: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceEphemeralStorage: resource.MustParse("1Gi"),
	}})
	env.Eventually(t, "the LimitRange to count", func() bool { // the API server learns of it by a watch of its own
		other := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "other"}, Spec: podSpec(t, s)}
		other.Spec.Containers[0].Resources = corev1.ResourceRequirements{}
		s.must("making pod", s.World.Create(t.Context(), other, client.DryRunAll))
		return !other.Spec.Containers[0].Resources.Limits.Cpu().IsZero()
	})
	s.make(func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Size = new(resource.MustParse("20Gi")) })
	pod := s.runs("n1")
	if limit := pod.Spec.Containers[0].Resources.Limits.Cpu(); limit.Value() < 2 {
		t.Errorf("a guest of one vCPU may use %s", limit)
	}
}
