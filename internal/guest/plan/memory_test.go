package plan

import (
	"errors"
	"testing"
	"time"
)

func TestMemory(t *testing.T) {
	runs := Have{Domain: DomainRunning, Process: ProcessInContainer}
	forgotten := Have{Domain: DomainAbsent, Process: ProcessInContainer}
	failed := Have{Unknown: errors.New("no answer")}
	full := Have{Domain: DomainPausedOnIOError, Process: ProcessInContainer}
	type look struct {
		after time.Duration // since the first
		have  Have
	}
	tests := []struct {
		name  string
		looks []look
		state func(Memory) time.Time
		want  time.Duration // its age at the last look
	}{
		{"a state that is seen once has no age", []look{{0, full}}, func(m Memory) time.Time { return m.diskError }, 0},
		{"one that lasts counts from the first look", []look{{0, full}, {1, full}, {5, full}}, func(m Memory) time.Time { return m.diskError }, 5},
		{"one that ended begins anew", []look{{0, full}, {1, runs}, {2, full}, {5, full}}, func(m Memory) time.Time { return m.diskError }, 3},
		{"a look that failed does not end it", []look{{0, full}, {1, failed}, {5, full}}, func(m Memory) time.Time { return m.diskError }, 5},
		{"but what ends a guest on libvirt's word has to be seen at each look", []look{{0, forgotten}, {1, failed}, {5, forgotten}}, func(m Memory) time.Time { return m.contradictory }, 0},
		{"as it is here", []look{{0, forgotten}, {1, forgotten}, {5, forgotten}}, func(m Memory) time.Time { return m.contradictory }, 5},
		{"a berth counts from the look that first had it", []look{{0, runs}, {1, failed}, {5, runs}}, func(m Memory) time.Time { return m.berthSeen }, 5},
		{"a clock that was set back lets it begin anew", []look{{9, full}, {1, full}, {3, full}}, func(m Memory) time.Time { return m.diskError }, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m Memory
			var at time.Time
			for _, l := range tt.looks {
				at = now.Add(l.after * time.Second)
				_, m = Decide(Want{VM: vm(), Berth: fresh()}, l.have, m, at)
			}
			if got := age(tt.state(m), at); got != tt.want*time.Second {
				t.Errorf("it is %v old, want %v", got, tt.want*time.Second)
			}
		})
	}
}

// Nothing tells when a shim that has just been started makes its socket. One that never does costs little.
func TestAShimThatStartsIsLookedForAgain(t *testing.T) {
	h := Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, ShimStarting: true}
	var m Memory
	var next Next
	at := now
	for i, want := range []time.Duration{shimLook, shimLook, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond} {
		if next, m = Decide(resolved(t, Want{VM: vm(), Berth: fresh()}), h, m, at); next.Wake != want {
			t.Errorf("look %d: the next after %v, want %v", i, next.Wake, want)
		}
		at = at.Add(next.Wake)
	}
	h.Process, h.Domain, h.Images = ProcessNone, DomainAbsent, images(ImageReady)
	if next, _ = Decide(resolved(t, Want{VM: vm(), Berth: fresh()}), h, m, at.Add(time.Hour)); next.Wake != lastShimLook {
		t.Errorf("after an hour: the next after %v", next.Wake)
	}
	if next, _ = Decide(resolved(t, Want{VM: vm(), Berth: fresh()}), h, m, at); len(next.Steps) == 0 || next.Wake != 0 {
		t.Errorf("while there is something to do: %v", next)
	}
}
