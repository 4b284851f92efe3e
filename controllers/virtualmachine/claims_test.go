package virtualmachine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

// on gives a VirtualMachine one disk, of that claim.
func on(claim string, access v1alpha1.DiskAccess) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: claim}, Access: access}}
	}
}

// claim makes a claim, which is bound and has 1Gi.
func (s *harness) claim(name string, mode corev1.PersistentVolumeAccessMode, changes ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	s.T.Helper()
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{mode}, VolumeName: "v",
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	for _, change := range changes {
		change(c)
	}
	s.must("making claim", s.World.Create(s.T.Context(), c))
	s.bound(c, corev1.ClaimBound)
	return c
}

func (s *harness) bound(c *corev1.PersistentVolumeClaim, phase corev1.PersistentVolumeClaimPhase) {
	s.T.Helper()
	c.Status.Phase, c.Status.Capacity = phase, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	s.must("binding claim", s.World.Status().Update(s.T.Context(), c))
}

// goes deletes a claim, and plays the controller that keeps it while a pod has it.
func (s *harness) goes(c *corev1.PersistentVolumeClaim) {
	s.T.Helper()
	s.must("deleting claim", client.IgnoreNotFound(s.World.Delete(s.T.Context(), c)))
	s.must("letting claim go", client.IgnoreNotFound(s.World.Patch(s.T.Context(), c, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`)))))
}

// read returns the claim web-data, nil if there is none.
func (s *harness) read() *corev1.PersistentVolumeClaim {
	s.T.Helper()
	c, err := kube.Read[corev1.PersistentVolumeClaim](s.T.Context(), s.World, types.NamespacedName{Namespace: s.Namespace, Name: "web-data"})
	s.must("reading claim", err)
	return c
}

// lease returns the Lease of a claim, nil if there is none.
func (s *harness) lease(c *corev1.PersistentVolumeClaim) *coordinationv1.Lease {
	s.T.Helper()
	l, err := kube.Read[coordinationv1.Lease](s.T.Context(), s.World, types.NamespacedName{Namespace: s.Namespace, Name: "berth-" + string(c.UID)})
	s.must("reading Lease", err)
	return l
}

// other makes another VirtualMachine than web.
func (s *harness) other(name string, changes ...func(*v1alpha1.VirtualMachine)) *v1alpha1.VirtualMachine {
	s.T.Helper()
	vm := vm(changes...)
	vm.ObjectMeta = metav1.ObjectMeta{Namespace: s.Namespace, Name: name}
	s.must("making VirtualMachine", s.World.Create(s.T.Context(), vm))
	return vm
}

// settles reconciles a VirtualMachine until the operator has acted and reported, and returns the last failure.
func (s *harness) settles(name string) (err error) {
	for range 4 {
		_, err = s.Reconcile(s.T.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: name}})
	}
	return err
}

// stops stops a guest that runs in a berth, and proves that it is gone.
func (s *harness) stops(name string, pod *corev1.Pod) {
	s.T.Helper()
	s.change(name, `{"spec":{"state":"Stopped"}}`)
	s.must("stopping", s.settles(name))
	s.KubeletEnds(pod)
	s.Agent(name, v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID})
	s.must("stopping", s.settles(name))
	if s.Pod(name) != nil {
		s.T.Fatalf("the berth of %s stays", name)
	}
	s.must("stopping", s.settles(name))
}

func (s *harness) change(name, patch string) {
	s.T.Helper()
	s.must("changing "+name, s.World.Patch(s.T.Context(), s.VM(name), client.RawPatch(types.MergePatchType, []byte(patch))))
}

func claims(t *testing.T, start func(*testing.T) *harness) {
	t.Run("are in the berth, the status and a Lease, once they exist", func(t *testing.T) {
		s := start(t)
		s.make(on("data", ""))
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonClaimMissing, "disk data", "PersistentVolumeClaim data does not exist", "create it")
		if s.Pod("web") != nil {
			t.Fatal("it got a berth without its claim")
		}
		c := s.claim("data", corev1.ReadWriteOnce, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) })
		s.settle()
		l := s.lease(c)
		uid := string(s.VM("web").UID)
		if l == nil || *l.Spec.HolderIdentity != uid || !slices.Equal(holders(l), []string{uid}) {
			t.Fatalf("the Lease is %+v", l)
		}
		pod := s.runs("n1")
		if d := pod.Spec.Containers[0].VolumeDevices; len(d) != 1 || d[0].Name != berth.DiskVolume("data") || pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName != "data" {
			t.Errorf("the berth has the devices %+v", d)
		}
		if got := s.lease(c).Annotations[annotationBerth+uid]; got != string(pod.UID) {
			t.Errorf("the Lease is for the berth %q", got)
		}
		d := s.VM("web").Status.Disks
		if len(d) != 1 || d[0].Name != "data" || d[0].ClaimName != "data" || d[0].ClaimUID != c.UID || d[0].Capacity.String() != "1Gi" || d[0].VolumeMode != corev1.PersistentVolumeBlock {
			t.Errorf("the status has the disks %+v", d)
		}
		s.Agent("web", v1alpha1.VirtualMachineStatus{
			Conditions: []metav1.Condition{env.Condition(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)},
			Disks:      []v1alpha1.DiskStatus{{Name: "data", Size: new(resource.MustParse("1Gi")), UsedClaimUID: c.UID}},
		})
		version := s.VM("web").ResourceVersion
		s.settle()
		if got := s.VM("web"); got.ResourceVersion != version || got.Status.Disks[0].ClaimUID != c.UID || got.Status.Disks[0].UsedClaimUID != c.UID {
			t.Errorf("operator and agent write over each other: %+v", got.Status.Disks)
		}
		seen, err := s.observe(t.Context(), client.ObjectKeyFromObject(s.VM("web")))
		if err != nil || seen.pinnedNode() != "" {
			t.Errorf("a claim binds its guest to node %q: %v", seen.pinnedNode(), err)
		}
	})

	type pvc = corev1.PersistentVolumeClaim
	for name, tt := range map[string]struct {
		mode   corev1.PersistentVolumeAccessMode
		vm     func(*v1alpha1.VirtualMachine)
		spoil  func(*harness, *pvc)
		mend   func(*harness, *pvc)
		reason v1alpha1.Reason
		says   string
	}{
		"lost": {
			corev1.ReadWriteOnce, on("data", ""), func(s *harness, c *pvc) { s.bound(c, corev1.ClaimLost) },
			func(s *harness, c *pvc) { s.bound(c, corev1.ClaimBound) }, v1alpha1.ReasonClaimLost, "has lost its PersistentVolume",
		},
		"being deleted": {
			corev1.ReadWriteOnce, on("data", ""), func(s *harness, c *pvc) { s.must("deleting claim", s.World.Delete(t.Context(), c)) },
			func(s *harness, c *pvc) { s.goes(c); s.claim("data", corev1.ReadWriteOnce) }, v1alpha1.ReasonClaimMissing, "is being deleted",
		},
		"only to be read": {
			corev1.ReadOnlyMany, on("data", ""), nil,
			func(s *harness, _ *pvc) {
				s.change("web", `{"spec":{"disks":[{"name":"data","persistentVolumeClaim":{"claimName":"data"},"access":"ReadOnly"}]}}`)
			},
			v1alpha1.ReasonClaimAccess, "set the disk's access to ReadOnly",
		},
		"not for several": {
			corev1.ReadWriteOnce, on("data", v1alpha1.DiskShared), nil,
			func(s *harness, c *pvc) { s.goes(c); s.claim("data", corev1.ReadWriteMany) }, v1alpha1.ReasonClaimAccess, "ReadWriteMany",
		},
		"as large as it is": {
			corev1.ReadWriteOnce, func(vm *v1alpha1.VirtualMachine) {
				on("data", "")(vm)
				vm.Spec.Disks[0].Size = new(resource.MustParse("1Gi"))
			},
			func(s *harness, c *pvc) {
				s.goes(c)
				s.claim("data", corev1.ReadWriteOnce, func(c *pvc) { c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock) })
			},
			func(s *harness, _ *pvc) {
				s.change("web", `{"spec":{"disks":[{"name":"data","persistentVolumeClaim":{"claimName":"data"}}]}}`)
			},
			v1alpha1.ReasonClaimAccess, "leave the disk's size out",
		},
		"two disks' at once": {
			corev1.ReadWriteOnce, func(vm *v1alpha1.VirtualMachine) {
				on("web-t", "")(vm)
				vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: "b", PersistentVolumeClaim: &v1alpha1.DiskClaim{TemplateName: "t"}})
				vm.Spec.VolumeClaimTemplates = []v1alpha1.VolumeClaimTemplate{{Metadata: v1alpha1.VolumeClaimMetadata{Name: "t"}}}
			},
			func(s *harness, _ *pvc) { s.claim("web-t", corev1.ReadWriteOnce) },
			func(s *harness, _ *pvc) {
				s.change("web", `{"spec":{"disks":[{"name":"data","persistentVolumeClaim":{"claimName":"data"}}]}}`)
			},
			v1alpha1.ReasonClaimAccess, "give each its own",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			c := s.claim("data", tt.mode)
			if tt.spoil != nil {
				tt.spoil(s, c)
			}
			s.make(tt.vm)
			if wake := s.settle().RequeueAfter; wake == 0 {
				t.Error("it is never tried again")
			}
			s.wants(v1alpha1.ConditionScheduled, tt.reason, tt.says)
			if got := s.eventReasons(); !slices.Equal(got, []string{string(tt.reason)}) {
				t.Errorf("Events are %q", got)
			}
			if s.Pod("web") != nil {
				t.Error("it got a berth")
			}
			tt.mend(s, c)
			s.settle()
			if s.Pod("web") == nil {
				t.Error("it got no berth once that was mended")
			}
		})
	}
}

// fromTemplate gives a VirtualMachine one disk, of a claim that is made for it.
func fromTemplate(size, class string) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{TemplateName: "data"}}}
		vm.Spec.VolumeClaimTemplates = []v1alpha1.VolumeClaimTemplate{{
			Metadata: v1alpha1.VolumeClaimMetadata{Name: "data", Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class, VolumeName: "v",
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
			},
		}}
	}
}

func templates(t *testing.T, start func(*testing.T) *harness) {
	t.Run("make claims, and grow them", func(t *testing.T) {
		s := start(t)
		class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: s.Namespace}, Provisioner: "example.com/none"}
		raw := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": class.Name}, "provisioner": class.Provisioner}}
		raw.SetGroupVersionKind(storagev1.SchemeGroupVersion.WithKind("StorageClass"))
		s.must("making StorageClass", s.World.Create(t.Context(), raw))
		s.make(fromTemplate("1Gi", class.Name))
		s.settle()
		c := s.read()
		if c == nil || c.Labels["a"] != "b" || c.Annotations["c"] != "d" || c.Labels[berth.LabelVM] != "web" || len(c.OwnerReferences) > 0 || c.ManagedFields[0].Manager != claimsManager {
			t.Fatalf("the claim is %+v", c)
		}
		s.bound(c, corev1.ClaimPending) // until there is a node: that is as it should be
		s.settle()
		pod := s.runs("n1")
		grow := func(size string) {
			s.change("web", fmt.Sprintf(`{"spec":{"volumeClaimTemplates":[{"metadata":{"name":"data","labels":{"e":"f"}},"spec":{"accessModes":["ReadWriteMany"],"resources":{"requests":{"storage":%q}}}}]}}`, size))
			s.settle()
		}
		request := func() string { return s.read().Spec.Resources.Requests.Storage().String() }
		if grow("2Gi"); request() != "1Gi" || len(s.eventReasons()) > 0 {
			t.Errorf("a claim without a volume grew to %s, or was to", request())
		}
		s.bound(c, corev1.ClaimBound)
		if s.settle(); request() != "1Gi" || !slices.Contains(s.eventReasons(), string(v1alpha1.ReasonClaimNotGrown)) {
			t.Errorf("a class that does not grow: %s", request())
		}
		s.wants(v1alpha1.ConditionReady, v1alpha1.ReasonReady)
		s.must("letting the class grow", s.World.Patch(t.Context(), raw, client.RawPatch(types.MergePatchType, []byte(`{"allowVolumeExpansion":true}`))))
		if s.settle(); request() != "2Gi" {
			t.Errorf("it did not grow: %s", request())
		}
		if grow("1Gi"); request() != "2Gi" {
			t.Errorf("it shrank: %s", request())
		}
		if p := s.Pod("web"); p.UID != pod.UID || p.DeletionTimestamp != nil || len(s.VM("web").Status.PendingChanges) > 0 {
			t.Error("that cost the guest its berth")
		}
	})

	t.Run("claims are retained or deleted as the spec says", func(t *testing.T) {
		s := start(t)
		s.make(fromTemplate("1Gi", "none"), func(vm *v1alpha1.VirtualMachine) { vm.Spec.VolumeClaimRetention = v1alpha1.VolumeClaimDelete })
		s.settle()
		owners := func() (uids []types.UID) {
			for _, o := range s.read().OwnerReferences {
				uids = append(uids, o.UID)
			}
			return uids
		}
		uid := s.VM("web").UID
		if got := owners(); !slices.Equal(got, []types.UID{uid}) {
			t.Errorf("its owners are %q, want its VirtualMachine", got)
		}
		s.change("web", `{"spec":{"volumeClaimRetention":"Retain"}}`)
		if s.settle(); len(owners()) > 0 {
			t.Errorf("its owners are %q, want none", owners())
		}
		s.change("web", `{"spec":{"volumeClaimRetention":"Delete"}}`)
		if s.settle(); !slices.Equal(owners(), []types.UID{uid}) {
			t.Errorf("its owners are %q, want its VirtualMachine again", owners())
		}
		c := s.read()
		c.OwnerReferences[0].UID = "of-before" // whose claim the garbage collector deletes
		s.must("changing owner", s.World.Update(t.Context(), c))
		s.settle()
		s.must("ending pod", s.World.Delete(t.Context(), s.Pod("web"), client.GracePeriodSeconds(0)))
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonClaimMissing, "is being deleted")
		s.goes(c)
		s.settle()
		if s.settle(); s.Pod("web") == nil || s.read().UID == c.UID {
			t.Error("no claim was made in its place")
		}
	})

	t.Run("a claim that is another's is left alone until it is handed over", func(t *testing.T) {
		s := start(t)
		c := s.claim("web-data", corev1.ReadWriteOnce)
		s.make(fromTemplate("5Gi", "none"))
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonClaimNameTaken, "vm.berth.dev/name=web")
		if got := s.read(); got.ResourceVersion != c.ResourceVersion {
			t.Errorf("it was changed: %+v", got)
		}
		s.must("labelling", s.World.Patch(t.Context(), c, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"vm.berth.dev/name":"web"}}}`))))
		if s.settle(); s.Pod("web") == nil {
			t.Error("it got no berth")
		}
	})
}

