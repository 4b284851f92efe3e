package hosttest_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
)

const (
	web = "11111111-2222-3333-4444-555555555555"
	tap = "bt11111111"
)

// placed is a host whose guest web runs in a container of pod.
func placed(t *testing.T) (h *hosttest.Host, container string) {
	t.Helper()
	h = hosttest.New()
	running(t, h, web, "default_web")
	container, shim := h.StartContainer("pod", "guest")
	q := only(t, h)
	helpers, err := h.Processes.VhostThreads(q.PID)
	if err != nil || len(helpers) != 1 {
		t.Fatalf("helpers %v, %v", helpers, err)
	}
	if q.Container != "" || q.OOMScore != 0 {
		t.Fatalf("at first it is %+v", q)
	}
	if err := h.Cgroups.Place(h.Container(container).Cgroup(), q.PID, helpers[0]); err != nil {
		t.Fatal(err)
	}
	if err := h.Processes.CopyOOMScore(shim, q.PID); err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{q.PID, helpers[0], shim} {
		g, err := h.Cgroups.Of(pid)
		if pod, in, ok := g.Container(); err != nil || !ok || pod != "pod" || in != container {
			t.Fatalf("process %d is in %s, %v", pid, g, err)
		}
	}
	return h, container
}

// only is the guest's only QEMU.
func only(t *testing.T, h *hosttest.Host) hosttest.QEMU {
	t.Helper()
	all := h.QEMUs(web)
	if len(all) != 1 {
		t.Fatalf("it has QEMUs %+v", all)
	}
	return all[0]
}

