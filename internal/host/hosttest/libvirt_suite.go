package hosttest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// Domains is what TestLibvirt asks a libvirtd.Client.
type Domains interface {
	Domain(ctx context.Context, uuid string) (libvirtd.Domain, error)
	States(ctx context.Context) (map[string]libvirtd.Domain, error)
	ExitCause(uuid, name string) (libvirtd.Exit, bool)
}

// Power is what TestLibvirt has a libvirtd.Client do.
type Power interface {
	CreatePaused(ctx context.Context, xml string) error
	Resume(ctx context.Context, uuid string) error
	Suspend(ctx context.Context, uuid string) error
	Shutdown(ctx context.Context, uuid string) error
	Destroy(ctx context.Context, uuid string) error
}

// Buttons are those of a machine that TestLibvirt has a libvirtd.Client press.
type Buttons interface {
	Reset(ctx context.Context, uuid string) error
	InjectNMI(ctx context.Context, uuid string) error
}

// Resizer tells a libvirtd.Client's guests of disks that have grown.
type Resizer interface {
	ResizeDisk(ctx context.Context, uuid, path string, size int64) error
}

// Plugger is what TestLibvirt has a libvirtd.Client do with the disks of domains that run.
type Plugger interface {
	AttachDisk(ctx context.Context, uuid, xml string) error
	DetachDisk(ctx context.Context, uuid, alias string) error
	ChangeMedium(ctx context.Context, uuid, xml string, force bool) error
	SetDiskLimits(ctx context.Context, uuid, target string, l libvirtd.DiskLimits) error
	BlockStats(ctx context.Context) (map[string][]libvirtd.BlockStats, error)
}

// Backups are copies of disks that TestLibvirt has a libvirtd.Client make.
type Backups interface {
	BeginBackup(ctx context.Context, uuid, xml string) error
	BackupProgress(ctx context.Context, uuid string) (done, total uint64, goesOn bool, err error)
	AbortBackup(ctx context.Context, uuid string) error
}

// Annotator has a libvirtd.Client keep something with a domain.
type Annotator interface {
	SetMetadata(ctx context.Context, uuid, xml string) error
}

// LibvirtSetup is a libvirtd to be tested, and the world around it.
type LibvirtSetup struct {
	Domains
	Power
	Buttons
	Resizer
	Plugger
	Annotator
	Backups
	// Backup describes the copying of a disk of a domain of XML, into a new file that is there, or else into none.
	Backup func(t *testing.T, uuid string, there bool) string
	// Complete lets a backup come to its end. It is nil where that comes by itself.
	Complete func(uuid string) bool
	// Disk describes one that a domain of XML can be plugged.
	Disk func(t *testing.T) string
	// XML describes a domain whose guest has no guest agent and ignores the power button. Each has another name.
	XML func(t *testing.T, uuid, name string) string
	// End starts a guest, has it run and then end for the cause. It returns when libvirt has noticed.
	End func(t *testing.T, cause libvirtd.Cause) (uuid, name string)
	// Stop has libvirtd answer nobody any more.
	Stop func(t *testing.T)
}

// create creates a domain and returns its UUID, its name and its XML.
func (s LibvirtSetup) create(t *testing.T, as string) (id, name, doc string) {
	t.Helper()
	id, name = uuid.NewString(), "contract_"+as
	doc = s.XML(t, id, name)
	if err := s.CreatePaused(t.Context(), doc); err != nil {
		t.Fatalf("creating: %v", err)
	}
	return id, name, doc
}

func (s LibvirtSetup) look(t *testing.T, id string) libvirtd.Domain {
	t.Helper()
	d, err := s.Domain(t.Context(), id)
	if err != nil {
		t.Fatalf("looking up: %v", err)
	}
	return d
}

