package plan

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/domain"
)

// runs is a guest that runs well, with changes.
func runs(changes ...func(*Have)) Have {
	h := Have{
		Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive,
		Shim: &Shim{Attached: true, Running: true, RunningFor: 20 * time.Second}, AgentConnected: true, Facts: domain.Facts{Tools: true},
	}
	for _, change := range changes {
		change(&h)
	}
	return h
}

// TestAGuestAgentStartsTheGuestProgram: once, and only where nobody else has.
func TestAGuestAgentStartsTheGuestProgram(t *testing.T) {
	w := resolved(t, Want{VM: vm(), Berth: fresh(used)})
	for name, tt := range map[string]struct {
		have  Have
		start bool
	}{
		"nothing has answered":                   {runs(), true},
		"the program has":                        {runs(func(h *Have) { h.Shim.GuestTools = "1.0" }), false},
		"it had, before the guest was reset":     {runs(func(h *Have) { h.Shim.GuestTools, h.Resets = "1.0", 1 }), true},
		"there is no guest agent":                {runs(func(h *Have) { h.AgentConnected = false }), false},
		"the guest has no disk with it":          {runs(func(h *Have) { h.Facts.Tools = false }), false},
		"the guest stands still":                 {runs(func(h *Have) { h.Domain = DomainPausedOnIOError }), false},
		"it is about to end":                     {runs(func(h *Have) { h.Shim.Terminating = true }), false},
		"its shim has not spoken":                {runs(func(h *Have) { h.Shim = nil }), false},
		"its shim has not been handed the guest": {runs(func(h *Have) { h.Shim.Attached = false }), false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			var memory Memory
			for at := now; at.Before(now.Add(5 * time.Minute)); at = at.Add(time.Second) {
				var next Next
				next, memory = Decide(w, tt.have, memory, at)
				is := len(next.Steps) == 1 && next.Steps[0] == Step(StartTools{})
				switch since := at.Sub(now); {
				case is && (since < toolsPatience || asked > 0):
					t.Errorf("it is asked after %s, and was asked %d times", since, asked)
				case tt.start && since < toolsPatience && next.Wake != toolsPatience-since:
					t.Errorf("after %s the next look is in %s", since, next.Wake)
				}
				if is {
					asked++
				}
			}
			if (asked == 1) != tt.start {
				t.Errorf("it is asked %d times", asked)
			}
		})
	}
}

// TestAGuestAgentIsAskedForEachBoot: a guest that resets itself may need the program to be started once more, and can reset
// itself as often as it likes.
func TestAGuestAgentIsAskedForEachBoot(t *testing.T) {
	w := resolved(t, Want{VM: vm(), Berth: fresh(used)})
	asked, memory := 0, Memory{}
	look := func(at time.Time, h Have) {
		var next Next
		next, memory = Decide(w, h, memory, at)
		for _, s := range next.Steps {
			if s == Step(StartTools{}) {
				asked++
			}
		}
	}
	at := now
	for resets := range int32(3) {
		for range 60 {
			look(at, runs(func(h *Have) { h.Resets = resets }))
			at = at.Add(time.Second)
		}
	}
	if asked != 3 {
		t.Errorf("at three boots it was asked %d times", asked)
	}
	for range 600 { // which comes before its agent has been there for long enough
		look(at, runs(func(h *Have) { h.Resets = 3 + int32(at.Second()) }))
		at = at.Add(time.Second)
	}
	if asked != 3 {
		t.Errorf("a guest that resets again and again has it asked %d times more", asked-3)
	}
	look(at, Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}})
	for range 60 {
		look(at, runs())
		at = at.Add(time.Second)
	}
	if asked != 4 {
		t.Errorf("the next guest has it asked %d times", asked-3)
	}
}

