package virtualmachine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// stage is a world whose operator looks only when it is told to, so that a test
// sees each step.
type stage struct {
	*env.World
	*Reconciler
	events *events.FakeRecorder
	// reads changes what the operator's cache has of an object; nil leaves it the truth.
	reads func(client.Object) error
	// mute makes every write of a status fail.
	mute bool
}

func newStage(t *testing.T, config *rest.Config, c client.Client) *stage {
	t.Helper()
	s := &stage{World: env.NewWorld(t, c), events: events.NewFakeRecorder(100)}
	live, err := client.NewWithWatch(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	cached := interceptor.NewClient(live, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, key, o, opts...)
			if pod, is := o.(*corev1.Pod); is { // as the operator's cache has it
				berth.Slim(pod)
			}
			if s.reads != nil && err == nil {
				err = s.reads(o)
			}
			return err
		},
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			if s.mute {
				return errors.New("no answer")
			}
			return c.SubResource(sub).Apply(ctx, o, opts...)
		},
	})
	s.Reconciler = &Reconciler{
		Client: cached, Live: live, Events: s.events, Status: &kube.StatusWriter{Client: cached, Manager: kube.OperatorManager},
		Options: berth.Options{ShimImage: "shim", CPURequest: resource.MustParse("100m"), AllowedAnnotations: []string{"example.com/*"}},
		Now:     time.Now,
	}
	return s
}

// look lets the operator look at the VirtualMachine web, once.
func (s *stage) look() ctrl.Result {
	s.T.Helper()
	result, err := s.Reconcile(s.T.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}})
	if err != nil {
		s.T.Fatalf("reconciling: %v", err)
	}
	return result
}

// settle lets it look until it has acted and told.
func (s *stage) settle() ctrl.Result {
	s.T.Helper()
	s.look()
	s.look()
	return s.look()
}

func (s *stage) make(changes ...func(*v1alpha1.VirtualMachine)) {
	s.T.Helper()
	vm := vm(changes...)
	vm.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: "web"}
	s.must("making VirtualMachine", s.World.Create(s.T.Context(), vm))
}

func (s *stage) must(what string, err error) {
	s.T.Helper()
	if err != nil {
		s.T.Fatalf("%s: %v", what, err)
	}
}

// runs gives the berth of a VirtualMachine a node and a guest.
func (s *stage) runs(node string) *corev1.Pod {
	s.T.Helper()
	s.settle()
	s.Bind("web", node)
	s.settle()
	s.Agent("web", v1alpha1.VirtualMachineStatus{Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)}})
	s.Kubelet("web", corev1.PodRunning, true)
	s.settle()
	s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonReady)
	return s.Pod("web")
}

// wants checks the reason of a condition.
func (s *stage) wants(kind string, reason v1alpha1.Reason, words ...string) {
	s.T.Helper()
	conditions := s.VM("web").Status.Conditions
	i := slices.IndexFunc(conditions, func(c metav1.Condition) bool { return c.Type == kind })
	if i < 0 || conditions[i].Reason != string(reason) {
		s.T.Errorf("%s wants reason %s: %+v", kind, reason, conditions)
		return
	}
	for _, word := range words {
		if !strings.Contains(conditions[i].Message, word) {
			s.T.Errorf("the message of %s does not say %q: %s", kind, word, conditions[i].Message)
		}
	}
}

// told returns the reasons of the Events so far.
func (s *stage) told() (reasons []string) {
	for {
		select {
		case e := <-s.events.Events:
			reasons = append(reasons, strings.Fields(e)[1])
		default:
			return reasons
		}
	}
}