func look(t *testing.T, h *hosttest.Host) libvirtd.Domain {
	t.Helper()
	d, err := h.Libvirt.Domain(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func expectBreach(t *testing.T, h *hosttest.Host, want string) {
	t.Helper()
	if b := h.Breaches(); len(b) != 1 || !strings.Contains(b[0], want) {
		t.Errorf("breaches %q, want one: …%s…", b, want)
	}
}

func TestQEMUIsAProcessOfTheHost(t *testing.T) {
	h, container := placed(t)
	q := only(t, h)
	want := hosttest.QEMU{PID: q.PID, State: libvirtd.Running, Pod: "pod", Container: container, OOMScore: hosttest.OOMScore}
	if diff := cmp.Diff(want, q); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	found, err := h.Processes.Find(web)
	if diff := cmp.Diff([]process.Process{{PID: q.PID, UID: store.FirstUser}}, found); diff != "" || err != nil {
		t.Errorf("found (-want +got), %v:\n%s", err, diff)
	}
	all, err := h.Processes.PIDsByUUID()
	if diff := cmp.Diff(map[string][]int{web: {q.PID}}, all); diff != "" || err != nil {
		t.Errorf("among all (-want +got), %v:\n%s", err, diff)
	}
	if err := h.Libvirt.Shutdown(t.Context(), web); err != nil || !only(t, h).ShutdownAsked {
		t.Errorf("it was not asked to power off, %v", err)
	}
	if b := h.Breaches(); len(b) > 0 {
		t.Errorf("breaches %q", b)
	}
}

func TestLibvirtNoticesWhatItIsToldOf(t *testing.T) {
	h, _ := placed(t)
	ended := 0
	if is, err := h.Processes.Watch(only(t, h).PID, func() { ended += 1 + len(h.QEMUs(web)) }); !is || err != nil {
		t.Fatalf("watching: %v, %v", is, err)
	}
	pid := only(t, h).PID
	helpers, err := h.Processes.VhostThreads(pid)
	if err != nil {
		t.Fatal(err)
	}
	if h.NoticeExit(web) || !h.KillQEMU(web) || h.KillQEMU(web) || ended != 1 {
		t.Errorf("its end was told %d times", ended)
	}
	if is, err := h.Processes.Watch(pid, func() {}); is || err != nil {
		t.Errorf("watching what has ended: %v, %v", is, err)
	}
	for _, pid := range append(helpers, pid) {
		if _, err := h.Cgroups.Of(pid); !errors.Is(err, cgroup.ErrNoProcess) {
			t.Errorf("where process %d is: %v", pid, err)
		}
	}
	if d := look(t, h); d.State != libvirtd.Running {
		t.Errorf("libvirt knows already: %+v", d)
	}
	if err := h.Libvirt.Suspend(t.Context(), web); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("suspending: %v", err)
	}
	if err := h.Processes.CopyOOMScore(pid, pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its OOM score: %v", err)
	}
	if h.PowerOff(web) || h.Panic(web) || h.PauseOnIOError(web) || h.OOMKill(web) {
		t.Error("something happened to a guest that is gone")
	}
	if !h.NoticeExit(web) || h.NoticeExit(web) || look(t, h).Exists {
		t.Error("libvirt does not notice, or notices twice")
	}
	if h.ForgetDomain(web) {
		t.Error("libvirt forgot what it does not know")
	}
}

func TestForgottenQEMULivesOn(t *testing.T) {
	h, container := placed(t)
	if !h.ForgetDomain(web) || look(t, h).Exists {
		t.Fatal("libvirt remembers")
	}
	if q := only(t, h); q.State != libvirtd.Running || q.Container != container {
		t.Errorf("it is %+v", q)
	}
	if stop, ok := h.Libvirt.ExitCause(web, "default_web"); ok {
		t.Errorf("it ended as %+v", stop)
	}
	if err := h.Libvirt.CreatePaused(t.Context(), xml(h, web, "default_web")); err != nil {
		t.Fatal(err)
	}
	if all := h.QEMUs(web); len(all) != 2 || all[0].State != libvirtd.Running || all[1].State != libvirtd.Paused {
		t.Errorf("%+v", all)
	}
	expectBreach(t, h, "a second QEMU")
}

func TestPauseOnIOErrorLasts(t *testing.T) {
	h, _ := placed(t)
	if !h.PauseOnIOError(web) || h.PauseOnIOError(web) {
		t.Fatal("it is not paused once")
	}
	if err := h.Libvirt.Suspend(t.Context(), web); err != nil {
		t.Error(err)
	}
	if d := look(t, h); d.State != libvirtd.Paused || d.Pause != libvirtd.PausedOnIOError {
		t.Errorf("it is %+v", d)
	}
	if err := h.Libvirt.Resume(t.Context(), web); err != nil || look(t, h).State != libvirtd.Running {
		t.Errorf("it does not go on, %v", err)
	}
}

func TestContainerLeavesWhatLivesInIt(t *testing.T) {
	h, id := placed(t)
	c, pid := h.Container(id), only(t, h).PID
	if h.KillCgroup(id) || !h.EndContainer(id) || h.EndContainer(id) || c.Alive() || h.Container(id) != nil {
		t.Error("it did not end once")
	}
	if only(t, h).PID != pid {
		t.Error("its QEMU is another")
	}
	if _, err := c.NetworkNamespace(); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed {
		t.Errorf("its network namespace: %v", err)
	}
	if kills, err := h.Cgroups.OOMKills(c.Cgroup()); kills != 0 || err != nil {
		t.Errorf("its cgroup is gone before what lives in it: %v", err)
	}
	if !h.KillCgroup(id) || h.KillCgroup(id) || len(h.QEMUs(web)) > 0 {
		t.Error("its cgroup was not killed once")
	}
	if _, err := h.Cgroups.OOMKills(c.Cgroup()); !errors.Is(err, cgroup.ErrGone) {
		t.Errorf("its cgroup has outlived it: %v", err)
	}
	running(t, h, "66666666-7777-8888-9999-aaaaaaaaaaaa", "default_db")
	err := h.Cgroups.Place(c.Cgroup(), h.QEMUs("66666666-7777-8888-9999-aaaaaaaaaaaa")[0].PID)
	if !errors.Is(err, cgroup.ErrGone) || fault.ReasonOf(err) != v1alpha1.ReasonPlacementFailed {
		t.Errorf("placing into it: %v", err)
	}
}

func TestPlaceRefuses(t *testing.T) {
	h, id := placed(t)
	elsewhere, err := cgroup.Parse([]byte("0::/machine/qemu"))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Cgroups.Place(elsewhere, only(t, h).PID); fault.ReasonOf(err) != v1alpha1.ReasonPlacementFailed {
		t.Errorf("into no container: %v", err)
	}
	if err := h.Cgroups.Place(h.Container(id).Cgroup(), 1); !errors.Is(err, cgroup.ErrNoProcess) {
		t.Errorf("what is no process: %v", err)
	}
	next, _ := h.StartContainer("pod", "guest")
	if err := h.Cgroups.Place(h.Container(next).Cgroup(), only(t, h).PID); err != nil {
		t.Error(err)
	}
	expectBreach(t, h, "from container "+id+" to "+next)
}

func TestPodThatIsRemoved(t *testing.T) {
	h, id := placed(t)
	if !h.RemovePod("pod") || h.RemovePod("pod") || h.Container(id) != nil {
		t.Error("it was not removed once")
	}
	if _, found, err := h.Runtime.Container(t.Context(), "pod", "guest"); found || err != nil {
		t.Errorf("its container is there, %v", err)
	}
	if q := only(t, h); q.Container != id || q.Pod != "pod" {
		t.Errorf("its QEMU is %+v", q)
	}
}

func TestOOMKillIsCounted(t *testing.T) {
	h, id := placed(t)
	g := h.Container(id).Cgroup()
	if !h.OOMKill(web) || len(h.QEMUs(web)) > 0 {
		t.Error("it lives")
	}
	if kills, err := h.Cgroups.OOMKills(g); kills != 1 || err != nil {
		t.Errorf("%d kills, %v", kills, err)
	}
}

func TestNetworkFollowsQEMU(t *testing.T) {
	h, id := placed(t)
	ns, err := h.Container(id).NetworkNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if pod, err := h.Network.FindPodInterface(t.Context(), ns); err != nil || pod.Name != hosttest.PodInterface.Name {
		t.Errorf("the pod's interface: %+v, %v", pod, err)
	}
	if _, err := h.Network.DHCPSocket(t.Context(), ns, tap); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed {
		t.Errorf("a socket on a tap of the host: %v", err)
	}
	config := podnet.Config{Interfaces: []podnet.Interface{{Tap: tap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}}}
	for range 2 {
		if _, err := h.Network.Connect(t.Context(), ns, config); err != nil {
			t.Error(err)
		}
	}
	if in, on := h.Taps("pod"), h.Taps(""); !slices.Equal(in, []string{tap}) || len(on) > 0 {
		t.Errorf("taps %q in the pod, %q on the host", in, on)
	}
	socket, err := h.Network.DHCPSocket(t.Context(), ns, tap)
	if err != nil {
		t.Fatal(err)
	}
	_ = socket.Close()
	h.StartContainer("other", "guest")
	other, _ := h.StartContainer("other", "guest")
	theirs, err := h.Container(other).NetworkNamespace()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Network.Connect(t.Context(), theirs, config); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed {
		t.Errorf("a tap of another pod: %v", err)
	}
	_ = theirs.Close()
	if _, err := h.Network.FindPodInterface(t.Context(), theirs); err == nil {
		t.Error("a namespace that is closed")
	}
	h.KillQEMU(web)
	if _, err := h.Network.Connect(t.Context(), ns, config); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed {
		t.Errorf("a tap that went with its QEMU: %v", err)
	}
}

func TestConsoleIsLeftBehind(t *testing.T) {
	h, _ := placed(t)
	c, err := h.Consoles.Connect(t.Context(), web, console.Serial)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	h.KillQEMU(web)
	if _, err := h.Consoles.Connect(t.Context(), web, console.Serial); fault.ReasonOf(err) != v1alpha1.ReasonStarting {
		t.Errorf("connecting to one that nobody listens at: %v", err)
	}
	for _, want := range []bool{true, false, false} {
		uids, err := h.Consoles.List()
		if h.Consoles.Exists(web) != want || slices.Contains(uids, web) != want || err != nil {
			t.Errorf("it is there: %v, %q, %v; want %v", h.Consoles.Exists(web), uids, err, want)
		}
		if err := h.Consoles.Remove(web); err != nil {
			t.Error(err)
		}
	}
	if b := h.Breaches(); len(b) > 0 {
		t.Errorf("breaches %q", b)
	}
}

func TestWhatQEMUHasOpenStays(t *testing.T) {
	image := store.Content{Digest: "sha256:" + strings.Repeat("1", 64)}
	for name, tc := range map[string]struct {
		remove func(*hosttest.Host) error
		want   string
	}{
		"its disks": {func(h *hosttest.Host) error { return h.Store.Remove(web) }, "root.qcow2"},
		"a disk, to be made anew": {func(h *hosttest.Host) error {
			_, err := h.Store.RecreateOverlay(web, store.Overlay{Name: "root", Base: image})
			return err
		}, "root.qcow2"},
		"its seed":    {func(h *hosttest.Host) error { return h.Store.RemoveSeed(web) }, ".iso"},
		"its console": {func(h *hosttest.Host) error { return h.Consoles.Remove(web) }, ".sock"},
	} {
		for _, lives := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				h := hosttest.New()
				h.AddImage(image, 1)
				user, err := h.Store.EnsureGuest(store.Identity{UID: web})
				if err != nil {
					t.Fatal(err)
				}
				disk, err := h.Store.Overlay(web, store.Overlay{Name: "root", Base: image, User: user})
				if err != nil {
					t.Fatal(err)
				}
				file := disk.Path
				if strings.Contains(tc.want, "iso") {
					if file, err = h.Store.CreateSeed(web, 4, user); err != nil {
						t.Fatal(err)
					}
				}
				doc := strings.Replace(xml(h, web, "default_web"), "<devices>", `<devices><disk><source file="`+file+`"/></disk>`, 1)
				if err := h.Libvirt.CreatePaused(t.Context(), doc); err != nil {
					t.Fatal(err)
				}
				if !lives {
					h.KillQEMU(web)
				}
				if err := tc.remove(h); err != nil {
					t.Fatal(err)
				}
				if lives {
					expectBreach(t, h, tc.want+" was removed")
				} else if b := h.Breaches(); len(b) > 0 {
					t.Errorf("breaches %q", b)
				}
			})
		}
	}
}