// TestToolsInTheStatus: the guest's word is told at once, and then once a minute at most.
func TestToolsInTheStatus(t *testing.T) {
	w := resolved(t, Want{VM: vm(ran), Berth: fresh(used)})
	says := func(version string) Have { return runs(func(h *Have) { h.Shim.GuestTools = version }) }
	var memory Memory
	told := func(at time.Time, h Have) string {
		t.Helper()
		var next Next
		next, memory = Decide(w, h, memory, at)
		s, _ := Report(w, h, memory, nil, at)
		if h.Shim != nil && h.Shim.GuestTools != memory.tools.version && (next.Wake <= 0 || next.Wake > toolsPause) {
			t.Errorf("the next look is after %s", next.Wake)
		}
		if s.Guest == nil {
			return ""
		}
		return s.Guest.Tools
	}
	if got := told(now, says("")); got != "" {
		t.Errorf("before it has answered the status says %q", got)
	}
	writes, last := 0, ""
	for i := range 600 {
		if got := told(now.Add(time.Duration(i)*time.Second), says(fmt.Sprintf("1.%d", i))); got != last {
			writes, last = writes+1, got
		}
	}
	if writes != 10 {
		t.Errorf("a guest that says another version each second has its status written %d times in 10 minutes", writes)
	}
	w.VM.Status.Guest, memory = &v1alpha1.GuestInfo{Tools: "1.0"}, Memory{}
	if got := told(now, runs(func(h *Have) { h.Shim = nil })); got != "1.0" {
		t.Errorf("of a shim that has not spoken to this agent the status says %q", got)
	}
	if got := told(now, says("1.0")); got != "1.0" {
		t.Errorf("of one that has it says %q", got)
	}
	agent := runs(func(h *Have) { h.Shim.GuestTools, h.Guest = "1.0", &v1alpha1.GuestInfo{Hostname: "web", Tools: "0.9"} })
	s, _ := Report(w, agent, memory, nil, now)
	if diff := cmp.Diff(&v1alpha1.GuestInfo{Hostname: "web", Tools: "1.0"}, s.Guest); diff != "" {
		t.Errorf("beside a guest agent (-want +got):\n%s", diff)
	}
	if agent.Guest.Tools != "0.9" {
		t.Error("reporting wrote into what is seen")
	}
	if got := told(now, Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead}); got != "" {
		t.Errorf("without a guest it says %q", got)
	}
}

// TestSeeds: a guest that has run without cloud-init data gets none that nobody asked for, and one that began with some
// has it at each start.
func TestSeeds(t *testing.T) {
	nobody := func(vm *v1alpha1.VirtualMachine) { vm.Spec.SSHAuthorizedKeys = nil }
	none := func(vm *v1alpha1.VirtualMachine) { nobody(vm); vm.Spec.GuestTools = v1alpha1.GuestToolsNone }
	for name, tt := range map[string]struct {
		vm          *v1alpha1.VirtualMachine
		without     bool
		seed, tools bool
	}{
		"a new VM":                           {vm(nobody), false, true, true},
		"one that ran without":               {vm(nobody), true, false, true},
		"whose user asks for cloud-init now": {vm(), true, true, true},
		"one without guest tools":            {vm(none), false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			next, _ := Decide(resolved(t, Want{VM: tt.vm, Berth: fresh()}), Have{
				Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady), RanWithoutSeed: tt.without,
			}, Memory{}, now)
			written := false
			for _, s := range next.Steps {
				if c, is := s.(CreateDomain); is && ((c.Machine.Seed != nil) != tt.seed || c.Machine.Tools != tt.tools) {
					t.Errorf("its domain is made with %+v, tools: %t", c.Machine.Seed, c.Machine.Tools)
				}
				_, is := s.(WriteSeed)
				written = written || is
			}
			if written != tt.seed {
				t.Errorf("a seed is written: %t", written)
			}
		})
	}
}

