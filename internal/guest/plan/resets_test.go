package plan

import (
	"errors"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestResets follows a guest through the looks of agents: one that is new to it begins with no memory and with no resets.
func TestResets(t *testing.T) {
	web, memory, clock := vm(ran), Memory{}, now
	running := Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true}}
	reset := func(count int32, ago ...time.Duration) func(*Have) {
		return func(h *Have) {
			h.Resets = count
			for i, d := range ago {
				h.LatestResets[i] = clock.Add(-d)
			}
		}
	}
	const s, m = time.Second, time.Minute
	for _, look := range []struct {
		name   string
		after  time.Duration
		change func(*Have)
		anew   bool // by an agent that is new
		resets int32
		last   bool
		reason v1alpha1.Reason
	}{
		{"it runs", 0, nil, false, 0, false, v1alpha1.ReasonStarted},
		{"an update resets it twice", m, reset(2, s, 20*s), false, 2, true, v1alpha1.ReasonStarted},
		{"the same is seen again", m, reset(2, 61*s, 80*s), false, 2, true, v1alpha1.ReasonStarted},
		{"the next agent has seen none", m, nil, true, 2, true, v1alpha1.ReasonStarted},
		{"it goes on from there", m, reset(1, s), false, 3, true, v1alpha1.ReasonStarted},
		{"five in a minute", m, reset(6, s, 2*s, 3*s, 4*s, 5*s), false, 8, true, v1alpha1.ReasonGuestResetLoop},
		{"libvirtd does not answer", m, func(h *Have) { *h = Have{Unknown: errors.New("no answer")} }, false, 8, true, v1alpha1.ReasonInternalError},
		{"it answers again", 0, reset(7, s, 2*s, 3*s, 4*s, 5*s), false, 9, true, v1alpha1.ReasonGuestResetLoop},
		{"the next agent has seen no loop", m, nil, true, 9, true, v1alpha1.ReasonGuestResetLoop},
		{"it resets a last time", m, reset(1, s), false, 10, true, v1alpha1.ReasonGuestResetLoop},
		{"it has not for a while", resetWindow, reset(1, resetWindow+s), false, 10, true, v1alpha1.ReasonStarted},
		{"five in an hour", m, reset(6, s, 15*m, 30*m, 45*m, 60*m), false, 15, true, v1alpha1.ReasonStarted},
		{"it is gone", m, func(h *Have) { *h = Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive} }, false, 0, false, v1alpha1.ReasonNotRunning},
		{"the next guest", m, nil, false, 0, false, v1alpha1.ReasonStarted},
	} {
		clock = clock.Add(look.after)
		have := running
		if look.change != nil {
			look.change(&have)
		}
		if look.anew {
			memory = Memory{}
		}
		want := Want{VM: web, Berth: fresh(used)}
		memory = memory.after(want, have, clock)
		status, _ := Report(want, have, memory, nil, clock)
		if status.Resets != look.resets || (status.LastReset != nil) != look.last {
			t.Errorf("%s: %d resets, the last at %v; want %d", look.name, status.Resets, status.LastReset, look.resets)
		}
		if c := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionRunning); v1alpha1.Reason(c.Reason) != look.reason {
			t.Errorf("%s: Running is %s %s, want %s", look.name, c.Status, c.Reason, look.reason)
		}
		web = web.DeepCopy()
		web.Status = *status
	}
}