func TestGuestAgentAnswers(t *testing.T) {
	h := hosttest.New()
	doc := strings.Replace(xml(h, web, "default_web"), "</devices>", `<channel type="pty"><target name="org.qemu.guest_agent.0"/></channel></devices>`, 1)
	if err := h.Libvirt.CreatePaused(t.Context(), doc); err != nil {
		t.Fatal(err)
	}
	answer := func(command string) (string, error) { return "re: " + command, nil }
	if h.ConnectAgent(web, answer) {
		t.Error("the agent of a guest that is halted connected")
	}
	if err := h.Libvirt.Resume(t.Context(), web); err != nil || !h.ConnectAgent(web, answer) || !h.ConnectAgent(web, answer) {
		t.Fatalf("it did not connect, %v", err)
	}
	pid, pts := only(t, h).PID, int(look(t, h).ID)
	agent, err := h.OpenGuestAgent(pid, pts)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := agent.AgentCommand(t.Context(), "ping"); got != "re: ping" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if !strings.Contains(look(t, h).XML, fmt.Sprintf(`path="/dev/pts/%d"`, pts)) {
		t.Errorf("the XML does not tell of terminal %d", pts)
	}
	if n := strings.Count(look(t, h).XML, `name="org.qemu.guest_agent.0" state="connected"`); n != 1 {
		t.Errorf("the XML tells so %d times", n)
	}
	if err := agent.PowerDown(t.Context()); err != nil || !only(t, h).ShutdownAsked {
		t.Errorf("it was not asked to power off, %v", err)
	}
	h.DisconnectAgent(web)
	if _, err := agent.AgentCommand(t.Context(), "ping"); fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
		t.Errorf("one that is gone: %v", err)
	}
	if _, err := h.OpenGuestAgent(pid, pts+1); fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
		t.Errorf("at another terminal: %v", err)
	}
}