// expect looks at a domain, by itself and among all.
func (s LibvirtSetup) expect(t *testing.T, id string, want libvirtd.State, why libvirtd.Pause) libvirtd.Domain {
	t.Helper()
	d := s.look(t, id)
	if !d.Exists || d.State != want || d.Pause != why {
		t.Errorf("it is %q %q, want %q %q", d.State, d.Pause, want, why)
	}
	states, err := s.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	brief := d
	brief.XML = ""
	if diff := cmp.Diff(brief, states[id]); diff != "" {
		t.Errorf("among all it is another (-alone +among all):\n%s", diff)
	}
	return d
}

func (s LibvirtSetup) expectNone(t *testing.T, id string) {
	t.Helper()
	if d := s.look(t, id); d != (libvirtd.Domain{}) {
		t.Errorf("it is %+v, want none", d)
	}
	states, err := s.States(t.Context())
	if d, is := states[id]; is || err != nil {
		t.Errorf("among all it is %+v, %v, want none", d, err)
	}
}

func (s LibvirtSetup) expectStop(t *testing.T, id, name string, want libvirtd.Cause) {
	t.Helper()
	stop, ok := s.ExitCause(id, name)
	if stop.Cause != want || ok != (want != libvirtd.CauseUnknown) || ok && time.Since(stop.Time).Abs() > 10*time.Minute {
		t.Errorf("it ended as %+v, %v, want %q", stop, ok, want)
	}
}

func expectFault(t *testing.T, doing string, err error, class fault.Class, reason v1alpha1.Reason) {
	t.Helper()
	if err == nil || fault.ClassOf(err) != class || fault.ReasonOf(err) != reason {
		t.Errorf("%s: %v (class %d, %s), want class %d, %s", doing, err, fault.ClassOf(err), fault.ReasonOf(err), class, reason)
	}
}

// calls are all that is asked about one domain, by name.
func (s LibvirtSetup) calls(t *testing.T, id string) map[string]error {
	_, _, _, progressErr := s.BackupProgress(t.Context(), id)
	return map[string]error{
		"resuming":          s.Resume(t.Context(), id),
		"suspending":        s.Suspend(t.Context(), id),
		"resetting":         s.Reset(t.Context(), id),
		"injecting an NMI":  s.InjectNMI(t.Context(), id),
		"resizing a disk":   s.ResizeDisk(t.Context(), id, "/d.qcow2", mib),
		"plugging a disk":   s.AttachDisk(t.Context(), id, `<disk device="disk"><target dev="vdp" bus="virtio"/></disk>`),
		"unplugging":        s.DetachDisk(t.Context(), id, "ua-data"),
		"changing a medium": s.ChangeMedium(t.Context(), id, `<disk device="cdrom"><target dev="sda" bus="sata"/></disk>`, true),
		"limiting a disk":   s.SetDiskLimits(t.Context(), id, "vdp", libvirtd.DiskLimits{}),
		"its metadata":      s.SetMetadata(t.Context(), id, `<a:b xmlns:a="https://example.org"/>`),
		"copying a disk":    s.BeginBackup(t.Context(), id, "<domainbackup/>"),
		"watching a copy":   progressErr,
		"giving up a copy":  s.AbortBackup(t.Context(), id),
		"shutting it down":  s.Shutdown(t.Context(), id),
		"destroying":        s.Destroy(t.Context(), id),
	}
}

// expectAbsent does all that can be done to a domain that is not there: what wants its end is content.
func (s LibvirtSetup) expectAbsent(t *testing.T, id string) {
	t.Helper()
	s.expectNone(t, id)
	for doing, err := range s.calls(t, id) {
		switch doing {
		case "resuming", "suspending", "resetting", "injecting an NMI", "resizing a disk",
			"plugging a disk", "changing a medium", "limiting a disk", "its metadata", "copying a disk", "watching a copy":
			expectFault(t, doing, err, fault.Transient, v1alpha1.ReasonNotRunning)
		default:
			if err != nil {
				t.Errorf("%s: %v", doing, err)
			}
		}
	}
}

