package plan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
)

func TestPending(t *testing.T) {
	cores := v1alpha1.PendingChange{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth}
	keys := v1alpha1.PendingChange{Path: "sshAuthorizedKeys[0]", To: "ssh-ed25519 A", Effect: v1alpha1.EffectRestart}
	data := v1alpha1.PendingChange{Path: "cloudInit.userData", Effect: v1alpha1.EffectRestart}
	waits := func(vm *v1alpha1.VirtualMachine) {
		vm.Status.PendingChanges = []v1alpha1.PendingChange{cores}
		vm.Status.Conditions = []metav1.Condition{condition.New(v1alpha1.ConditionUpToDate, false, v1alpha1.ReasonChangesPending, "cpu.cores")}
	}
	runs := Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true}}
	with := func(changes ...v1alpha1.PendingChange) Have {
		h := runs
		h.Pending = changes
		return h
	}
	old := runs
	old.Shim = &Shim{Attached: true, Lacks: []string{"dhcp"}}
	broken := runs
	broken.Shim, broken.ShimBroken = nil, true
	tests := []struct {
		name    string
		vm      *v1alpha1.VirtualMachine
		have    Have
		changes []v1alpha1.PendingChange
		says    string // status, reason and message of the condition, "" if there is none
	}{
		{"a guest that has what the spec asks for", vm(), runs, nil, "True UpToDate The guest was started from the spec as it is."},
		{
			"one that has not", vm(), with(cores, keys, data),
			[]v1alpha1.PendingChange{cores, keys, data},
			"False ChangesPending changes wait for the guest's next restart (change spec.restartedAt to restart it now): cpu.cores (1 to 2), sshAuthorizedKeys[0] (unset to ssh-ed25519 A), cloudInit.userData",
		},
		{
			"one whose shim is too old for it", vm(), old, nil,
			"False ShimOutdated the berth's shim is older than the node's agent: the guest runs without what it does not take (dhcp), or with what an older agent gave it; change spec.restartedAt to restart the guest in a new berth",
		},
		{"one whose shim broke the protocol", vm(), broken, nil, "False ShimProtocolError " + shimBroken},
		{"one whose change was taken back", vm(waits), runs, nil, "True UpToDate The guest was started from the spec as it is."},
		{"no guest: it will start with the spec as it is", vm(waits), Have{Domain: DomainAbsent, Process: ProcessNone}, nil, ""},
		{"what cannot be seen stays as it was", vm(waits), Have{Unknown: fmt.Errorf("no answer")}, []v1alpha1.PendingChange{cores}, "False ChangesPending cpu.cores"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, _ := Report(Want{VM: tt.vm, Berth: fresh()}, tt.have, Memory{}, nil, now)
			if diff := cmp.Diff(tt.changes, status.PendingChanges); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			says := ""
			for _, c := range status.Conditions {
				if c.Type == v1alpha1.ConditionUpToDate {
					says = fmt.Sprint(c.Status, " ", c.Reason, " ", c.Message)
				}
			}
			if says != tt.says {
				t.Errorf("it says %q, want %q", says, tt.says)
			}
			if diff := cmp.Diff(status, Owned(status)); diff != "" {
				t.Errorf("the agent does not own all that it writes:\n%s", diff)
			}
		})
	}
}

// The API server refuses a status with longer lists, or paths, than these.
func TestPendingIsBounded(t *testing.T) {
	h := Have{Domain: DomainRunning, Process: ProcessInContainer}
	for i := range 100 {
		h.Pending = append(h.Pending, v1alpha1.PendingChange{Path: strings.Repeat(fmt.Sprintf("%03d", i), 300)})
	}
	h.Pending = append(h.Pending[:1], h.Pending...) // the same path twice
	changes, _ := pending(Want{}, h, Memory{}, nil, now)
	seen := map[string]bool{}
	for _, c := range changes {
		if len(c.Path) > maxPath || seen[c.Path] {
			t.Errorf("path of %d bytes, there twice: %v", len(c.Path), seen[c.Path])
		}
		seen[c.Path] = true
	}
	if len(changes) != maxPending {
		t.Errorf("%d changes, want %d", len(changes), maxPending)
	}
}