func TestLibvirtIsWrongOnce(t *testing.T) {
	h, _ := placed(t)
	h.AnswerOnce(web, libvirtd.Domain{})
	if first, then := look(t, h), look(t, h); first.Exists || !then.Exists {
		t.Errorf("%+v, then %+v", first, then)
	}
}

func TestLibvirtComesBack(t *testing.T) {
	h, _ := placed(t)
	before := look(t, h)
	h.SetLibvirtDown(true)
	if _, err := h.Libvirt.Domain(t.Context(), web); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtUnreachable || h.Libvirt.KVMGroup() != 0 {
		t.Errorf("it answers: %v", err)
	}
	h.SetLibvirtDown(false)
	if after := look(t, h); after != before || h.Libvirt.KVMGroup() != hosttest.KVMGroup {
		t.Errorf("it is %+v, was %+v", after, before)
	}
}

func TestFilesOfAContainer(t *testing.T) {
	h, id := placed(t)
	pid := h.Container(id).PID()
	if _, err := h.ReadFile(pid, "/data", 4); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is missing: %v", err)
	}
	h.WriteFile(id, "/data", []byte("1234"))
	if got, err := h.ReadFile(pid, "/data", 4); string(got) != "1234" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := h.ReadFile(pid, "/data", 3); !errors.Is(err, volume.ErrTooLarge) {
		t.Errorf("one that is too large: %v", err)
	}
	h.EndContainer(id)
	if _, err := h.ReadFile(pid, "/data", 4); err == nil {
		t.Error("one of a process that has ended")
	}
}

