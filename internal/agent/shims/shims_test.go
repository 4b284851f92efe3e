package shims

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/runtime"
)

// fakeRuntime says what a test wants it to of the one berth.
type fakeRuntime struct {
	container   runtime.Container
	pod         runtime.Pod
	none, noPod bool
	err, podErr error
	askedFor    []string
}

func (f *fakeRuntime) Container(_ context.Context, podUID, name string) (runtime.Container, bool, error) {
	f.askedFor = append(f.askedFor, podUID+" "+name)
	return f.container, !f.none, f.err
}

func (f *fakeRuntime) Pod(_ context.Context, podUID string) (runtime.Pod, bool, error) {
	f.askedFor = append(f.askedFor, podUID)
	return f.pod, !f.noPod, f.podErr
}

// sessions are a new agent's, on a clock that stands at 100 ns.
type sessions struct {
	*Sessions
	woken  chan types.UID // the guests to look at
	errors atomic.Int32   // shims that broke the protocol
}

func newSessions(r *fakeRuntime) *sessions {
	s := &sessions{woken: make(chan types.UID, 1000)}
	s.Sessions = New(Options{
		Runtime: r, Wake: func(vm types.UID) { s.woken <- vm }, BootTime: func() time.Duration { return 100 },
		CountProtocolError: func() { s.errors.Add(1) },
	})
	return s
}

// connect connects with a shim whose container is alive.
func (s *sessions) connect(t *testing.T) *Session {
	t.Helper()
	n, state, err := s.Connect(t.Context(), vm, pod)
	if n == nil || state != plan.ContainerAlive || err != nil {
		t.Fatalf("Connect() = %v, container %v, %v", n, state, err)
	}
	return n
}

// restart is another agent's connection with the same shim. The first one has ended: both would read from one socket.
func (s *sessions) restart(t *testing.T, n *Session) (*sessions, *Session) {
	t.Helper()
	_ = n.conn.Close()
	anew := newSessions(s.Runtime.(*fakeRuntime))
	return anew, anew.connect(t)
}

// until waits for a wake-up after which a claim is true.
func (s *sessions) until(t *testing.T, claim func() bool) {
	t.Helper()
	for !claim() {
		if got := <-s.woken; got != vm {
			t.Fatalf("woke %s", got)
		}
	}
}

// needs are the devices of a guest with a NIC.
var needs = []shimproto.Device{{Kind: shimproto.KindConsole, Name: "console"}, {Kind: shimproto.KindDHCP, Name: "a"}}

// TestWhatTheRuntimeSays has no process: the runtime's word is enough, or there is none in that place.
func TestWhatTheRuntimeSays(t *testing.T) {
	away := errors.New("away")
	running := runtime.Container{ID: first, State: runtime.Running, PID: 1 << 30}
	for name, c := range map[string]struct {
		says   fakeRuntime
		want   plan.Container
		err    string
		reason v1alpha1.Reason
	}{
		"it does not answer":                {says: fakeRuntime{err: away}, want: plan.ContainerUnknown, err: "away", reason: v1alpha1.ReasonInternalError},
		"there is no container":             {says: fakeRuntime{none: true}, want: plan.ContainerAbsent},
		"it was not started yet":            {says: fakeRuntime{container: runtime.Container{State: runtime.Created}}, want: plan.ContainerAbsent},
		"it has ended":                      {says: fakeRuntime{container: runtime.Container{State: runtime.Exited}}, want: plan.ContainerDead},
		"the runtime does not know":         {says: fakeRuntime{container: runtime.Container{State: runtime.Unknown}}, want: plan.ContainerUnknown, err: "reports state UNKNOWN", reason: v1alpha1.ReasonRuntimeUnreachable},
		"it does not answer for the pod":    {says: fakeRuntime{container: running, podErr: away}, want: plan.ContainerUnknown, err: "away", reason: v1alpha1.ReasonInternalError},
		"it has no sandbox":                 {says: fakeRuntime{container: running, noPod: true}, want: plan.ContainerUnknown, err: "sandbox", reason: v1alpha1.ReasonRuntimeUnreachable},
		"the process has ended already":     {says: fakeRuntime{container: running}, want: plan.ContainerDead},
		"another runtime than runc or crun": {says: fakeRuntime{container: running, pod: runtime.Pod{Handler: "kata"}}, want: plan.ContainerAlive, err: "the pod's runtime is kata", reason: v1alpha1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSessions(&c.says)
			n, got, err := s.Connect(t.Context(), vm, pod)
			if n != nil || got != c.want {
				t.Errorf("Connect() = %v, container %v; want none, %v", n, got, c.want)
			}
			if (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || fault.ReasonOf(err) != c.reason) {
				t.Errorf("Connect() = %v, reason %s; want %q, %s", err, fault.ReasonOf(err), c.err, c.reason)
			}
			questions := []string{string(pod) + " " + berth.Container, string(pod)}
			if diff := cmp.Diff(questions[:len(c.says.askedFor)], c.says.askedFor); diff != "" {
				t.Errorf("the runtime is asked (-want +got):\n%s", diff)
			}
			if _, is := errors.AsType[runtime.UnsupportedError](err); is != (c.want == plan.ContainerAlive) {
				t.Errorf("Connect() = %T", err)
			}
		})
	}
}

