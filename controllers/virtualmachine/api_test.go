package virtualmachine

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
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

// harness is a world whose operator reconciles only when the test says so, so that a
// test sees each step.
type harness struct {
	*env.World
	*Reconciler
	events *events.FakeRecorder
	// reads changes what the operator's cache has of an object; nil leaves it the truth.
	reads func(client.Object) error
	// failStatus makes every write of a status fail.
	failStatus bool
}

func newHarness(t *testing.T, config *rest.Config, c client.Client) *harness {
	t.Helper()
	s := &harness{World: env.NewWorld(t, c), events: events.NewFakeRecorder(100)}
	live, err := client.NewWithWatch(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	cached := interceptor.NewClient(live, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			err := c.Get(ctx, key, o, opts...)
			if s.reads != nil && err == nil {
				err = s.reads(o)
			}
			return err
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			var o client.ListOptions
			o.ApplyOptions(opts)
			if leases, is := list.(*coordinationv1.LeaseList); is {
				uid, _ := o.FieldSelector.RequiresExactMatch(indexHolder)
				err := c.List(ctx, leases, client.InNamespace(o.Namespace))
				leases.Items = slices.DeleteFunc(leases.Items, func(l coordinationv1.Lease) bool { return !slices.Contains(holders(&l), uid) })
				return err
			}
			pods, is := list.(*corev1.PodList)
			if !is {
				return c.List(ctx, list, opts...)
			}
			name, _ := o.FieldSelector.RequiresExactMatch(indexOwner) // which the API server does not know
			if err := c.List(ctx, pods, client.InNamespace(o.Namespace), client.HasLabels{berth.LabelVM}); err != nil {
				return err
			}
			all := pods.Items
			pods.Items = nil
			for i := range all {
				var err error
				if s.reads != nil {
					err = s.reads(&all[i])
				}
				if client.IgnoreNotFound(err) != nil {
					return err
				}
				if err == nil && slices.Contains(ownerName(&all[i]), name) {
					berth.TrimForCache(&all[i])
					pods.Items = append(pods.Items, all[i])
				}
			}
			return nil
		},
		SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			if s.failStatus {
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

// reconcile reconciles the VirtualMachine web once.
func (s *harness) reconcile() ctrl.Result {
	s.T.Helper()
	result, err := s.Reconcile(s.T.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}})
	if err != nil {
		s.T.Fatalf("reconciling: %v", err)
	}
	return result
}

// settle reconciles until the operator has acted and reported.
func (s *harness) settle() ctrl.Result {
	s.T.Helper()
	s.reconcile()
	s.reconcile()
	return s.reconcile()
}

func (s *harness) make(changes ...func(*v1alpha1.VirtualMachine)) {
	s.T.Helper()
	vm := vm(changes...)
	vm.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: "web"}
	s.must("making VirtualMachine", s.World.Create(s.T.Context(), vm))
}

func (s *harness) must(what string, err error) {
	s.T.Helper()
	if err != nil {
		s.T.Fatalf("%s: %v", what, err)
	}
}