func TestSeedIsKept(t *testing.T) {
	h := hosttest.New()
	if _, err := h.Store.CreateSeed(web, 4, store.FirstUser); err != nil {
		t.Fatal(err)
	}
	if got := h.Seed(web); got != nil {
		t.Errorf("before it is written: %q", got)
	}
	if err := h.Store.WriteSeed(web, []byte("1234")); err != nil || string(h.Seed(web)) != "1234" {
		t.Errorf("%q, %v", h.Seed(web), err)
	}
}

// BenchmarkLook is what the agent asks of a guest that runs.
func BenchmarkLook(b *testing.B) {
	h := hosttest.New()
	if err := h.Libvirt.CreatePaused(b.Context(), xml(h, web, "default_web")); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := h.Libvirt.Domain(b.Context(), web); err != nil {
			b.Fatal(err)
		}
		found, err := h.Processes.Find(web)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := h.Cgroups.Of(found[0].PID); err != nil {
			b.Fatal(err)
		}
		if _, err := h.Store.Disks(web); err != nil {
			b.Fatal(err)
		}
	}
}

func TestABackupGoesOnUntilItsEnd(t *testing.T) {
	for name, tt := range map[string]struct {
		ends   func(*hosttest.Host) bool
		reason v1alpha1.Reason // of the error that tells so
	}{
		"it is complete":   {func(h *hosttest.Host) bool { return h.CompleteBackup(web) }, ""},
		"QEMU gives it up": {func(h *hosttest.Host) bool { return h.FailBackup(web, "no space") }, v1alpha1.ReasonStoreFailed},
		"it is given up":   {func(h *hosttest.Host) bool { return h.Libvirt.AbortBackup(t.Context(), web) == nil }, v1alpha1.ReasonStoreFailed},
		"the guest ends":   {func(h *hosttest.Host) bool { return h.PowerOff(web) }, v1alpha1.ReasonNotRunning},
		"QEMU is killed":   {func(h *hosttest.Host) bool { return h.KillQEMU(web) }, v1alpha1.ReasonLibvirtRefused},
		"its file is emptied": {func(h *hosttest.Host) bool {
			_ = h.Store.EndCommit(web, func() error { return errors.New("not yet") })
			return h.FailBackup(web, "it is no qcow2")
		}, v1alpha1.ReasonStoreFailed},
	} {
		t.Run(name, func(t *testing.T) {
			h := hosttest.New()
			h.CopiesIn(t.TempDir())
			if err := h.Libvirt.CreatePaused(t.Context(), disked(h, web, "default_web")); err != nil {
				t.Fatal(err)
			}
			user, err := h.Store.EnsureGuest(store.Identity{UID: web})
			if err != nil || h.Libvirt.Resume(t.Context(), web) != nil {
				t.Fatal(err)
			}
			file, err := h.Store.CreateCommit(web, 1<<20, 1, user)
			if err != nil || !h.HasCopy(web) {
				t.Fatal(err)
			}
			h.ConnectAgent(web, h.FreezingAgent(web))
			agent, err := h.OpenGuestAgent(only(t, h).PID, int(look(t, h).ID))
			if err != nil {
				t.Fatal(err)
			}
			say := func(command string, frozen bool) {
				t.Helper()
				if answer, err := agent.AgentCommand(t.Context(), `{"execute":"`+command+`"}`); answer != `{"return":1}` || err != nil || h.Frozen(web) != frozen {
					t.Errorf("%s: %s, %v, frozen: %t", command, answer, err, h.Frozen(web))
				}
			}
			say("guest-fsfreeze-freeze", true)
			if err := h.Libvirt.BeginBackup(t.Context(), web, backup("vdb", file)); err == nil {
				t.Error("a disk is copied that is not there")
			}
			if err := h.Libvirt.BeginBackup(t.Context(), web, backup("vda", file)); err != nil {
				t.Fatal(err)
			}
			if err := h.Libvirt.BeginBackup(t.Context(), web, backup("vda", file)); err == nil {
				t.Error("two backups go on")
			}
			say("guest-fsfreeze-thaw", false)
			h.AdvanceBackup(web, 1, 2)
			if b, goesOn := h.Backup(web); !goesOn || !b.Frozen || b.File != file || b.Done != 1 || b.Total != 2 {
				t.Errorf("%+v, %t", b, goesOn)
			}
			if done, total, goesOn, err := h.Libvirt.BackupProgress(t.Context(), web); done != 1 || total != 2 || !goesOn || err != nil {
				t.Errorf("%d of %d, it goes on: %t, %v", done, total, goesOn, err)
			}
			if !tt.ends(h) {
				t.Error("it had ended")
			}
			if _, goesOn := h.Backup(web); goesOn || h.CompleteBackup(web) || h.AdvanceBackup(web, 2, 2) {
				t.Error("it goes on")
			}
			_, _, goesOn, err := h.Libvirt.BackupProgress(t.Context(), web)
			if goesOn || (err == nil) != (tt.reason == "") || err != nil && fault.ReasonOf(err) != tt.reason {
				t.Errorf("it goes on: %t, %v", goesOn, err)
			}
			if err := h.Store.EndCommit(web, func() error { return nil }); err != nil || h.HasCopy(web) || len(h.Breaches()) > 0 {
				t.Errorf("it is not removed: %v, %v", err, h.Breaches())
			}
		})
	}
}

