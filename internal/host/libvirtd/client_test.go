package libvirtd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/hosttest"
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
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
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
		GuestPort:        filepath.Join(dir, "guest.sock"), ExitPort: filepath.Join(dir, "exit.sock"),
		UID: l.UID, GID: l.GID,
	}
}

func create(t *testing.T, c *libvirtd.Client, g domain.Guest) {
	t.Helper()
	if err := c.CreatePaused(t.Context(), describe(t, g)); err != nil {
		t.Fatal(err)
	}
}

func describe(t *testing.T, g domain.Guest) string {
	t.Helper()
	doc, err := domain.XML(g)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func look(t *testing.T, c *libvirtd.Client, id string) libvirtd.Domain {
	t.Helper()
	d, err := c.Domain(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// output resumes a guest and reads from its console until it has said its text.
func output(t *testing.T, c *libvirtd.Client, g domain.Guest) {
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
	for !bytes.Contains(text, []byte(env.BootText)) {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("reading console after %q: %v", text, err)
		}
		text = append(text, buf[:n]...)
	}
}

// TestContract tests what holds of the in-memory libvirtd as well.
func TestContract(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{filepath.Join(l.Dir, "nothing"), l.Socket}})
	ends := map[libvirtd.Cause]struct {
		act    env.Act
		signal syscall.Signal
	}{
		libvirtd.CausePoweredOff: {act: env.PowerOff},
		libvirtd.CausePanicked:   {act: env.Panic},
		libvirtd.CauseFailed:     {signal: syscall.SIGKILL},
		libvirtd.CauseSignalled:  {signal: syscall.SIGTERM},
	}
	hosttest.TestLibvirt(t, hosttest.LibvirtSetup{
		Domains: c, Power: c, Buttons: c, Resizer: c, Plugger: c, Annotator: c, Backups: c,
		Backup: func(t *testing.T, id string, there bool) string {
			file, disk := filepath.Join(l.Dir, uuid.NewString()+".part"), factsOf(t, c, id).Disks[0]
			if there {
				env.EmptyDiskLike(t, file, disk.Path, l.UID, l.GID)
			}
			doc, err := domain.BackupXML(disk, file)
			if err != nil {
				t.Fatal(err)
			}
			return doc
		},
		Disk: func(t *testing.T) string {
			path := filepath.Join(l.Dir, "data.qcow2")
			env.EmptyDisk(t, path, l.UID, l.GID)
			at, _ := domain.Facts{Hardware: domain.Hardware{Layout: domain.NewestLayout}}.Spot(v1alpha1.BusVirtio)
			doc, err := domain.DiskXML(domain.Disk{Name: "data", Path: path}, at)
			if err != nil {
				t.Fatal(err)
			}
			// Its first slot and letter are those of a guest's first disk.
			return strings.NewReplacer(`slot="0x09"`, `slot="0x18"`, "vda", "vdp").Replace(doc)
		},
		XML: func(t *testing.T, id, name string) string {
			g := guest(t, l, name, env.Idle)
			g.UUID, g.Name, g.Identity.VM = id, name, id
			return describe(t, g)
		},
		End: func(t *testing.T, cause libvirtd.Cause) (id, name string) {
			g := guest(t, l, uuid.NewString(), ends[cause].act)
			create(t, c, g)
			output(t, c, g)
			if s := ends[cause].signal; s != 0 {
				l.SignalGuest(g.Name, s)
			}
			if cause == libvirtd.CausePanicked {
				env.Eventually(t, "the panic", func() bool { return look(t, c, g.UUID).State == libvirtd.Crashed })
				return g.UUID, g.Name
			}
			env.Eventually(t, "the domain's end", func() bool { return !look(t, c, g.UUID).Exists })
			env.Eventually(t, "its event", func() bool { _, ok := c.LastExit(g.UUID); return ok })
			expectStop(t, c, g, cause)
			return g.UUID, g.Name
		},
		Stop: func(t *testing.T) {
			l.Kill()
			env.Eventually(t, "the loss to be noticed", func() bool { return !c.Connected() })
		},
	})
}