// TestPortOfADisplay: on the berth's localhost it is the shim's, if there is a display.
func TestPortOfADisplay(t *testing.T) {
	for display, want := range map[v1alpha1.DisplayType][]uint16{"": nil, v1alpha1.DisplayVGA: {5900}, v1alpha1.DisplayVirtio: {5900}} {
		next, _ := Decide(resolved(t, Want{VM: vm(func(vm *v1alpha1.VirtualMachine) {
			if display != "" {
				vm.Spec.Display = &v1alpha1.Display{Type: display}
			}
			vm.Spec.Memory.Size = resource.MustParse("1Gi")
		}), Berth: fresh()}), Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{}}, Memory{}, now)
		var got []uint16
		for _, s := range next.Steps {
			if c, is := s.(ConnectNICs); is {
				got = c.ReservedPorts
			}
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("display %q (-want +got):\n%s", display, diff)
		}
	}
}

func TestActions(t *testing.T) {
	for name, tt := range map[string]struct {
		shim Shim
		want []Step
	}{
		"nobody asks":                      {Shim{Resets: 3, ResetsDone: 3, NMIs: 1, NMIsDone: 1}, nil},
		"a reset":                          {Shim{Resets: 1}, []Step{Reset{}, ConfirmActions{1, 0}}},
		"many at once are one":             {Shim{Resets: 9, ResetsDone: 2, NMIs: 4, NMIsDone: 4}, []Step{Reset{}, ConfirmActions{9, 4}}},
		"an NMI":                           {Shim{NMIs: 1}, []Step{InjectNMI{}, ConfirmActions{0, 1}}},
		"an NMI comes before a reset":      {Shim{Resets: 1, NMIs: 1}, []Step{InjectNMI{}, Reset{}, ConfirmActions{1, 1}}},
		"a shim that counts back is right": {Shim{ResetsDone: 5}, nil},
	} {
		for does, state := range map[string]Domain{"runs": DomainRunning, "has a full disk": DomainPausedOnIOError} {
			t.Run(name+", the guest "+does, func(t *testing.T) {
				s := tt.shim
				s.Attached, s.Running = true, true
				h := runs(func(h *Have) { h.Domain, h.Shim, h.Facts.Tools = state, &s, false })
				next, _ := Decide(resolved(t, Want{VM: vm(), Berth: fresh(used)}), h, Memory{}, now)
				if diff := cmp.Diff(tt.want, next.Steps, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
	}
	// A guest that is about to be ended has its own end.
	h := runs(func(h *Have) { h.Shim.Resets, h.Shim.Terminating = 1, true })
	next, _ := Decide(resolved(t, Want{VM: vm(), Berth: fresh(ending)}), h, Memory{}, now)
	if diff := cmp.Diff([]Step{Shutdown{}}, next.Steps); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestExitCodes: what the guest leaves is its code if it powers off, and that alone.
func TestExitCodes(t *testing.T) {
	powerOff := &Exit{Reason: v1alpha1.ReasonPoweredOff}
	panicked := &Exit{Reason: v1alpha1.ReasonGuestPanicked, Code: 134}
	for name, tt := range map[string]struct {
		text        string
		exit        *Exit
		terminating time.Duration
		reason      v1alpha1.Reason
		code        int32
		says        string
	}{
		"nothing":                       {"", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, ""},
		"a code":                        {"3", powerOff, 0, v1alpha1.ReasonPoweredOff, 3, ""},
		"none":                          {"0", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, ""},
		"the largest":                   {"255", powerOff, 0, v1alpha1.ReasonPoweredOff, 255, ""},
		"with spaces about it":          {" 7 ", powerOff, 0, v1alpha1.ReasonPoweredOff, 7, ""},
		"when it was asked to":          {"3", powerOff, time.Second, v1alpha1.ReasonShutDown, 3, ""},
		"a number that is too large":    {"999", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "999"`},
		"256":                           {"256", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "256"`},
		"a negative number":             {"-1", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "-1"`},
		"a number with a sign":          {"+1", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "+1"`},
		"a number and more":             {"3x", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "3x"`},
		"one in another base":           {"0x3", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "0x3"`},
		"a number without end":          {strings.Repeat("9", 64), powerOff, 0, v1alpha1.ReasonPoweredOff, 0, "counts as nothing"},
		"spaces":                        {"  ", powerOff, 0, v1alpha1.ReasonPoweredOff, 0, `wrote "  "`},
		"a panic keeps its code":        {"0", panicked, 0, v1alpha1.ReasonGuestPanicked, 134, ""},
		"so does a kill":                {"0", &Exit{Reason: v1alpha1.ReasonOOMKilled, Code: 137}, 0, v1alpha1.ReasonOOMKilled, 137, ""},
		"and what nobody knows":         {"0", nil, 0, v1alpha1.ReasonQEMUFailed, 1, ""},
		"and the end of a grace period": {"0", &Exit{Reason: v1alpha1.ReasonDestroyed, Code: 137}, 31 * time.Second, v1alpha1.ReasonForcedOff, 137, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := resolved(t, Want{VM: vm(ran), Berth: fresh(used)})
			h := Have{
				Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Exit: tt.exit,
				Shim: &Shim{Attached: true, Running: true, ExitText: tt.text, Terminating: tt.terminating > 0, TerminatingFor: tt.terminating},
			}
			next, memory := Decide(w, h, Memory{}, now)
			if len(next.Steps) != 2 {
				t.Fatalf("%+v", next)
			}
			got := next.Steps[1].(EndShim).Exit
			if got.Reason != tt.reason || got.Code != tt.code || !strings.Contains(got.Message, tt.says) || tt.says == "" && strings.Contains(got.Message, "exit port") {
				t.Errorf("the shim is told %+v", got)
			}
			s, wait := Report(w, h, memory, nil, now)
			if wait > 0 || s.LastExit == nil || s.LastExit.Reason != tt.reason || s.LastExit.ExitCode != tt.code || !strings.Contains(s.LastExit.Message, tt.says) {
				t.Errorf("the status says %+v, wait %s", s.LastExit, wait)
			}
		})
	}
}

// TestWhatAGuestLeftIsAwaited: QEMU's end is known before the shim has read what the guest wrote last, and a shim that never
// says that it has keeps nobody waiting for long.
func TestWhatAGuestLeftIsAwaited(t *testing.T) {
	w := resolved(t, Want{VM: vm(ran), Berth: fresh(used)})
	shim := &Shim{Attached: true, Running: true, Draining: true}
	h := Have{
		Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Left: true, Shim: shim, Exit: &Exit{Reason: v1alpha1.ReasonPoweredOff},
	}
	next, memory := Decide(w, h, Memory{}, now)
	if _, wait := Report(w, h, memory, nil, now); len(next.Steps) > 0 || next.Wake != drainLimit || wait != drainLimit {
		t.Errorf("it decides %+v, and reports after %s", next, wait)
	}
	for name, end := range map[string]struct {
		have Have
		at   time.Time
		code int32
	}{
		"it has read it":           {func() Have { h := h; h.Shim = &Shim{Attached: true, Running: true, ExitText: "3"}; return h }(), now.Add(time.Millisecond), 3},
		"it does not say that":     {h, now.Add(drainLimit), 0},
		"the VM is deleted":        {h, now.Add(drainLimit), 0},
		"it has ended in the time": {func() Have { h := h; h.Shim = &Shim{Attached: true, Running: true}; return h }(), now.Add(time.Millisecond), 0},
	} {
		t.Run(name, func(t *testing.T) {
			next, memory := Decide(w, end.have, memory, end.at)
			if len(next.Steps) != 2 || next.Steps[1].(EndShim).Exit.Code != end.code {
				t.Errorf("it decides %+v", next)
			}
			if s, wait := Report(w, end.have, memory, nil, end.at); wait > 0 || s.LastExit.ExitCode != end.code {
				t.Errorf("it reports %+v after %s", s.LastExit, wait)
			}
		})
	}
	shim.Terminating, shim.TerminatingFor = true, time.Hour
	if next, _ := Decide(w, Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: shim}, Memory{}, now); len(next.Steps) != 3 {
		t.Errorf("a guest that is ended at the end of its time: %+v", next)
	}
}