func TestACopyIsRemovedUnderAQEMU(t *testing.T) {
	h := hosttest.New()
	if _, err := h.Store.CreateCommit(web, 1<<20, 1, 0); err == nil {
		t.Error("one of no guest, in no directory, is made")
	}
	h.CopiesIn(t.TempDir())
	h.LimitCopies(10)
	if err := h.Libvirt.CreatePaused(t.Context(), disked(h, web, "default_web")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Store.EnsureGuest(store.Identity{UID: web}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Store.CreateCommit(web, 1<<20, 11, 0); fault.ReasonOf(err) != v1alpha1.ReasonStoreFull {
		t.Errorf("one that is too large: %v", err)
	}
	file, err := h.Store.CreateCommit(web, 1<<20, 10, 0)
	if err != nil || h.Libvirt.BeginBackup(t.Context(), web, backup("vda", file)) != nil {
		t.Fatal(err)
	}
	if err := h.Store.EndCommit(web, func() error { return nil }); err != nil {
		t.Error(err)
	}
	expectBreach(t, h, "was removed while a QEMU copied a disk")
}

// TestADiskIsLocked by the QEMU that has it: no other can start with it.
func TestADiskIsLocked(t *testing.T) {
	h := hosttest.New()
	user, err := h.Store.EnsureGuest(store.Identity{UID: web})
	if err != nil {
		t.Fatal(err)
	}
	d, err := h.Store.Overlay(web, store.Overlay{Name: "root", Size: 1 << 20, User: user})
	if err != nil {
		t.Fatal(err)
	}
	const other = "99999999-2222-3333-4444-555555555555"
	doc := func(id string) string {
		return strings.Replace(xml(h, id, id), "<devices>", `<devices><disk><source file="`+d.Path+`"/></disk>`, 1)
	}
	if err := h.Libvirt.CreatePaused(t.Context(), doc(other)); err != nil {
		t.Fatal(err)
	}
	if err := h.Libvirt.CreatePaused(t.Context(), doc(web)); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("a second QEMU has it: %v", err)
	}
	if err := h.Libvirt.Destroy(t.Context(), other); err != nil {
		t.Error(err)
	}
	if err := h.Libvirt.CreatePaused(t.Context(), doc(web)); err != nil {
		t.Error(err)
	}
}