func TestLifeOfADomain(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "life", env.Idle)
	start := time.Now()
	create(t, c, g)
	t.Logf("started paused in %v", time.Since(start))
	xml := look(t, c, g.UUID).XML
	facts, err := domain.ParseFacts(xml)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"<domain type='qemu'", "<uuid>" + g.UUID + "</uuid>", " path='" + g.Console + "'",
		"<source file='" + g.Disks[0].Path + "'", "<source file='" + g.Disks[0].Backing[0].Path + "'",
	} {
		if !strings.Contains(xml, text) {
			t.Errorf("no %s in\n%s", text, xml)
		}
	}
	if n := strings.Count(xml, "<source file="); n != 2 {
		t.Errorf("%d files in\n%s", n, xml)
	}
	want := domain.Facts{
		Name: g.Name, Identity: &g.Identity, Hardware: g.Hardware,
		AgentPTY: facts.AgentPTY, // whichever is free
		Disks:    []domain.LiveDisk{{Name: "root", Alias: "ua-root", Target: "vda", Bus: v1alpha1.BusVirtio, Path: g.Disks[0].Path}},
	}
	if facts.AgentPTY < 0 {
		t.Error("the guest agent's channel has no terminal")
	}
	if diff := cmp.Diff(want, facts, cmpopts.IgnoreUnexported(domain.Facts{}, domain.LiveDisk{})); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	env.Eventually(t, "an event", func() bool { return k.of(g.UUID) > 0 })
	output(t, c, g)
	all, err := c.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := all[g.UUID]; len(all) != 1 || d.Name != g.Name || d.ID < 0 {
		t.Errorf("the states are %+v", all)
	}
	start = time.Now()
	if err := c.Destroy(t.Context(), g.UUID); err != nil {
		t.Errorf("destroying: %v", err)
	}
	t.Logf("destroyed in %v", time.Since(start))
	// The end comes in two events: that a signal ends QEMU, and that libvirt destroyed the domain.
	env.Eventually(t, "the event of the end", func() bool { stop, _ := c.LastExit(g.UUID); return stop.Cause == libvirtd.CauseDestroyed })
	expectStop(t, c, g, libvirtd.CauseDestroyed)
}

// expectStop asks both for the end: events and the log.
func expectStop(t *testing.T, c *libvirtd.Client, g domain.Guest, want libvirtd.Cause) {
	t.Helper()
	hint, ok := c.LastExit(g.UUID)
	if !ok || hint.Cause != want {
		t.Errorf("events say %q, want %q", hint.Cause, want)
	}
	root, err := c.Root()
	if err != nil {
		t.Fatal(err)
	}
	logged, err := libvirtd.ReadExit(root, g.Name)
	if err != nil {
		t.Fatal(err)
	}
	if logged.Cause != want || time.Since(logged.Time).Abs() > time.Minute {
		t.Errorf("the log says %+v, want %q", logged, want)
	}
}

// TestPanicThatNobodyHeardOf has a Client that comes after the panic see it.
func TestPanicThatNobodyHeardOf(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "panic", env.Panic)
	create(t, c, g)
	output(t, c, g)
	env.Eventually(t, "the panic", func() bool { return look(t, c, g.UUID).State == libvirtd.Crashed })
	later, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	look(t, later, g.UUID)
	if err := later.Destroy(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*libvirtd.Client{c, later} {
		env.Eventually(t, "its event", func() bool { stop, _ := c.LastExit(g.UUID); return stop.Cause == libvirtd.CausePanicked })
	}
}

func TestRebootIsNoNewLife(t *testing.T) {
	l := env.Libvirtd(t)
	c, told := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "reboot", env.Reboot)
	create(t, c, g)
	before := look(t, c, g.UUID)
	output(t, c, g)
	env.Eventually(t, "six resets to be counted", func() bool { return look(t, c, g.UUID).Resets.Count > 5 })
	after := look(t, c, g.UUID)
	if after.ID != before.ID {
		t.Errorf("the reboot was a new life: %d, then %d", before.ID, after.ID)
	}
	if states, err := c.States(t.Context()); err != nil || states[g.UUID].Resets.Count < after.Resets.Count {
		t.Errorf("in the list of all: %+v, %v; alone: %+v", states[g.UUID], err, after)
	}
	if n, resets := told.of(g.UUID), after.Resets.Count; n > 10 {
		t.Errorf("%d resets were told in %d events", resets, n)
	}
	if err := c.Destroy(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	create(t, c, g)
	if again := look(t, c, g.UUID); again.Resets != (libvirtd.Resets{}) {
		t.Errorf("the next life begins with %+v", again.Resets)
	}
}