// TestLibvirt tests what holds of every libvirtd as the agent sees it.
func TestLibvirt(t *testing.T, s LibvirtSetup) {
	t.Run("a domain that is unknown is none", func(t *testing.T) {
		id := uuid.NewString()
		s.expectAbsent(t, id)
		s.expectStop(t, id, "contract_unknown", libvirtd.CauseUnknown)
	})
	t.Run("what is no UUID is an error", func(t *testing.T) {
		if d, err := s.Domain(t.Context(), "x"); err == nil {
			t.Errorf("looked up: %+v", d)
		}
		for doing, err := range s.calls(t, "x") {
			if err == nil {
				t.Errorf("%s: no error", doing)
			}
		}
	})
	t.Run("a domain's life", s.testLife)
	t.Run("a domain's XML has the identity that was given", func(t *testing.T) {
		id, name, doc := s.create(t, "identity")
		var given, live description
		if err := errors.Join(xml.Unmarshal([]byte(doc), &given), xml.Unmarshal([]byte(s.look(t, id).XML), &live)); err != nil {
			t.Fatal(err)
		}
		if live.UUID != id || live.Name != name {
			t.Errorf("it is %s %s, want %s %s", live.UUID, live.Name, id, name)
		}
		if diff := cmp.Diff(given.sockets(), live.sockets()); diff != "" {
			t.Errorf("sockets (-given +live):\n%s", diff)
		}
		if diff := cmp.Diff(given.files(), live.files()); diff != "" {
			t.Errorf("files (-given +live):\n%s", diff)
		}
	})
	t.Run("a domain is refused", s.testRefusals)
	t.Run("a disk comes, changes and goes", s.testPlug)
	t.Run("a disk is copied", s.testBackup)
	for cause, seen := range map[libvirtd.Cause]libvirtd.State{
		libvirtd.CausePoweredOff: "", libvirtd.CauseFailed: "", libvirtd.CauseSignalled: "", libvirtd.CausePanicked: libvirtd.Crashed,
	} {
		t.Run("a guest ends: "+string(cause), func(t *testing.T) {
			id, name := s.End(t, cause)
			if d := s.look(t, id); d.State != seen || d.Exists != (seen != "") {
				t.Errorf("it is %+v", d)
			}
			if err := s.Destroy(t.Context(), id); err != nil {
				t.Error(err)
			}
			s.expectNone(t, id)
			s.expectStop(t, id, name, cause)
		})
	}
	t.Run("a guest that panicked runs on if resumed", func(t *testing.T) {
		id, _ := s.End(t, libvirtd.CausePanicked)
		if err := s.Resume(t.Context(), id); err != nil {
			t.Error(err)
		}
		s.expect(t, id, libvirtd.Running, "")
	})
	t.Run("calls end with their context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := s.Domain(ctx, uuid.NewString())
		expectFault(t, "looking up", err, fault.Transient, v1alpha1.ReasonLibvirtUnreachable)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it does not tell why: %v", err)
		}
	})
	t.Run("without libvirtd nothing is known", func(t *testing.T) { // the last: libvirtd does not come back
		id, _, doc := s.create(t, "away")
		s.Stop(t)
		errs := s.calls(t, id)
		_, errs["looking up"] = s.Domain(t.Context(), id)
		_, errs["looking all up"] = s.States(t.Context())
		errs["creating"] = s.CreatePaused(t.Context(), doc)
		for doing, err := range errs {
			expectFault(t, doing, err, fault.Transient, v1alpha1.ReasonLibvirtUnreachable)
		}
	})
}

