package libvirtd_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// told collects what a Client tells.
type told struct {
	mu      sync.Mutex
	changed map[string]int
	resyncs int
	states  []error
}

func (k *told) watcher() libvirtd.Watcher {
	return libvirtd.Watcher{
		Changed: func(id string) {
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.changed == nil {
				k.changed = map[string]int{}
			}
			k.changed[id]++
		},
		Resync: func() {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.resyncs++
		},
		Connectivity: func(err error) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.states = append(k.states, err)
		},
	}
}

func (k *told) of(id string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changed[id]
}

func run(t *testing.T, o libvirtd.Options) (*libvirtd.Client, *told) {
	t.Helper()
	k := &told{}
	c := libvirtd.New(o, k.watcher())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("running: %v", err)
		}
	})
	env.Eventually(t, "a connection", c.Connected)
	return c, k
}

// guest describes a boot-sector guest in a directory of its own.
func guest(t *testing.T, l *env.Libvirt, name string, act env.Act) domain.Guest {
	t.Helper()
	dir := filepath.Join(l.Dir, name)
	env.Mkdir(t, dir)
	raw, overlay := env.BootDisk(t, dir, act, l.UID, l.GID)
	id := uuid.NewString()
	return domain.Guest{
		UUID: id, Name: "test_" + name,
		Identity:         domain.Identity{Namespace: "test", Name: name, VM: id, Berth: uuid.NewString()},
		Hardware:         domain.Hardware{Layout: domain.NewestLayout, Machine: "q35"},
		Acceleration:     v1alpha1.AccelerationEmulation,
		CPU:              domain.CPU{Sockets: 1, Cores: 1, Threads: 1, Model: berth.CPUHostModel},
		Memory:           32 << 20,
		TranslationCache: 32 << 20,
		Disks:            []domain.Disk{{Name: "root", Path: overlay, Backing: []domain.Backing{{Path: raw, Format: domain.Raw}}}},
		Console:          filepath.Join(dir, "console.sock"),
		UID:              l.UID, GID: l.GID,
	}
}

func create(t *testing.T, c *libvirtd.Client, g domain.Guest) {
	t.Helper()
	doc, err := domain.XML(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePaused(t.Context(), doc); err != nil {
		t.Fatal(err)
	}
}

func look(t *testing.T, c *libvirtd.Client, id string) libvirtd.Domain {
	t.Helper()
	d, err := c.Domain(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// output resumes a guest and reads from its console until it has said want.
func output(t *testing.T, c *libvirtd.Client, g domain.Guest, want string) {
	t.Helper()
	conn, err := net.Dial("unix", g.Console)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := c.Resume(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var text []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(text, []byte(want)) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("reading console after %q: %v", text, err)
		}
		text = append(text, buf[:n]...)
	}
}

func TestLifeOfADomain(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, libvirtd.Options{Sockets: []string{filepath.Join(l.Dir, "nothing"), l.Socket}})
	g := guest(t, l, "life", env.Idle)

	if d := look(t, c, g.UUID); d.Exists {
		t.Fatalf("before it is made, the domain is %+v", d)
	}
	start := time.Now()
	create(t, c, g)
	t.Logf("started paused in %v", time.Since(start))
	create(t, c, g) // again
	d := look(t, c, g.UUID)
	if !d.Exists || d.State != libvirtd.Paused || d.Pause != libvirtd.PausedByUser {
		t.Errorf("created: %+v", d)
	}
	facts, err := domain.ParseFacts(d.XML)
	if err != nil {
		t.Fatal(err)
	}
	want := domain.Facts{
		UUID: g.UUID, Name: g.Name, Identity: &g.Identity, Hardware: g.Hardware, Emulated: true, Console: g.Console,
		Paths: []string{g.Disks[0].Path, g.Disks[0].Backing[0].Path},
	}
	if diff := cmp.Diff(want, facts); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	env.Eventually(t, "an event", func() bool { return k.of(g.UUID) > 0 })

	output(t, c, g, env.BootText)
	if err := c.Resume(t.Context(), g.UUID); err != nil {
		t.Errorf("resuming again: %v", err)
	}
	if d := look(t, c, g.UUID); d.State != libvirtd.Running {
		t.Errorf("resumed: %+v", d)
	}
	for range 2 {
		if err := c.Suspend(t.Context(), g.UUID); err != nil {
			t.Errorf("suspending: %v", err)
		}
	}
	states, err := c.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := look(t, c, g.UUID)
	seen.XML = ""
	if diff := cmp.Diff(map[string]libvirtd.Domain{g.UUID: seen}, states); diff != "" || seen.Pause != libvirtd.PausedByUser {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	all, err := c.Domains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]libvirtd.Summary{{UUID: g.UUID, Name: g.Name, Active: true}}, all); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}

	other := g
	other.UUID = uuid.NewString()
	doc, err := domain.XML(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePaused(t.Context(), doc); fault.ReasonOf(err) != v1alpha1.ReasonDomainNameTaken || fault.ClassOf(err) != fault.User {
		t.Errorf("starting another domain of that name: %v", err)
	}

	start = time.Now()
	for range 2 {
		if err := c.Destroy(t.Context(), g.UUID); err != nil {
			t.Errorf("destroying: %v", err)
		}
	}
	t.Logf("destroyed in %v", time.Since(start))
	if err := c.Shutdown(t.Context(), g.UUID, libvirtd.ByACPI); err != nil {
		t.Errorf("shutting down what is gone: %v", err)
	}
	if err := c.Resume(t.Context(), g.UUID); fault.ReasonOf(err) != v1alpha1.ReasonNotRunning {
		t.Errorf("resuming what is gone: %v", err)
	}
	env.Eventually(t, "the event of the end", func() bool { _, ok := c.LastStop(g.UUID); return ok })
	expectStop(t, c, g, libvirtd.CauseDestroyed)
}