func oneWriter(t *testing.T, start func(*testing.T) *harness) {
	refused := func(s *harness, name string) {
		s.T.Helper()
		if err := s.settles(name); err != nil || s.Pod(name) != nil {
			s.T.Fatalf("%s is not refused: %v", name, err)
		}
		if c := s.VM(name).Status.Conditions; !slices.ContainsFunc(c, func(c metav1.Condition) bool {
			return c.Type == v1alpha1.ConditionScheduled && c.Reason == string(v1alpha1.ReasonClaimInUse)
		}) {
			s.T.Errorf("%s has the conditions %+v", name, c)
		}
	}

	t.Run("has the claim until its guest is proven gone", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteMany)
		s.make(on("data", ""))
		pod := s.runs("n1")
		s.other("second", on("data", v1alpha1.DiskShared))
		refused(s, "second")
		s.change("web", `{"spec":{"restartedAt":"now"}}`)
		s.settle()
		s.KubeletEnds(pod)
		s.settle()
		refused(s, "second")
		s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID})
		s.settle()
		s.settle()
		lease := s.lease(c)
		if again := s.runs("n1"); again.UID == pod.UID || lease == nil || s.lease(c).UID != lease.UID {
			t.Error("it had to take the claim anew for its next berth")
		}
		refused(s, "second")
		s.stops("web", s.Pod("web"))
		if s.lease(c) != nil {
			t.Errorf("the claim is still taken: %+v", s.lease(c))
		}
		if err := s.settles("second"); err != nil || s.Pod("second") == nil {
			t.Fatalf("the second got no berth: %v", err)
		}
		s.change("web", `{"spec":{"state":"Running"}}`)
		refused(s, "web")
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonClaimInUse, "VirtualMachine second", "stop or delete")
	})

	for _, access := range []v1alpha1.DiskAccess{v1alpha1.DiskShared, v1alpha1.DiskReadOnly} {
		t.Run(string(access)+" is for all that ask for the same", func(t *testing.T) {
			s := start(t)
			c := s.claim("data", corev1.ReadWriteMany)
			s.make(on("data", access))
			pod := s.runs("n1")
			second := s.other("second", on("data", access))
			if err := s.settles("second"); err != nil || s.Pod("second") == nil || len(s.lease(c).OwnerReferences) != 2 {
				t.Fatalf("they do not share it: %v", err)
			}
			s.other("third", on("data", ""))
			refused(s, "third")
			s.stops("web", pod)
			if l := s.lease(c); !slices.Equal(holders(l), []string{string(second.UID)}) || len(l.Annotations) != 2 {
				t.Errorf("the Lease is %+v", l)
			}
			refused(s, "third")
		})
	}

	t.Run("has it though somebody took its pod away by force, until its node's agent says that the guest is gone", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteMany)
		s.make(on("data", ""))
		pod := s.runs("n1")
		s.change("web", `{"spec":{"state":"Stopped"}}`)
		s.must("taking finalizers off", s.World.Patch(t.Context(), pod, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
		s.KubeletEnds(pod)
		s.settle()
		if s.Pod("web") != nil || s.lease(c) == nil {
			t.Fatalf("the pod is %v, and the Lease %v", s.Pod("web"), s.lease(c))
		}
		s.Agent("web", v1alpha1.VirtualMachineStatus{ReleasedBerth: pod.UID})
		s.settle()
		if l := s.lease(c); l != nil {
			t.Errorf("the claim is still taken: %+v", l)
		}
	})

	t.Run("is one of ten at once, and under two leaders", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteMany)
		another := *s.Reconciler
		another.Status = &kube.StatusWriter{Client: another.Client, Manager: kube.OperatorManager}
		leaders := []*Reconciler{s.Reconciler, &another}
		var names []string
		for i := range 10 {
			names = append(names, fmt.Sprintf("vm-%d", i))
			s.other(names[i], on("data", ""))
		}
		var all sync.WaitGroup
		for _, r := range leaders {
			for _, name := range names {
				all.Go(func() {
					for range 5 { // what fails is tried again
						_, _ = r.Reconcile(t.Context(), ctrl.Request{NamespacedName: types.NamespacedName{Namespace: s.Namespace, Name: name}})
					}
				})
			}
		}
		all.Wait()
		berths := 0
		for _, name := range names {
			if s.Pod(name) == nil {
				refused(s, name)
				continue
			}
			berths++
			if l := s.lease(c); !slices.Equal(holders(l), []string{string(s.VM(name).UID)}) {
				t.Errorf("%s has a berth, and the Lease is %+v", name, l)
			}
		}
		if berths != 1 {
			t.Errorf("%d have a berth", berths)
		}
	})

	t.Run("finds its own claim after a kill, or lets it go", func(t *testing.T) {
		for _, wanted := range []bool{true, false} {
			s := start(t)
			c := s.claim("data", corev1.ReadWriteOnce)
			s.make(on("data", ""))
			seen, err := s.observe(t.Context(), client.ObjectKeyFromObject(s.VM("web")))
			s.must("taking the claim", errors.Join(err, s.takeClaims(t.Context(), seen, "")))
			before := s.lease(c)
			if !wanted {
				s.change("web", `{"spec":{"state":"Stopped"}}`)
			}
			s.settle()
			after := s.lease(c)
			if wanted && (s.Pod("web") == nil || after == nil || after.UID != before.UID) || !wanted && after != nil {
				t.Errorf("wanted %t: the Lease is %+v", wanted, after)
			}
		}
	})

	t.Run("gets no guest in a berth whose claim went to another", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteMany)
		s.make(on("data", ""))
		s.settle()
		s.must("losing the Lease", s.World.Delete(t.Context(), s.lease(c))) // as a leader of before does that saw it stopped
		s.other("second", on("data", ""))
		s.must("the second", s.settles("second"))
		s.Bind("web", "n1")
		s.settle()
		s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonClaimInUse, "second")
		if named := s.VM("web").Status.Berth; named != nil {
			t.Fatalf("a second guest may start in %+v", named)
		}
		s.change("second", `{"spec":{"state":"Stopped"}}`)
		s.must("stopping", s.settles("second"))
		s.must("stopping", s.settles("second"))
		if s.settle(); s.VM("web").Status.Berth == nil {
			t.Error("it does not get the claim that is free again")
		}
	})

	t.Run("loses nothing to a leader of before", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteMany)
		s.make(on("data", ""))
		s.settle()
		stale, err := s.observe(t.Context(), client.ObjectKeyFromObject(s.VM("web")))
		s.must("observing", err)
		s.Bind("web", "n1")
		s.settle()
		if err := s.releaseClaims(t.Context(), stale.vm, stale.leases); !apierrors.IsConflict(err) && err != nil || s.lease(c) == nil {
			t.Errorf("it gave up the claim of a berth that is named since: %v", err)
		}
		fresh, err := s.observe(t.Context(), client.ObjectKeyFromObject(s.VM("web")))
		s.must("observing", err)
		if err := s.releaseClaims(t.Context(), fresh.vm, fresh.leases); err != nil || s.lease(c) == nil {
			t.Errorf("it gave up the claim of a berth that is there: %v", err)
		}
		stale.vm.Spec.Disks[0].Access = v1alpha1.DiskShared
		stale.claims[0].disk = &stale.vm.Spec.Disks[0]
		if err := s.takeClaims(t.Context(), stale, ""); err == nil || *s.lease(c).Spec.HolderIdentity != string(stale.vm.UID) {
			t.Errorf("it opened the claim of a berth that is there: %v", err)
		}
	})

	t.Run("is nobody where nobody is known", func(t *testing.T) {
		s := start(t)
		c := s.claim("data", corev1.ReadWriteOnce)
		s.must("making Lease", s.World.Create(t.Context(), &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "berth-" + string(c.UID)}}))
		s.make(on("data", ""))
		refused(s, "web")
		seen, err := s.observe(t.Context(), client.ObjectKeyFromObject(s.VM("web")))
		s.must("observing", err)
		if err := s.takeClaims(t.Context(), seen, ""); fault.ReasonOf(err) != v1alpha1.ReasonClaimInUse {
			t.Errorf("it is %v", err)
		}
	})
}