func TestAShimThatSpeaks(t *testing.T) {
	shim := start(t, speaks, first)
	r := &fakeRuntime{container: shim.container}
	s := newSessions(r)
	n := s.connect(t)
	s.until(t, func() bool { return n.State(nil) != nil })
	if diff := cmp.Diff(&plan.Shim{}, n.State(needs)); diff != "" {
		t.Errorf("at first (-want +got):\n%s", diff)
	}
	if _, container, _ := n.Cgroup().Container(); n.PID() != shim.container.PID || !n.Alive() || n.ContainerID() != first || container != first {
		t.Errorf("process %d, alive %t, container %s, cgroup %s", n.PID(), n.Alive(), n.ContainerID(), n.Cgroup())
	}
	if again := s.connect(t); again != n || len(r.askedFor) != 2 {
		t.Errorf("a second Connect() is another session: %t; the runtime was asked %q", again != n, r.askedFor)
	}

	say := func(m shimproto.Message) {
		t.Helper()
		if err := n.Send(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	reset := time.Now().Add(time.Hour) // of a machine that is on for 100 ns
	if err := n.Notify(t.Context(), shimproto.PhasePaused, reset); err != nil {
		t.Fatal(err)
	}
	if got, err := time.ParseDuration(shim.line() + "ns"); err != nil || got <= 0 || got > time.Hour+100 {
		t.Errorf("the shim has heard of a reset after %v, %v; want an hour at most", got, err)
	}
	say(shimproto.Exit{})
	if known := n.State(nil); !known.Running || !known.Exiting || known.Attached || !known.ResetTold.Equal(reset) {
		t.Errorf("what was said is not known at once: %+v", known)
	}
	if err := n.HandOver(t.Context(), shimproto.HandOver{}, nil); err != nil {
		t.Fatal(err)
	}
	if !n.State(nil).Attached {
		t.Error("that all was handed over is not known at once")
	}
	s.until(t, func() bool { return n.State(nil).Terminating && n.State(nil).RunningFor > 0 })
	want := &plan.Shim{Attached: true, Running: true, RunningFor: 93, ResetTold: reset, Terminating: true, TerminatingFor: 95, Exiting: true}
	if diff := cmp.Diff(want, n.State(needs)); diff != "" {
		t.Errorf("at last (-want +got):\n%s", diff)
	}

	s, n = s.restart(t, n)
	s.until(t, func() bool { return n.State(nil) != nil })
	// Whether it was told of the guest's vCPUs and end only the agent knows that did so: it is said again.
	want = &plan.Shim{Attached: true, RunningFor: 93, Terminating: true, TerminatingFor: 95}
	if diff := cmp.Diff(want, n.State(needs)); diff != "" {
		t.Errorf("to an agent that starts anew (-want +got):\n%s", diff)
	}
}

func TestAShimThatDoesNotSpeak(t *testing.T) {
	shim := start(t, silent, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	n := s.connect(t)
	if got := n.State(needs); got != nil {
		t.Errorf("it has said nothing: %+v", got)
	}
	if err := n.Send(t.Context(), shimproto.Exit{}); err != nil || n.State(nil) != nil {
		t.Errorf("Send() = %v, and it has said %+v", err, n.State(nil))
	}
}

func TestAShimWithoutASocket(t *testing.T) {
	shim := start(t, deaf, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	if n, got, err := s.Connect(t.Context(), vm, pod); n != nil || got != plan.ContainerAlive || !errors.Is(err, shimproto.ErrAbsent) {
		t.Errorf("Connect() = %v, container %v, %v", n, got, err)
	}
}

func TestAShimThatEnds(t *testing.T) {
	shim := start(t, speaks, first)
	r := &fakeRuntime{container: shim.container}
	s := newSessions(r)
	n := s.connect(t)
	s.until(t, func() bool { return n.State(nil) != nil })
	shim.end()
	s.until(t, func() bool { return s.session(pod) == nil })
	if n.Alive() {
		t.Error("it is alive")
	}
	if err := n.Send(t.Context(), shimproto.Exit{}); fault.ReasonOf(err) != v1alpha1.ReasonRuntimeUnreachable || n.State(nil).Exiting {
		t.Errorf("Send() = %v, and it was told: %+v", err, n.State(nil))
	}
	if ns, err := n.NetworkNamespace(); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed {
		t.Errorf("NetworkNamespace() = %v, %v", ns, err)
	}
	if c := s.errors.Load(); c != 0 {
		t.Errorf("its end counts as %d breaches of the protocol", c)
	}
	// The runtime may not know of it yet.
	if n, got, err := s.Connect(t.Context(), vm, pod); n != nil || got != plan.ContainerDead || err != nil {
		t.Errorf("Connect() = %v, container %v, %v", n, got, err)
	}
	shim = start(t, speaks, second)
	r.container = shim.container
	if n := s.connect(t); n.ContainerID() != second || n.PID() != shim.container.PID {
		t.Errorf("after a restart: container %s, process %d", n.ContainerID(), n.PID())
	}
}

func TestAShimThatBreaksTheProtocol(t *testing.T) {
	shim := start(t, babbles, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	n := s.connect(t)
	s.until(t, func() bool { return s.errors.Load() > 0 })
	if err := n.Send(t.Context(), shimproto.Exit{}); err == nil || n.State(nil) != nil {
		t.Errorf("Send() = %v, and it has said %+v", err, n.State(nil))
	}
	// It may do so whenever there is a session: the next one has to wait, and nothing of this one is left then.
	s.until(t, n.protocolError.Load)
	for range 100 {
		if n, got, err := s.Connect(t.Context(), vm, pod); n != nil || got != plan.ContainerAlive || !errors.Is(err, shimproto.ErrBroken) {
			t.Fatalf("Connect() = %v, container %v, %v", n, got, err)
		}
	}
	shim.end()
	s.until(t, func() bool { return s.session(pod) == nil })
	if n, got, err := s.Connect(t.Context(), vm, pod); n != nil || got != plan.ContainerDead || err != nil {
		t.Errorf("after its end: Connect() = %v, container %v, %v", n, got, err)
	}
}

// TestWhatAHostileShimCosts has an agent that connects again at each wake-up, as its loop does. What a shim causes is
// bounded for its container, however often it breaks the protocol.
func TestWhatAHostileShimCosts(t *testing.T) {
	for what, mostSyncs := range map[string]int{babbles: 3, odd: 3, repeats: 4, floods: 60, drips: 60} {
		t.Run(what, func(t *testing.T) {
			before := pidfds(t)
			shim := start(t, what, first)
			r := &fakeRuntime{container: shim.container}
			s := newSessions(r)
			if s.protocolErrorBackoff < time.Minute {
				t.Errorf("it is talked with again after %v", s.protocolErrorBackoff)
			}
			syncs := 0
			sync := func() error {
				syncs++
				_, container, err := s.Connect(t.Context(), vm, pod)
				if container != plan.ContainerAlive {
					t.Errorf("container %v", container)
				}
				return err
			}
			_ = sync()
			for quiet := false; !quiet; {
				select {
				case <-s.woken:
					if _ = sync(); syncs > mostSyncs {
						t.Fatalf("%d syncs", syncs)
					}
				case <-time.After(500 * time.Millisecond): // many times what a message takes
					quiet = s.errors.Load() > 0
				}
			}
			if err := sync(); !errors.Is(err, shimproto.ErrBroken) {
				t.Errorf("Connect() = %v", err)
			}
			if syncs > mostSyncs || s.errors.Load() != 1 || len(r.askedFor) != 2 {
				t.Errorf("%d syncs, %d breaches, the runtime was asked %d times; want at most %d, 1, 2", syncs, s.errors.Load(), len(r.askedFor), mostSyncs)
			}
			if n := pidfds(t) - before; n > 2 { // the other is the test's own, of exec
				t.Errorf("%d pidfds are held", n)
			}
		})
	}
}

// pidfds counts this process's.
func pidfds(t *testing.T) (n int) {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		if is, err := os.Readlink("/proc/self/fd/" + entry.Name()); err == nil && strings.Contains(is, "pidfd") {
			n++
		}
	}
	return n
}

func TestAShimThatBreaksTheProtocolGetsAnotherSession(t *testing.T) {
	shim := start(t, babbles, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	s.protocolErrorBackoff = 0
	was := s.connect(t)
	s.until(t, func() bool { return s.session(pod) == nil })
	if was.Alive() {
		t.Error("its process is still held")
	}
	if n := s.connect(t); n == was {
		t.Error("it is the same session")
	}
}

// TestAProcessElsewhere has a living shim in the cgroup of the first container of the berth.
func TestAProcessElsewhere(t *testing.T) {
	shim := start(t, speaks, first)
	other := shim.container
	other.ID = second
	outside := shim.container
	outside.PID = os.Getpid()
	for name, c := range map[string]struct {
		container runtime.Container
		pod       types.UID
	}{
		"in another container's cgroup": {other, pod},
		"in another pod's cgroup":       {shim.container, "another"},
		"in no container's cgroup":      {outside, pod},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSessions(&fakeRuntime{container: c.container})
			n, got, err := s.Connect(t.Context(), vm, c.pod)
			if n != nil || got != plan.ContainerUnknown || fault.ReasonOf(err) != v1alpha1.ReasonRuntimeUnreachable || s.session(c.pod) != nil {
				t.Fatalf("Connect() = %v, container %v, %v", n, got, err)
			}
			if !strings.Contains(err.Error(), "not in that of container "+c.container.ID+" of pod "+string(c.pod)) {
				t.Errorf("Connect() = %v", err)
			}
		})
	}
}

func TestNetworkNamespace(t *testing.T) {
	shim := start(t, silent, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	ns, err := s.connect(t).NetworkNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	got, err := ns.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		fmt.Sprintf("/proc/%d/ns/net", shim.container.PID): true,
		"/proc/self/ns/net": false,
	} {
		if its, err := os.Stat(path); err != nil || os.SameFile(its, got) != want {
			t.Errorf("it is %s: %t; %v", path, !want, err)
		}
	}
}

func TestWhatAShimLacks(t *testing.T) {
	takes := func(kinds ...shimproto.Kind) shimproto.State { return shimproto.State{Minor: 1, Kinds: kinds} }
	two := append(needs[:2:2], shimproto.Device{Kind: shimproto.KindDHCP, Name: "b"})
	for name, c := range map[string]struct {
		needs []shimproto.Device
		says  shimproto.State
		want  []string
	}{
		"all is taken, in another order":       {needs, takes("dhcp", "console"), nil},
		"one that has its guest does not less": {needs, shimproto.State{Minor: 1, Kinds: []shimproto.Kind{"hologram"}, InstanceID: "r1"}, []string{"console", "dhcp"}},
		"more is taken than is needed":         {needs[:1], takes("console", "hologram"), nil},
		"no leases":                            {needs, takes("console"), []string{"dhcp"}},
		"two networks lack one thing":          {two, takes("console"), []string{"dhcp"}},
		"what is not needed is not lacked":     {needs[:1], takes("console"), nil},
		"nothing that is needed is taken":      {needs, takes("hologram"), []string{"console", "dhcp"}},
		"whatever the order of devices":        {[]shimproto.Device{needs[1], needs[0], needs[1]}, takes("hologram"), []string{"console", "dhcp"}},
		"a VM that is gone needs nothing":      {nil, takes("hologram"), nil},
	} {
		n := &Session{stateKnown: true, state: c.says, bootTime: func() time.Duration { return 0 }}
		if diff := cmp.Diff(&plan.Shim{Attached: c.says.InstanceID != "", Lacks: c.want}, n.State(c.needs)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestWhatAShimSays: what the guest said, what somebody asked for, and what is still to come.
func TestWhatAShimSays(t *testing.T) {
	says := shimproto.State{
		Minor: 2, Kinds: []shimproto.Kind{"console", "exit"}, InstanceID: "r1", GuestTools: "1.0", ExitText: "3", Resets: 5, ResetsDone: 2, NMIs: 1,
	}
	n := &Session{stateKnown: true, state: says, bootTime: func() time.Duration { return 0 }}
	want := &plan.Shim{Attached: true, Draining: true, GuestTools: "1.0", ExitText: "3", Resets: 5, ResetsDone: 2, NMIs: 1}
	if diff := cmp.Diff(want, n.State(nil)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	n.acted = shimproto.Acted{Resets: 5, NMIs: 1} // which the shim has not confirmed yet
	n.state.ConsoleClosed = true
	want.Draining, want.ResetsDone, want.NMIsDone = false, 5, 1
	if diff := cmp.Diff(want, n.State(nil)); diff != "" {
		t.Errorf("after Acted (-want +got):\n%s", diff)
	}
}

// lease is any that is valid.
var lease = &shimproto.Lease{Address: netip.MustParsePrefix("10.0.2.2/24"), Router: netip.MustParseAddr("10.0.2.1"), MTU: 1500}

func TestHandOver(t *testing.T) {
	for name, c := range map[string]struct {
		shim  string
		taken int // of needs
	}{
		"to a shim that takes all":           {speaks, 2},
		"to a shim that takes consoles only": {consoles, 1},
	} {
		t.Run(name, func(t *testing.T) {
			shim := start(t, c.shim, first)
			s := newSessions(&fakeRuntime{container: shim.container})
			n := s.connect(t)
			s.until(t, func() bool { return n.State(nil) != nil })
			if lacks := n.State(needs).Lacks; len(lacks) != len(needs)-c.taken {
				t.Errorf("it lacks %q", lacks)
			}
			var opened []*os.File
			open := func(d *shimproto.Device) (*os.File, error) {
				if d.Kind == shimproto.KindDHCP {
					d.Lease = lease
				}
				file, err := os.Create(t.TempDir() + "/" + d.Name)
				opened = append(opened, file)
				return file, err
			}
			if err := n.HandOver(t.Context(), shimproto.HandOver{Devices: needs}, open); err != nil {
				t.Fatal(err)
			}
			if len(opened) != c.taken {
				t.Errorf("opened %d descriptors", len(opened))
			}
			for i, file := range opened {
				want := string(needs[i].Kind) + " " + needs[i].Name + " " + file.Name() + " <nil>"
				if got := shim.line(); got != want {
					t.Errorf("the shim has got %q, want %q", got, want)
				}
				if err := file.Close(); !errors.Is(err, os.ErrClosed) {
					t.Errorf("descriptor %d is open after", i)
				}
			}
			s, n = s.restart(t, n)
			s.until(t, func() bool { return n.State(nil) != nil })
			if !n.State(nil).Attached {
				t.Error("the shim does not say that it has a guest")
			}
		})
	}
}

func TestADescriptorThatCannotBeOpened(t *testing.T) {
	shim := start(t, speaks, first)
	s := newSessions(&fakeRuntime{container: shim.container})
	n := s.connect(t)
	s.until(t, func() bool { return n.State(nil) != nil })
	file, err := os.Create(t.TempDir() + "/console")
	if err != nil {
		t.Fatal(err)
	}
	refused := errors.New("no")
	err = n.HandOver(t.Context(), shimproto.HandOver{Devices: needs}, func(d *shimproto.Device) (*os.File, error) {
		if d.Kind == shimproto.KindConsole {
			return file, nil
		}
		return nil, refused
	})
	if !errors.Is(err, refused) || n.State(nil).Attached {
		t.Errorf("HandOver() = %v, and the shim is %+v", err, n.State(nil))
	}
	if err := file.Close(); !errors.Is(err, os.ErrClosed) {
		t.Error("the descriptor before is open after")
	}
}