// expectStop asks both for the end: events and the log.
func expectStop(t *testing.T, c *libvirtd.Client, g domain.Guest, want libvirtd.Cause) libvirtd.Stop {
	t.Helper()
	hint, ok := c.LastStop(g.UUID)
	if !ok || hint.Cause != want {
		t.Errorf("events say %q, want %q", hint.Cause, want)
	}
	root, err := c.Root()
	if err != nil {
		t.Fatal(err)
	}
	logged, err := libvirtd.ReadStop(root, g.Name)
	if err != nil {
		t.Fatal(err)
	}
	if logged.Cause != want || time.Since(logged.Time).Abs() > time.Minute {
		t.Errorf("the log says %+v, want %q", logged, want)
	}
	return logged
}

func TestEnds(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	for name, end := range map[string]struct {
		act    env.Act
		signal syscall.Signal
		want   libvirtd.Cause
	}{
		"poweroff":   {act: env.PowerOff, want: libvirtd.CausePoweredOff},
		"killed":     {signal: syscall.SIGKILL, want: libvirtd.CauseFailed},
		"terminated": {signal: syscall.SIGTERM, want: libvirtd.CauseSignalled},
	} {
		t.Run(name, func(t *testing.T) {
			g := guest(t, l, name, end.act)
			create(t, c, g)
			output(t, c, g, env.BootText)
			if end.signal != 0 {
				l.SignalGuest(g.Name, end.signal)
			}
			env.Eventually(t, "the domain's end", func() bool { return !look(t, c, g.UUID).Exists })
			env.Eventually(t, "its event", func() bool { _, ok := c.LastStop(g.UUID); return ok })
			t.Logf("%+v", expectStop(t, c, g, end.want))
		})
	}
	t.Run("panic", func(t *testing.T) {
		g := guest(t, l, "panic", env.Panic)
		create(t, c, g)
		output(t, c, g, env.BootText)
		env.Eventually(t, "the panic", func() bool { return look(t, c, g.UUID).State == libvirtd.Crashed })
		later, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}}) // it heard nothing of the panic, and sees it
		look(t, later, g.UUID)
		if err := later.Destroy(t.Context(), g.UUID); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*libvirtd.Client{c, later} {
			env.Eventually(t, "its event", func() bool { stop, _ := c.LastStop(g.UUID); return stop.Cause == libvirtd.CausePanicked })
		}
	})
	t.Run("reboot", func(t *testing.T) {
		g := guest(t, l, "reboot", env.Reboot)
		create(t, c, g)
		before := look(t, c, g.UUID)
		output(t, c, g, env.BootText+env.BootText)
		if after := look(t, c, g.UUID); after.ID != before.ID {
			t.Errorf("the reboot was a new life: %d, then %d", before.ID, after.ID)
		}
	})
}