func TestAgainstAPIServer(t *testing.T) {
	config, c := env.APIServer(t)
	stageFor := func(t *testing.T) *stage { return newStage(t, config, c) }
	env.NewWorld(t, c).Node("n1")

	t.Run("a stranger's pod of the name is told, and awaited", func(t *testing.T) {
		s := stageFor(t)
		stranger := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "web"}, Spec: podSpec(t, s)}
		s.must("making pod", s.World.Create(t.Context(), stranger))
		s.make()
		if wake := s.settle().RequeueAfter; wake == 0 || wake > time.Minute {
			t.Errorf("looks again after %s, want within a minute: nothing watches that pod", wake)
		}
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPodNameTaken, "delete that pod")
		if diff := cmp.Diff([]string{"PodNameTaken"}, s.told()); diff != "" {
			t.Errorf("Events -want +got:\n%s", diff)
		}
		s.KubeletEnds(stranger)
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending)
	})

	t.Run("a quota that is exceeded is told, and recovered from", func(t *testing.T) {
		s := stageFor(t)
		quota := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "small"}}
		quota.Spec.Hard = corev1.ResourceList{corev1.ResourceRequestsMemory: resource.MustParse("512Mi")}
		s.must("making quota", s.World.Create(t.Context(), quota))
		quota.Status.Hard, quota.Status.Used = quota.Spec.Hard, corev1.ResourceList{corev1.ResourceRequestsMemory: resource.MustParse("0")}
		s.must("reporting quota", s.World.Status().Update(t.Context(), quota))
		s.make()
		env.Eventually(t, "the quota to count", func() bool {
			s.look()
			if pod := s.Pod("web"); pod != nil { // the API server learns of a quota by a watch of its own
				s.KubeletEnds(pod)
				s.settle()
			}
			return condition.Reason(s.VM("web").Status.Conditions, v1alpha1.ConditionScheduled) == v1alpha1.ReasonBerthRefused
		})
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthRefused, "exceeded quota: small")
		if wake := s.look().RequeueAfter; wake == 0 || wake > time.Minute {
			t.Errorf("looks again after %s, want within a minute: nothing watches quotas", wake)
		}
		if told := s.told(); !slices.Equal(slices.Compact(told), []string{"BerthRefused"}) {
			t.Errorf("Events are %q", told)
		}
		s.must("lifting quota", s.World.Delete(t.Context(), quota))
		env.Eventually(t, "a berth", func() bool { s.look(); return s.Pod("web") != nil })
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending)
	})

	t.Run("an annotation that is not allowed is told", func(t *testing.T) {
		s := stageFor(t)
		s.make(func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Berth = &v1alpha1.BerthTemplate{Annotations: map[string]string{"io.containerd.x": "y"}}
		})
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthRefused, "io.containerd.x", "allowedAnnotations")
		if s.Pod("web") != nil {
			t.Error("it got a berth")
		}
	})

	t.Run("an evicted guest comes back once its end is proven", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.Kubelet("web", corev1.PodFailed, false)
		s.settle()
		if s.Pod("web").DeletionTimestamp == nil {
			t.Fatal("the berth that failed is kept")
		}
		s.KubeletEnds(pod)
		s.settle()
		if s.Pod("web").UID != pod.UID {
			t.Fatal("a failed pod proved nothing, and yet the berth was released")
		}
		s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID})
		s.settle()
		if again := s.Pod("web"); again == nil || again.UID == pod.UID {
			t.Fatal("no new berth came")
		}
	})

	for name, lose := range map[string]func(*stage, *corev1.Node){
		"a deleted node": func(s *stage, n *corev1.Node) { s.must("deleting node", s.World.Delete(s.T.Context(), n)) },
		"the out-of-service taint": func(s *stage, n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
			s.must("tainting node", s.World.Update(s.T.Context(), n))
		},
	} {
		t.Run("a lost guest stays where it is until "+name, func(t *testing.T) {
			s := stageFor(t)
			node := s.Node(s.Namespace)
			s.make()
			pod := s.runs(node.Name)
			node.Status.Conditions[0].Status = corev1.ConditionUnknown
			s.must("losing node", s.World.Status().Update(t.Context(), node))
			s.must("deleting pod", s.World.Delete(t.Context(), pod))
			s.KubeletEnds(pod)
			s.settle()
			s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonNodeLost, "out-of-service")
			s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonNodeLost, "out-of-service")
			if vm := s.VM("web"); vm.Status.Phase != v1alpha1.PhaseUnknown || s.Pod("web").UID != pod.UID {
				t.Fatalf("phase is %s, want Unknown and the same berth", vm.Status.Phase)
			}
			lose(s, node)
			s.settle()
			if again := s.Pod("web"); again == nil || again.UID == pod.UID {
				t.Error("no new berth came")
			}
		})
	}

	t.Run("a node that the cache does not know yet is no proof", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.must("deleting pod", s.World.Delete(t.Context(), pod))
		s.KubeletEnds(pod)
		s.reads = func(o client.Object) error {
			if _, ok := o.(*corev1.Node); ok {
				return apierrors.NewNotFound(corev1.Resource("nodes"), "n1")
			}
			return nil
		}
		s.settle()
		if again := s.Pod("web"); again == nil || again.UID != pod.UID {
			t.Error("the berth was released")
		}
	})

	t.Run("a pod that somebody freed of its finalizer proves nothing", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.must("freeing pod", s.World.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
		s.KubeletEnds(pod)
		s.settle()
		if s.Pod("web") != nil {
			t.Fatal("a second guest may start while the first may live")
		}
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthVanished, "the agent on node n1")
		if b := s.VM("web").Status.Berth; b == nil || b.PodUID != pod.UID {
			t.Errorf("the status names the berth %+v, want %s", b, pod.UID)
		}
		s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID})
		s.settle()
		if s.Pod("web") == nil {
			t.Error("no new berth came")
		}
	})

	t.Run("a taint that only the cache still has is no proof", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.must("deleting pod", s.World.Delete(t.Context(), pod))
		s.KubeletEnds(pod)
		s.reads = func(o client.Object) error {
			if n, ok := o.(*corev1.Node); ok {
				outOfService(n)
			}
			return nil
		}
		s.settle()
		if again := s.Pod("web"); again == nil || again.UID != pod.UID {
			t.Error("the berth was released")
		}
	})

	t.Run("a berth that the cache does not have yet is not made twice, nor told away", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.reads = func(o client.Object) error {
			if _, ok := o.(*corev1.Pod); ok {
				return apierrors.NewNotFound(corev1.Resource("pods"), "web")
			}
			return nil
		}
		s.settle()
		if b := s.VM("web").Status.Berth; b == nil || b.PodUID != pod.UID {
			t.Errorf("the status names the berth %+v, want %s", b, pod.UID)
		}
		s.reads = nil
		s.settle()
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonReady)
		if told := s.told(); len(told) > 0 {
			t.Errorf("Events are %q", told)
		}
	})

	t.Run("a berth whose VirtualMachine is gone is released on the host's word alone", func(t *testing.T) {
		s := stageFor(t)
		s.Node(s.Namespace)
		host := v1alpha1.VirtualMachineHostStatus{Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady)}}
		s.Host(s.Namespace, host)
		s.make()
		pod := s.runs(s.Namespace)
		orphan := s.VM("web")
		s.must("deleting VirtualMachine", s.World.Delete(t.Context(), orphan))
		s.must("forcing it", s.World.Patch(t.Context(), s.VM("web"), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
		s.make() // another of the same name must wait
		s.settle()
		if p := s.Pod("web"); p.UID != pod.UID || p.DeletionTimestamp == nil {
			t.Fatal("the orphan is not ended")
		}
		s.KubeletEnds(pod)
		s.settle()
		if p := s.Pod("web"); p == nil || p.UID != pod.UID {
			t.Fatal("the orphan was released without proof")
		}
		host.ReleasedBerths = []types.UID{pod.UID}
		s.Host(s.Namespace, host)
		s.settle()
		if p := s.Pod("web"); p == nil || p.UID == pod.UID {
			t.Error("the new VirtualMachine got no berth")
		}
	})

	t.Run("a berth that was deleted before it had a node goes at once", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		s.settle()
		s.must("deleting VirtualMachine", s.World.Delete(t.Context(), s.VM("web")))
		s.settle()
		s.settle()
		if s.Pod("web") != nil || s.VM("web") != nil {
			t.Error("something is left")
		}
	})

	t.Run("kept disks bring the next berth back to their node", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		pod := s.runs("n1")
		s.Agent("web", v1alpha1.VirtualMachineStatus{Disks: []v1alpha1.DiskStatus{{Name: "root"}}, ReleasedBerth: pod.UID})
		s.must("deleting pod", s.World.Delete(t.Context(), pod))
		s.KubeletEnds(pod)
		s.settle()
		s.settle()
		want := []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}}
		if diff := cmp.Diff(want, s.Pod("web").Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[0].MatchFields); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})

	t.Run("an API server that fails is tried again", func(t *testing.T) {
		s := stageFor(t)
		s.make()
		s.reads = func(client.Object) error { return errors.New("no answer") }
		if _, err := s.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}}); err == nil {
			t.Error("the failure was swallowed")
		}
	})

	t.Run("what could not be told is told soon, whosever fault it is", func(t *testing.T) {
		s := stageFor(t)
		s.make(func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Berth = &v1alpha1.BerthTemplate{Annotations: map[string]string{"io.containerd.x": "y"}}
		})
		s.mute = true
		env.Eventually(t, "the failure", func() bool {
			_, err := s.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}})
			return err != nil
		})
		s.mute = false
		s.look()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthRefused)
	})
}

// podSpec is a pod that restricted Pod Security takes, and is not ours.
func podSpec(t *testing.T, s *stage) corev1.PodSpec {
	t.Helper()
	pod, err := berth.PodFor(vm(), "", s.Options)
	s.must("making pod", err)
	return pod.Spec
}