// runs gives the berth of a VirtualMachine a node and a guest.
func (s *harness) runs(node string) *corev1.Pod {
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
func (s *harness) wants(kind string, reason v1alpha1.Reason, words ...string) {
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

// eventReasons returns the reasons of the Events so far.
func (s *harness) eventReasons() (reasons []string) {
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
	start := func(t *testing.T) *harness { return newHarness(t, config, c) }
	env.NewWorld(t, c).Node("n1")
	env.NewWorld(t, c).Node("n2")

	t.Run("a pod that is not Berth's and has the name is reported, and waited for", func(t *testing.T) {
		s := start(t)
		foreign := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "web"}, Spec: podSpec(t, s)}
		s.must("making pod", s.World.Create(t.Context(), foreign))
		s.make()
		if wake := s.settle().RequeueAfter; wake == 0 || wake > time.Minute {
			t.Errorf("reconciles again after %s, want within a minute: nothing watches that pod", wake)
		}
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPodNameTaken, "delete that pod")
		if diff := cmp.Diff([]string{"PodNameTaken"}, s.eventReasons()); diff != "" {
			t.Errorf("Events -want +got:\n%s", diff)
		}
		s.KubeletEnds(foreign)
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending)
	})

	t.Run("one that is larger than what the cache keeps is served all the same", func(t *testing.T) {
		s := start(t)
		s.reads = func(o client.Object) error {
			if vm, is := o.(*v1alpha1.VirtualMachine); is {
				return berth.TrimVM(vm, 0)
			}
			return nil
		}
		s.make(func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.NodeSelector = map[string]string{"example.com/zone": "here"}
		})
		if pod := s.runs("n1"); pod.Spec.NodeSelector["example.com/zone"] != "here" {
			t.Errorf("its berth selects %v", pod.Spec.NodeSelector)
		}
		if got := s.VM("web").Finalizers; !slices.Equal(got, []string{berth.DiskFinalizer}) {
			t.Errorf("its finalizers are %q", got)
		}
	})

	t.Run("what keeps kubelet from running the container is reported", func(t *testing.T) {
		s := start(t)
		s.make()
		s.settle()
		s.Bind("web", "n1")
		s.settle()
		kubelet := func(c corev1.ContainerState) {
			pod := s.Pod("web")
			pod.Status.Phase, pod.Status.StartTime = corev1.PodPending, &metav1.Time{Time: time.Now().Add(-time.Minute)}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "guest", State: c}}
			s.must("reporting pod", s.World.Status().Update(t.Context(), pod))
		}
		kubelet(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "shim"`}})
		s.settle()
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonBerthNotStarted, `ImagePullBackOff: Back-off pulling image "shim"`)
		if diff := cmp.Diff([]string{"BerthNotStarted"}, s.eventReasons()); diff != "" {
			t.Errorf("Events -want +got:\n%s", diff)
		}

		kubelet(corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}})
		for i, e := range []struct{ from, kind, reason string }{
			{"kubelet", corev1.EventTypeWarning, "FailedScheduling"}, // the last one counts
			{"kubelet", corev1.EventTypeWarning, "FailedCreatePodSandBox"},
			{"kubelet", corev1.EventTypeNormal, "Pulled"},
			{"somebody", corev1.EventTypeWarning, "Odd"},
		} {
			s.must("making Event", s.World.Create(t.Context(), &corev1.Event{
				ObjectMeta:     metav1.ObjectMeta{Namespace: s.Namespace, GenerateName: "web."},
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: "web", UID: s.Pod("web").UID},
				Type:           e.kind, Reason: e.reason, Message: "as the CNI says", Source: corev1.EventSource{Component: e.from},
				LastTimestamp: metav1.NewTime(time.Now().Add(time.Duration(i) * time.Second)),
			}))
		}
		if wake := s.settle().RequeueAfter; wake == 0 || wake > time.Minute {
			t.Errorf("reconciles again after %s, want within a minute: nothing watches Events", wake)
		}
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonBerthNotStarted, "FailedCreatePodSandBox: as the CNI says")

		kubelet(corev1.ContainerState{Running: &corev1.ContainerStateRunning{}})
		s.settle()
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonPending)
	})

	t.Run("an annotation that is not allowed is reported", func(t *testing.T) {
		s := start(t)
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
		s := start(t)
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

	for name, lose := range map[string]func(*harness, *corev1.Node){
		"a deleted node": func(s *harness, n *corev1.Node) { s.must("deleting node", s.World.Delete(s.T.Context(), n)) },
		"the out-of-service taint": func(s *harness, n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
			s.must("tainting node", s.World.Update(s.T.Context(), n))
		},
	} {
		t.Run("a lost guest stays where it is until "+name, func(t *testing.T) {
			s := start(t)
			node := s.Node(s.Namespace)
			s.make()
			pod := s.runs(node.Name)
			node.Status.Conditions[0].Status = corev1.ConditionUnknown
			s.must("making the node not Ready", s.World.Status().Update(t.Context(), node))
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

	for name, reads := range map[string]func(client.Object) error{
		"a node that the cache does not know yet": func(o client.Object) error {
			if _, ok := o.(*corev1.Node); ok {
				return apierrors.NewNotFound(corev1.Resource("nodes"), "n1")
			}
			return nil
		},
		"an out-of-service taint that only the cache still has": func(o client.Object) error {
			if n, ok := o.(*corev1.Node); ok {
				tainted(n)
			}
			return nil
		},
	} {
		t.Run(name+" is no proof", func(t *testing.T) {
			s := start(t)
			s.make()
			pod := s.runs("n1")
			s.must("deleting pod", s.World.Delete(t.Context(), pod))
			s.KubeletEnds(pod)
			s.reads = reads
			s.settle()
			if again := s.Pod("web"); again == nil || again.UID != pod.UID {
				t.Error("the berth was released")
			}
		})
	}

	t.Run("a pod whose finalizer somebody removed proves nothing", func(t *testing.T) {
		s := start(t)
		s.make()
		pod := s.runs("n1")
		s.must("removing the finalizer", s.World.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
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

	t.Run("a berth that the cache does not have yet is not created twice, nor dropped from the status", func(t *testing.T) {
		s := start(t)
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
		if got := s.eventReasons(); len(got) > 0 {
			t.Errorf("Events are %q", got)
		}
	})

	t.Run("a berth whose VirtualMachine is gone is released once its host reports it", func(t *testing.T) {
		s := start(t)
		s.Node(s.Namespace)
		host := v1alpha1.VirtualMachineHostStatus{Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady)}}
		s.Host(s.Namespace, host)
		s.make()
		pod := s.runs(s.Namespace)
		orphan := s.VM("web")
		s.must("deleting VirtualMachine", s.World.Delete(t.Context(), orphan))
		s.must("removing its finalizer", s.World.Patch(t.Context(), s.VM("web"), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
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
		s := start(t)
		s.make()
		s.settle()
		s.must("deleting VirtualMachine", s.World.Delete(t.Context(), s.VM("web")))
		s.settle()
		s.settle()
		if s.Pod("web") != nil || s.VM("web") != nil {
			t.Error("something is left")
		}
	})

	t.Run("a surplus berth ends, on evidence alone", func(t *testing.T) {
		s := start(t)
		other := s.Namespace // a node of its own
		s.Node(other)
		s.make()
		pod := s.runs("n1")
		surplus := s.surplus(other)
		s.settle()
		if p := s.Pod(surplus.Name); p == nil || p.DeletionTimestamp == nil {
			t.Fatalf("the surplus berth is kept: %+v", p)
		}
		s.KubeletEnds(surplus)
		s.Agent("web", v1alpha1.VirtualMachineStatus{
			ReleasedBerth: pod.UID, Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)},
		})
		s.settle()
		if s.Pod(surplus.Name) == nil {
			t.Fatal("what proves another berth's end released it")
		}
		s.Host(other, v1alpha1.VirtualMachineHostStatus{ReleasedBerths: []types.UID{surplus.UID}})
		s.settle()
		if s.Pod(surplus.Name) != nil {
			t.Error("it is left, though its guest is proven gone")
		}
		if p := s.Pod("web"); p == nil || p.UID != pod.UID || p.DeletionTimestamp != nil {
			t.Errorf("the berth is %+v", p)
		}
		if b := s.VM("web").Status.Berth; b == nil || b.PodUID != pod.UID {
			t.Errorf("the status names the berth %+v, want %s", b, pod.UID)
		}
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonReady)
		if events := s.eventReasons(); len(events) > 0 {
			t.Errorf("Events are %q", events)
		}
	})

	t.Run("no berth comes while a guest may be in a surplus one", func(t *testing.T) {
		s := start(t)
		other := s.Namespace
		s.Node(other)
		s.make(stopped)
		s.settle()
		surplus := s.surplus(other)
		s.settle()
		s.KubeletEnds(surplus)
		s.must("starting", s.World.Patch(t.Context(), s.VM("web"), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"state":"Running"}}`))))
		s.settle()
		if s.Pod("web") != nil {
			t.Fatal("a second guest may start")
		}
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending, surplus.Name, other)
		s.Host(other, v1alpha1.VirtualMachineHostStatus{ReleasedBerths: []types.UID{surplus.UID}})
		s.settle()
		if s.Pod("web") == nil || s.Pod(surplus.Name) != nil {
			t.Error("the surplus berth did not make room")
		}
	})

	t.Run("a berth that only the cache does not see named is kept", func(t *testing.T) {
		s := start(t)
		s.make()
		pod := s.runs("n1")
		s.reads = func(o client.Object) error {
			if vm, ok := o.(*v1alpha1.VirtualMachine); ok {
				vm.Status.Berth = &v1alpha1.BerthReference{PodName: "web", PodUID: "former"}
			}
			return nil
		}
		s.settle()
		if p := s.Pod("web"); p.UID != pod.UID || p.DeletionTimestamp != nil {
			t.Error("a guest that ran lost its berth")
		}
	})

	t.Run("a pod of its name is no berth while the guest of another may live", func(t *testing.T) {
		s := start(t)
		s.make()
		pod := s.runs("n1")
		s.must("removing the finalizer", s.World.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
		s.KubeletEnds(pod)
		forged, err := berth.PodFor(berth.Input{VM: s.VM("web"), Options: s.Options})
		s.must("making pod", err)
		s.must("creating pod", s.World.Create(t.Context(), forged))
		s.Bind("web", "n1")
		s.settle()
		if s.Pod("web").DeletionTimestamp == nil {
			t.Error("a second guest may start while the first may live")
		}
		if b := s.VM("web").Status.Berth; b == nil || b.PodUID != pod.UID {
			t.Errorf("the status names the berth %+v, want %s", b, pod.UID)
		}
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthVanished)
	})

	t.Run("a berth of somebody else's making gets no guest", func(t *testing.T) {
		s := start(t)
		s.make(noFinalizer)
		forged, err := berth.PodFor(berth.Input{VM: s.VM("web"), Options: s.Options})
		s.must("making pod", err)
		forged.Spec.Containers[0].Image = "evil"
		s.must("creating pod", s.World.Create(t.Context(), forged))
		s.Bind("web", "n1")
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthMutated, "evil")
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonBerthMutated, "evil")
		if b := s.VM("web").Status.Berth; b != nil {
			t.Fatalf("the status names the berth %+v, so its agent starts a guest there", b)
		}
		s.Reconciler.Now = func() time.Time { return time.Now().Add(time.Hour) }
		s.settle()
		s.KubeletEnds(forged)
		s.Host("n1", v1alpha1.VirtualMachineHostStatus{ReleasedBerths: []types.UID{forged.UID}})
		s.settle()
		if p := s.Pod("web"); p == nil || p.UID == forged.UID {
			t.Fatal("the operator makes none of its own")
		}
		s.Reconciler.Now = time.Now
		pod := s.runs("n1")
		if b := s.VM("web").Status.Berth; b.PodUID != pod.UID || b.Image != "shim" {
			t.Errorf("the status names the berth %+v", b)
		}
	})

	t.Run("an operator with other constants leaves guests alone", func(t *testing.T) {
		worlds := map[*harness]*corev1.Pod{}
		for range 20 {
			s := start(t)
			s.make()
			worlds[s] = s.runs("n1")
		}
		for s, pod := range worlds {
			status := s.VM("web").Status
			s.Options = berth.Options{ShimImage: "other:2", CPURequest: resource.MustParse("1"), Emulation: true}
			s.Reconciler.Now = func() time.Time { return time.Now().Add(time.Hour) }
			if wake := s.settle().RequeueAfter; wake != 0 {
				t.Errorf("it looks again after %s", wake)
			}
			if p := s.Pod("web"); p.UID != pod.UID || p.DeletionTimestamp != nil {
				t.Fatal("a guest that runs lost its berth")
			}
			if diff := cmp.Diff(status, s.VM("web").Status); diff != "" {
				t.Errorf("status -was +is:\n%s", diff)
			}
		}
	})

	t.Run("a berth that was changed keeps the guest that runs in it", func(t *testing.T) {
		s := start(t)
		s.make()
		pod := s.runs("n1")
		s.Reconciler.Now = func() time.Time { return time.Now().Add(time.Hour) }
		s.must("setting image", s.World.Patch(t.Context(), pod.DeepCopy(), client.RawPatch(types.StrategicMergePatchType, []byte(`{"spec":{"containers":[{"name":"guest","image":"evil"}]}}`))))
		s.settle()
		if p := s.Pod("web"); p.DeletionTimestamp != nil || s.VM("web").Status.Berth.Image != "shim" {
			t.Fatal("a guest that runs lost its berth, or the change was accepted")
		}
		s.Agent("web", v1alpha1.VirtualMachineStatus{Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, false, v1alpha1.ReasonBerthMutated)}})
		s.settle()
		if s.Pod("web").DeletionTimestamp == nil {
			t.Error("no other berth comes once its guest has ended")
		}
	})

	for name, tt := range map[string]struct {
		policy v1alpha1.RestartPolicy
		before func(*harness, *corev1.Pod)
		phase  v1alpha1.Phase
		reason v1alpha1.Reason
	}{
		"a guest that succeeded under Never": {v1alpha1.RestartNever, func(s *harness, _ *corev1.Pod) {
			s.Kubelet("web", corev1.PodSucceeded, false)
			s.settle()
		}, v1alpha1.PhaseSucceeded, ""},
		"a guest that succeeded under OnFailure": {v1alpha1.RestartOnFailure, func(s *harness, _ *corev1.Pod) {
			s.Kubelet("web", corev1.PodSucceeded, false)
			s.settle()
		}, v1alpha1.PhaseSucceeded, ""},
		"a guest whose pod is deleted under Never": {v1alpha1.RestartNever, func(*harness, *corev1.Pod) {}, v1alpha1.PhaseFailed, v1alpha1.ReasonPodDeleted},
		"a guest whose pod is evicted under Never": {v1alpha1.RestartNever, func(s *harness, pod *corev1.Pod) {
			pod = s.Pod("web")
			pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI"})
			s.must("evicting", s.World.Status().Update(t.Context(), pod))
		}, v1alpha1.PhaseFailed, v1alpha1.ReasonEvicted},
	} {
		t.Run(name+" does not run a second time", func(t *testing.T) {
			s := start(t)
			s.make(func(vm *v1alpha1.VirtualMachine) { vm.Spec.RestartPolicy = tt.policy })
			pod := s.runs("n1")
			tt.before(s, pod)
			s.must("deleting pod", s.World.Delete(t.Context(), s.Pod("web")))
			s.settle()
			s.KubeletEnds(pod)
			s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID, Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPoweredOff)}})
			s.settle()
			s.settle()
			if p := s.Pod("web"); p != nil {
				t.Fatalf("there is the pod %s, the first was %s", p.UID, pod.UID)
			}
			status := s.VM("web").Status
			if status.Phase != tt.phase || condition.Reason(status.Conditions, v1alpha1.ConditionReady) != tt.reason {
				t.Errorf("phase is %s, want %s, Ready should have the reason %s: %+v", status.Phase, tt.phase, tt.reason, status.Conditions)
			}
			if told := s.eventReasons(); tt.reason != "" && !slices.Equal(told, []string{string(tt.reason)}) {
				t.Errorf("Events are %q", told)
			}
			s.patch(`{"spec":{"restartedAt":"once more"}}`)
			again := s.runs("n1")
			s.Kubelet("web", corev1.PodSucceeded, false)
			s.settle()
			s.patch(`{"spec":{"state":"Stopped"}}`)
			s.settle()
			s.KubeletEnds(again)
			s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: again.UID})
			s.settle()
			s.patch(`{"spec":{"state":"Running"}}`)
			s.settle()
			if s.Pod("web") == nil {
				t.Error("it does not run once more after it was stopped")
			}
		})
	}

	for name, tt := range map[string]struct {
		after func(*harness, *corev1.Pod)
		kept  bool
	}{
		"is deleted": {func(*harness, *corev1.Pod) {}, false},
		"is deleted by another operator": {func(s *harness, _ *corev1.Pod) {
			former := s.Reconciler
			s.Reconciler = &Reconciler{
				Client: former.Client, Live: former.Live, Events: former.Events, Options: former.Options, Now: former.Now,
				Status: &kube.StatusWriter{Client: former.Client, Manager: kube.OperatorManager},
			}
		}, false},
		"is deleted when its pod was collected": {func(s *harness, pod *corev1.Pod) {
			s.must("deleting pod", s.World.Delete(t.Context(), s.Pod("web")))
			s.KubeletEnds(pod)
			s.settle()
			if s.Pod("web") != nil {
				t.Error("its pod is left, or came again")
			}
		}, false},
		"is kept when it is to run once more": {func(s *harness, _ *corev1.Pod) { s.patch(`{"spec":{"restartedAt":"once more"}}`) }, true},
		"is kept when it is to run once more, as the cache does not know yet": {func(s *harness, _ *corev1.Pod) {
			before := s.VM("web")
			s.patch(`{"spec":{"restartedAt":"once more"}}`)
			s.reads = func(o client.Object) error {
				if vm, is := o.(*v1alpha1.VirtualMachine); is {
					before.DeepCopyInto(vm)
				}
				return nil
			}
		}, true},
		"is kept when it has no time to live any more": {func(s *harness, _ *corev1.Pod) { s.patch(`{"spec":{"ttlSecondsAfterFinished":null}}`) }, true},
	} {
		t.Run("a VirtualMachine with a time to live "+name, func(t *testing.T) {
			s := start(t)
			s.make(never, ttl(60))
			pod := s.runs("n1")
			s.Kubelet("web", corev1.PodSucceeded, false)
			s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID, Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPoweredOff)}})
			if wake := s.settle().RequeueAfter; wake <= 0 || wake > time.Minute {
				t.Errorf("it is looked at again after %s, want within its minute", wake)
			}
			s.eventReasons()
			end := s.VM("web").Status.Ended
			tt.after(s, pod)
			s.Reconciler.Now = func() time.Time { return end.Time.Add(time.Minute) }
			s.settle()
			if deleted := s.VM("web").DeletionTimestamp != nil; deleted == tt.kept {
				t.Errorf("it is deleted: %t; its end was %+v", deleted, end)
			}
			if told := slices.Contains(s.eventReasons(), string(v1alpha1.ReasonTTLExpired)); told == tt.kept {
				t.Errorf("an Event tells of it: %t", told)
			}
		})
	}

	t.Run("kept disks bring the next berth back to their node", func(t *testing.T) {
		s := start(t)
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

	t.Run("a berth for kept disks", func(t *testing.T) { pinned(t, start) })
	t.Run("claims", func(t *testing.T) { claims(t, start) })
	t.Run("claims from templates", func(t *testing.T) { templates(t, start) })
	t.Run("one writer", func(t *testing.T) { oneWriter(t, start) })

	t.Run("an API server that fails is tried again", func(t *testing.T) {
		s := start(t)
		s.make()
		s.reads = func(client.Object) error { return errors.New("no answer") }
		if _, err := s.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}}); err == nil {
			t.Error("the failure was swallowed")
		}
	})

	t.Run("a status that could not be written is written soon, also after a User fault", func(t *testing.T) {
		s := start(t)
		s.make(func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Berth = &v1alpha1.BerthTemplate{Annotations: map[string]string{"io.containerd.x": "y"}}
		})
		s.failStatus = true
		env.Eventually(t, "the failure", func() bool {
			_, err := s.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: "web"}})
			return err != nil
		})
		s.failStatus = false
		s.reconcile()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonBerthRefused)
	})
}

func (s *harness) patch(patch string) {
	s.T.Helper()
	s.must("patching VirtualMachine", s.World.Patch(s.T.Context(), s.VM("web"), client.RawPatch(types.MergePatchType, []byte(patch))))
}

// surplus makes a second berth of the VirtualMachine web, and gives it a node.
func (s *harness) surplus(node string) *corev1.Pod {
	s.T.Helper()
	pod, err := berth.PodFor(berth.Input{VM: s.VM("web"), Options: s.Options})
	s.must("making pod", err)
	pod.Name += "-2"
	s.must("creating pod", s.World.Create(s.T.Context(), pod))
	s.Bind(pod.Name, node)
	return s.Pod(pod.Name)
}

// podSpec is a pod that restricted Pod Security takes, and is not ours.
func podSpec(t *testing.T, s *harness) corev1.PodSpec {
	t.Helper()
	pod, err := berth.PodFor(berth.Input{VM: vm(), Options: s.Options})
	s.must("making pod", err)
	return pod.Spec
}
