package virtualmachine

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// behind has the operator's cache not know yet which disks a guest has.
func behind(o client.Object) error {
	if vm, ok := o.(*v1alpha1.VirtualMachine); ok {
		vm.Status.Disks = nil
	}
	return nil
}

// pinned: a berth is made for the node of the guest's kept disks, if the operator knows of them. What it knows when it
// compares the berth may be more, or less.
func pinned(t *testing.T, start func(*testing.T) *harness) {
	for name, tt := range map[string]struct {
		made, compared func(client.Object) error
		node           string
		accepted       bool
	}{
		"as the status has it":                           {nil, nil, "n1", true},
		"before its disks were told, and it came there":  {behind, nil, "n1", true},
		"before its disks were told, and went elsewhere": {behind, nil, "n2", false},
		"by an operator that knew of its disks already":  {nil, behind, "n1", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			s.make()
			first := s.runs("n1")
			s.Agent("web", v1alpha1.VirtualMachineStatus{Disks: []v1alpha1.DiskStatus{{Name: "root"}}, ReleasedBerth: first.UID})
			s.must("deleting pod", s.World.Delete(t.Context(), first))
			s.KubeletEnds(first)
			s.reads = tt.made
			s.settle()
			s.settle()
			made := s.Pod("web")
			if made == nil || made.UID == first.UID {
				t.Fatal("there is no other berth")
			}
			s.Bind("web", tt.node)
			s.reads = tt.compared
			s.Reconciler.Now = func() time.Time { return time.Now().Add(statusDebounce) }
			s.settle()
			named := s.VM("web").Status.Berth
			if tt.accepted {
				s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonScheduled)
				if named == nil || named.PodUID != made.UID || s.Pod("web").DeletionTimestamp != nil {
					t.Errorf("the status names the berth %+v, want %s", named, made.UID)
				}
				return
			}
			if named != nil {
				t.Fatalf("the status names the berth %+v, so its agent makes the disk anew", named)
			}
			s.wants(v1alpha1.ConditionScheduled, v1alpha1.ReasonPending, "on node n2", "on node n1")
			s.KubeletEnds(made)
			s.Host(tt.node, v1alpha1.VirtualMachineHostStatus{ReleasedBerths: []types.UID{made.UID}})
			s.settle()
			s.settle()
			next := s.Pod("web")
			if next == nil || next.UID == made.UID {
				t.Fatal("no other berth replaces it")
			}
			want, err := berth.PodFor(berth.Input{VM: s.VM("web"), Node: "n1", Options: s.Options})
			s.must("making pod", err)
			if differs, err := berth.Unlike(next, want); err != nil || differs != "" {
				t.Errorf("the other berth is not bound to the disks: %s %v", differs, err)
			}
		})
	}
}