func TestRefusals(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "refused", env.Idle)
	g.CPU.Model = "Abacus"
	doc, err := domain.XML(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePaused(t.Context(), doc); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("a CPU that does not exist: %v", err)
	} else {
		t.Log(err, fault.ClassOf(err))
	}
	g.CPU.Model = berth.CPUHostModel
	g.Disks[0].Path = filepath.Join(l.Dir, "missing.qcow2")
	if doc, err = domain.XML(g); err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePaused(t.Context(), doc); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("a disk that does not exist: %v", err)
	} else {
		t.Log(err, fault.ClassOf(err))
	}
	if err := c.CreatePaused(t.Context(), "<domain type='qemu'><name>x</name><uuid>"+g.UUID+"</uuid></domain>"); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused || fault.ClassOf(err) != fault.User {
		t.Errorf("no domain at all: %v", err)
	}
	if _, err := c.AgentCommand(t.Context(), g.UUID, `{"execute":"guest-ping"}`); fault.ReasonOf(err) != v1alpha1.ReasonNotRunning {
		t.Errorf("asking the agent of no domain: %v", err)
	}
	if _, err := c.Domain(t.Context(), "x"); err == nil {
		t.Error("no error for what is no UUID")
	}
}

func TestHostFacts(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	f, err := c.HostFacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s %d CPUs %d bytes, KVM %v (%v), emulation %v, %d machines", f.LibvirtVersion, f.QEMUVersion, f.CPUs, f.Memory, f.KVM, f.WhyNoKVM, f.Emulation, len(f.MachineTypes))
	if f.LibvirtVersion == "" || f.QEMUVersion == "" || f.CPUs < 1 || f.Memory < 1<<28 || f.Emulation == nil || !slices.Contains(f.MachineTypes, "q35") ||
		!strings.HasPrefix(f.Q35, "pc-q35-") || !slices.Contains(f.MachineTypes, f.Q35) {
		t.Errorf("%+v", f)
	}
}

// TestWholeGuest starts a guest with all that a domain can have, in every layout.
func TestWholeGuest(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	facts, err := c.HostFacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		acceleration v1alpha1.Acceleration
		hardware     domain.Hardware
	}{
		"emulated":              {v1alpha1.AccelerationEmulation, domain.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35}},
		"emulated, in layout 0": {v1alpha1.AccelerationEmulation, domain.Hardware{Layout: 0, Machine: "q35"}},
		"by KVM":                {v1alpha1.AccelerationKVM, domain.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35}},
	} {
		t.Run(name, func(t *testing.T) {
			acceleration := tc.acceleration
			if acceleration == v1alpha1.AccelerationKVM {
				env.KVM(t)
				if facts.KVM == nil {
					t.Fatalf("QEMU runs under KVM here, and libvirt says no: %v", facts.WhyNoKVM)
				}
			}
			g := guest(t, l, fmt.Sprintf("whole%s%d", acceleration, tc.hardware.Layout), env.PowerOff)
			g.Acceleration, g.Hardware = acceleration, tc.hardware
			g.CPU = domain.CPU{Sockets: 2, Cores: 2, Threads: 1, Model: berth.CPUHostModel}
			g.Seed = g.Disks[0].Backing[0].Path
			for i := len(g.Disks); i < domain.MaxDisks; i++ {
				path := filepath.Join(filepath.Dir(g.Console), fmt.Sprintf("d%d.qcow2", i))
				env.EmptyDisk(t, path, l.UID, l.GID)
				g.Disks = append(g.Disks, domain.Disk{Name: fmt.Sprintf("d%d", i), Path: path})
			}
			g.NIC = &domain.NIC{Tap: "bt" + g.UUID[:8], MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1450}
			start := time.Now()
			create(t, c, g)
			t.Logf("started paused in %v", time.Since(start))
			if _, err := net.InterfaceByName(g.NIC.Tap); err != nil {
				t.Errorf("the tap: %v", err)
			}
			d := look(t, c, g.UUID)
			live, err := domain.ParseFacts(d.XML)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(live.Taps, []string{g.NIC.Tap}) || live.AgentConnected || live.Hardware != tc.hardware ||
				live.Emulated != (acceleration == v1alpha1.AccelerationEmulation) {
				t.Errorf("facts %+v", live)
			}
			output(t, c, g, env.BootText)
			env.Eventually(t, "its end", func() bool { return !look(t, c, g.UUID).Exists })
			if _, err := net.InterfaceByName(g.NIC.Tap); err == nil {
				t.Error("the tap outlived the guest")
			}
		})
	}
}

func TestKVMThatNobodyMayUse(t *testing.T) {
	l := env.Libvirtd(t)
	env.KVM(t)
	if err := os.Chmod(filepath.Join(l.Dir, "kvm"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "closed", env.Idle)
	g.Acceleration = v1alpha1.AccelerationKVM
	doc, err := domain.XML(g)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CreatePaused(t.Context(), doc); fault.ReasonOf(err) != v1alpha1.ReasonKVMUnavailable {
		t.Errorf("starting on a /dev/kvm of root's alone: %v", err)
	}
}