func (s LibvirtSetup) testLife(t *testing.T) {
	id, name, doc := s.create(t, "life")
	first := s.expect(t, id, libvirtd.Paused, libvirtd.PausedByUser)
	if first.Name != name || first.ID < 0 {
		t.Errorf("it is %+v", first)
	}
	s.expectStop(t, id, name, libvirtd.CauseUnknown)
	for range 2 {
		if err := s.Resume(t.Context(), id); err != nil {
			t.Errorf("resuming: %v", err)
		}
		s.expect(t, id, libvirtd.Running, "")
	}
	for range 2 {
		if err := s.Shutdown(t.Context(), id); err != nil {
			t.Errorf("shutting down: %v", err)
		}
	}
	for range 2 {
		if err := errors.Join(s.Reset(t.Context(), id), s.InjectNMI(t.Context(), id)); err != nil {
			t.Errorf("its buttons: %v", err)
		}
	}
	if err := s.CreatePaused(t.Context(), doc); err != nil {
		t.Errorf("creating what is there: %v", err)
	}
	if d := s.expect(t, id, libvirtd.Running, ""); d.ID != first.ID {
		t.Errorf("it is another: %d, then %d", first.ID, d.ID)
	}
	for range 2 {
		if err := s.Suspend(t.Context(), id); err != nil {
			t.Errorf("suspending: %v", err)
		}
		s.expect(t, id, libvirtd.Paused, libvirtd.PausedByUser)
	}
	s.expectStop(t, id, name, libvirtd.CauseUnknown)
	for range 2 {
		if err := s.Destroy(t.Context(), id); err != nil {
			t.Errorf("destroying: %v", err)
		}
	}
	s.expectAbsent(t, id)
	s.expectStop(t, id, name, libvirtd.CauseDestroyed)

	if err := s.CreatePaused(t.Context(), doc); err != nil {
		t.Fatalf("creating anew: %v", err)
	}
	if d := s.expect(t, id, libvirtd.Paused, libvirtd.PausedByUser); d.ID == first.ID {
		t.Error("two lives have one ID")
	}
	s.expectStop(t, id, name, libvirtd.CauseUnknown)
}

func (s LibvirtSetup) testPlug(t *testing.T) {
	id, _, _ := s.create(t, "plug")
	doc := s.Disk(t)
	disk, err := readDevice(doc)
	if err != nil {
		t.Fatal(err)
	}
	has := func() (found device) {
		t.Helper()
		for _, d := range (&domain{xml: s.look(t, id).XML}).devices() {
			if d.Alias == disk.Alias {
				found = d
			}
		}
		return found
	}
	if err := s.AttachDisk(t.Context(), id, doc); err != nil {
		t.Fatal(err)
	}
	if d := has(); d.file() != disk.file() || d.Target != disk.Target {
		t.Errorf("plugged %+v, it has %+v", disk, d)
	}
	expectFault(t, "plugging it again", s.AttachDisk(t.Context(), id, doc), fault.Transient, v1alpha1.ReasonLibvirtRefused)
	all, err := s.BlockStats(t.Context())
	if err != nil || !slices.ContainsFunc(all[id], func(b libvirtd.BlockStats) bool { return b.Target == disk.Target.Dev }) {
		t.Errorf("its disks have done %+v, %v", all[id], err)
	}
	for _, limits := range []libvirtd.DiskLimits{
		{IOPS: 500, Bytes: 50 << 20, BurstIOPS: 2000, BurstBytes: 200 << 20, BurstSeconds: 10}, {Bytes: 10 << 20}, {},
	} {
		for range 2 {
			if err := s.SetDiskLimits(t.Context(), id, disk.Target.Dev, limits); err != nil {
				t.Errorf("limits of %+v: %v", limits, err)
			}
		}
		want := fmt.Sprintf("<total_bytes_sec>%d<", limits.Bytes)
		if d := has(); strings.Contains(d.doc, want) != (limits.Bytes > 0) || strings.Contains(d.doc, "sec_max>") != (limits.BurstIOPS > 0) {
			t.Errorf("with limits of %+v: %s", limits, d.doc)
		}
	}
	err = s.SetDiskLimits(t.Context(), id, "vdz", libvirtd.DiskLimits{IOPS: 1})
	expectFault(t, "limiting a disk that is not there", err, fault.Transient, v1alpha1.ReasonLibvirtRefused)
	for range 2 { // its guest is halted, so it cannot let go
		if err := s.DetachDisk(t.Context(), id, disk.Alias.Name); err != nil {
			t.Errorf("unplugging: %v", err)
		}
		if d := has(); d.doc == "" {
			t.Error("a halted guest let go")
		}
	}
	if err := s.DetachDisk(t.Context(), id, "ua-none"); err != nil {
		t.Errorf("unplugging what is not there: %v", err)
	}
}