// TestTrimClaim: of what the cache keeps of a claim, all is decided as of the whole.
func TestTrimClaim(t *testing.T) {
	vm := vm(fromTemplate("2Gi", "fast"))
	whole := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Name: "web-data", UID: "c-1", ResourceVersion: "7", Labels: map[string]string{berth.LabelVM: "web", "a": "b"}, Annotations: map[string]string{"long": "text"},
			OwnerReferences: []metav1.OwnerReference{ownerOf(vm)}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
		},
		Spec: vm.Spec.VolumeClaimTemplates[0].Spec, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	trimmed := whole.DeepCopy()
	TrimClaim(trimmed)
	if len(trimmed.Annotations)+len(trimmed.ManagedFields) > 0 || len(trimmed.Labels) != 1 || trimmed.Spec.StorageClassName != nil {
		t.Errorf("it keeps %+v", trimmed)
	}
	for _, change := range []func(*corev1.PersistentVolumeClaim){
		func(*corev1.PersistentVolumeClaim) {},
		func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{Time: now} },
		func(c *corev1.PersistentVolumeClaim) { c.OwnerReferences[0].UID = "of-before" },
		func(c *corev1.PersistentVolumeClaim) { c.Labels[berth.LabelVM] = "other" },
		func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost },
		func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		},
	} {
		is, cached := whole.DeepCopy(), whole.DeepCopy()
		change(is)
		change(cached)
		TrimClaim(cached)
		of := func(c *corev1.PersistentVolumeClaim) string {
			d := diskClaim{disk: &vm.Spec.Disks[0], name: "web-data", template: &vm.Spec.VolumeClaimTemplates[0], claim: c}
			reason, message := d.fault(vm)
			return fmt.Sprint(reason, message, d.updated(vm) != nil)
		}
		if want, got := of(is), of(cached); want != got {
			t.Errorf("-whole +trimmed:\n%s", cmp.Diff(want, got))
		}
	}
}