// TestResizeDisk: QEMU gives a qcow2 disk and a raw one the size that it is told, to the byte's sector, also while its guest is
// halted.
func TestResizeDisk(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "grow", env.Idle)
	raw := filepath.Join(filepath.Dir(g.Console), "disk.img")
	if err := errors.Join(os.WriteFile(raw, make([]byte, 1<<20), 0o600), os.Chown(raw, int(g.UID), int(g.GID))); err != nil {
		t.Fatal(err)
	}
	g.Disks = append(g.Disks, domain.Disk{Name: "data", Path: raw, Volume: &domain.Volume{}})
	create(t, c, g)
	for i, d := range g.Disks {
		want := int64(3<<30 + 512*i)
		if err := c.ResizeDisk(t.Context(), g.UUID, d.Path, want); err != nil {
			t.Fatal(err)
		}
		if said := l.Virsh("domblkinfo", g.Name, d.Path); !strings.Contains(said, fmt.Sprint(want)) {
			t.Errorf("%s has not %d bytes: %s", d.Path, want, said)
		}
	}
	if info, err := os.Stat(raw); err != nil || info.Size() != 3<<30+512 {
		t.Errorf("the file has %v, %v", info, err)
	}
	if err := c.ResizeDisk(t.Context(), g.UUID, "/missing", 1<<30); err == nil {
		t.Error("a disk that is not there grew")
	}
}

// TestButtons: a reset and an NMI reach the guest, each time that they are asked for.
func TestButtons(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "buttons", env.Idle)
	create(t, c, g)
	before := look(t, c, g.UUID)
	console, err := net.Dial("unix", g.Console)
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	if err := errors.Join(c.Resume(t.Context(), g.UUID), console.SetReadDeadline(time.Now().Add(2*time.Minute))); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(console)
	boots := func() {
		t.Helper()
		for text := ""; !strings.Contains(text, env.BootText); {
			b, err := said.ReadByte()
			if err != nil {
				t.Fatalf("reading the console after %q: %v", text, err)
			}
			text += string(b)
		}
	}
	boots()
	for range 2 {
		if err := errors.Join(c.InjectNMI(t.Context(), g.UUID), c.Reset(t.Context(), g.UUID)); err != nil {
			t.Fatal(err)
		}
		boots() // anew
	}
	env.Eventually(t, "a reset to be counted", func() bool { return look(t, c, g.UUID).Resets.Count > 0 })
	if after := look(t, c, g.UUID); after.ID != before.ID || after.State != libvirtd.Running {
		t.Errorf("it is %+v, was %+v", after, before)
	}
}

func TestCPUThatDoesNotExist(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "refused", env.Idle)
	g.CPU.Model = "Abacus"
	if err := c.CreatePaused(t.Context(), describe(t, g)); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("%v", err)
	} else {
		t.Log(err, fault.ClassOf(err))
	}
}

func TestHostFacts(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	f, err := c.HostFacts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s %d CPUs %d bytes, KVM %v (%v), emulation %v, %d machines", f.LibvirtVersion, f.QEMUVersion, f.CPUs, f.Memory, f.KVM, f.KVMUnavailable, f.Emulation, len(f.MachineTypes))
	if !slices.Contains(f.SecurityModels, "dac") {
		t.Errorf("security models are %q, want dac among them", f.SecurityModels)
	}
	if f.LibvirtVersion == "" || f.QEMUVersion == "" || f.CPUs < 1 || f.Memory < 1<<28 || f.Emulation == nil || !slices.Contains(f.MachineTypes, "q35") ||
		!strings.HasPrefix(f.Q35, "pc-q35-") || !slices.Contains(f.MachineTypes, f.Q35) {
		t.Errorf("%+v", f)
	}
}