func (s LibvirtSetup) testBackup(t *testing.T) {
	id, _, _ := s.create(t, "backup")
	begin := func(there bool) error { return s.BeginBackup(t.Context(), id, s.Backup(t, id, there)) }
	abort := func(when string) {
		t.Helper()
		if err := s.AbortBackup(t.Context(), id); err != nil {
			t.Errorf("giving it up %s: %v", when, err)
		}
	}
	ends := func() error {
		t.Helper()
		for range 600 {
			done, total, goesOn, err := s.BackupProgress(t.Context(), id)
			if done > total {
				t.Errorf("%d bytes of %d are copied", done, total)
			}
			if !goesOn {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatal("it goes on after 30 s")
		return nil
	}
	abort("without one")
	expectFault(t, "without one", ends(), fault.Transient, v1alpha1.ReasonStoreFailed)
	expectFault(t, "into no file", begin(false), fault.Transient, v1alpha1.ReasonLibvirtRefused)
	abort("after it was refused")
	for range 2 {
		if err := begin(true); err != nil {
			t.Fatal(err)
		}
		if s.Complete != nil && !s.Complete(id) {
			t.Error("it has ended by itself")
		}
		if err := ends(); err != nil {
			t.Errorf("its end: %v", err)
		}
	}
	abort("after its end")
	if err := begin(true); err != nil {
		t.Fatal(err)
	}
	_ = s.AbortBackup(t.Context(), id) // it may be faster, and end right before
	_ = ends()
	abort("twice")
	s.expect(t, id, libvirtd.Paused, libvirtd.PausedByUser)
	if err := begin(true); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy(t.Context(), id); err != nil { // it ends with its domain
		t.Error(err)
	}
	expectFault(t, "without its domain", ends(), fault.Transient, v1alpha1.ReasonNotRunning)
}

func (s LibvirtSetup) testRefusals(t *testing.T) {
	id, name, doc := s.create(t, "first")
	had := s.look(t, id)
	other := uuid.NewString()
	for why, tc := range map[string]struct {
		xml    string
		class  fault.Class
		reason v1alpha1.Reason
	}{
		"its name is another's": {strings.ReplaceAll(doc, id, other), fault.User, v1alpha1.ReasonDomainNameTaken},
		"its UUID is another's": {
			strings.Replace(doc, "<name>"+name+"<", "<name>contract_second<", 1), fault.Transient, v1alpha1.ReasonLibvirtRefused,
		},
		"a disk is missing": {
			strings.NewReplacer(id, other, "<name>"+name+"<", "<name>contract_disk<", "</devices>",
				`<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/missing.qcow2"/><target dev="vdp" bus="virtio"/></disk></devices>`,
			).Replace(doc), fault.Transient, v1alpha1.ReasonLibvirtRefused,
		},
		"it describes no machine": {
			"<domain type='qemu'><name>contract_none</name><uuid>" + other + "</uuid></domain>", fault.User, v1alpha1.ReasonLibvirtRefused,
		},
		"it has no name":       {"<domain type='qemu'><uuid>" + other + "</uuid></domain>", fault.Internal, v1alpha1.ReasonInternalError},
		"it has no UUID":       {"<domain type='qemu'><name>contract_none</name></domain>", fault.Internal, v1alpha1.ReasonInternalError},
		"nobody could read it": {"<domain", fault.Internal, v1alpha1.ReasonInternalError},
	} {
		t.Run(why, func(t *testing.T) {
			expectFault(t, "creating", s.CreatePaused(t.Context(), tc.xml), tc.class, tc.reason)
			s.expectNone(t, other)
			if now := s.look(t, id); now != had {
				t.Errorf("the domain that was there is %+v, was %+v", now, had)
			}
		})
	}
}