// TestWholeGuest starts a guest with all that a domain can have.
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
		display      v1alpha1.DisplayType
	}{
		"emulated": {v1alpha1.AccelerationEmulation, domain.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35}, v1alpha1.DisplayVGA},
		"by KVM":   {v1alpha1.AccelerationKVM, domain.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35}, v1alpha1.DisplayVirtio},
	} {
		t.Run(name, func(t *testing.T) {
			acceleration := tc.acceleration
			if acceleration == v1alpha1.AccelerationKVM {
				env.KVM(t)
				if facts.KVM == nil {
					t.Fatalf("QEMU runs under KVM here, and libvirt says no: %v", facts.KVMUnavailable)
				}
			}
			g := guest(t, l, fmt.Sprintf("whole%s%d", acceleration, tc.hardware.Layout), env.PowerOff)
			g.Acceleration, g.Hardware = acceleration, tc.hardware
			g.CPU = domain.CPU{Sockets: 2, Cores: 2, Threads: 1, Model: berth.CPUHostModel}
			g.Seed, g.Tools = g.Disks[0].Backing[0].Path, g.Disks[0].Backing[0].Path
			screen := filepath.Join(filepath.Dir(g.Console), "display")
			env.Mkdir(t, screen)
			if err := os.Chown(screen, int(l.UID), -1); err != nil { // QEMU makes the socket itself
				t.Fatal(err)
			}
			g.Display = &domain.Display{Type: tc.display, Socket: filepath.Join(screen, "vnc.sock")}
			for i := len(g.Disks); i < domain.MaxDisks; i++ {
				path := filepath.Join(filepath.Dir(g.Console), fmt.Sprintf("d%d.qcow2", i))
				env.EmptyDisk(t, path, l.UID, l.GID)
				g.Disks = append(g.Disks, domain.Disk{Name: fmt.Sprintf("d%d", i), Path: path})
			}
			g.NIC = &domain.NIC{Tap: "bt" + g.UUID[:8], MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
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
			kind := map[bool]string{true: "<domain type='qemu'", false: "<domain type='kvm'"}[acceleration == v1alpha1.AccelerationEmulation]
			if strings.Count(d.XML, "<interface ") != 1 || !strings.Contains(d.XML, "<target dev='"+g.NIC.Tap+"'/>") || !strings.Contains(d.XML, kind) ||
				live.AgentConnected || live.Hardware != tc.hardware ||
				live.Display != g.Display.Socket || !live.Tools {
				t.Errorf("facts %+v", live)
			}
			for _, socket := range []string{g.GuestPort, g.ExitPort, g.Display.Socket} {
				conn, err := net.Dial("unix", socket)
				if err != nil {
					t.Errorf("connecting to %s: %v", socket, err)
					continue
				}
				defer conn.Close()
			}
			viewer := make([]byte, 12) // RFC 6143, 7.1.1
			if conn, err := net.Dial("unix", g.Display.Socket); err != nil {
				t.Error(err)
			} else if _, err := io.ReadFull(conn, viewer); err != nil || string(viewer) != "RFB 003.008\n" {
				t.Errorf("its second viewer is greeted with %q, %v", viewer, err)
			}
			output(t, c, g)
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
	if err := c.CreatePaused(t.Context(), describe(t, g)); fault.ReasonOf(err) != v1alpha1.ReasonKVMUnavailable {
		t.Errorf("starting on a /dev/kvm of root's alone: %v", err)
	}
}

// TestAFailureTellsTheLog: events say that QEMU failed, and only the log says why.
func TestAFailureTellsTheLog(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "fails", env.Idle)
	create(t, c, g)
	root, err := c.Root()
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(root, "var/log/libvirt/qemu", g.Name+".log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.WriteString("KVM: entry failed, hardware error 0x7\n"); err != nil {
		t.Fatal(err)
	}
	l.SignalGuest(g.Name, syscall.SIGKILL)
	env.Eventually(t, "its event", func() bool { _, ok := c.LastExit(g.UUID); return ok })
	if exit, ok := c.ExitCause(g.UUID, g.Name); !ok || exit.Cause != libvirtd.CauseFailed || exit.Message != "KVM: entry failed, hardware error 0x7" {
		t.Errorf("it ended with %+v, %t", exit, ok)
	}
}
