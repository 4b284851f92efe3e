package hosttest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/volume"
)

// Attachments is what TestVolumes asks a volume.Volumes.
type Attachments interface {
	Attach(ctx context.Context, g volume.Guest, shim int, v volume.Volume) error
	Attached(uid string) ([]volume.Attached, error)
	Detach(ctx context.Context, uid string) error
	List() ([]string, error)
}

// Workers is what TestVolumes asks a volume.Volumes for workers.
type Workers interface {
	RecordMade(uid, disk string, m volume.Made) error
	OpenForWorker(ctx context.Context, uid, disk string) (dir *os.File, name string, err error)
}

// VolumesSetup is a host without volumes, to be tested.
type VolumesSetup struct {
	Attachments
	Workers
	// Claim makes a volume and returns its name.
	Claim func(t *testing.T, block bool) string
	// Berth starts a shim that has a claim's volume, and returns its process and where it has it.
	Berth func(t *testing.T, claim string, block bool) (shim int, path string)
	// Use has a QEMU of the guest open a disk, until stop.
	Use func(t *testing.T, g volume.Guest, file string) (stop func())
}

// TestVolumes tests what holds of all volumes as the agent sees them. open returns a host.
func TestVolumes(t *testing.T, open func(t *testing.T) VolumesSetup) {
	for name, test := range map[string]func(*testing.T, VolumesSetup){
		"a file system comes and goes":          func(t *testing.T, s VolumesSetup) { testVolume(t, s, false) },
		"a device comes and goes":               func(t *testing.T, s VolumesSetup) { testVolume(t, s, true) },
		"a volume gives way to another":         testReplace,
		"what is in use stays":                  testInUse,
		"a volume is one guest's or Shared":     testOneGuest,
		"what is not there is not attached":     testMissing,
		"what is not attached cannot be worked": testNotAttached,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func newGuest() volume.Guest {
	return volume.Guest{UID: uuid.NewString(), User: 1879048200, Group: 1879113728}
}

// attach attaches a claim in a new berth.
func (s VolumesSetup) attach(t *testing.T, g volume.Guest, claim string, v volume.Volume) (volume.Volume, error) {
	t.Helper()
	shim, path := s.Berth(t, claim, v.Block)
	v.Path = path
	return v, s.Attach(t.Context(), g, shim, v)
}

func (s VolumesSetup) expect(t *testing.T, g volume.Guest, want ...volume.Attached) {
	t.Helper()
	got, err := s.Attached(g.UID)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if i < len(got) && want[i].File == "" {
			want[i].File = got[i].File
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("attached (-want +got):\n%s", diff)
	}
	uids, err := s.List()
	if slices.Contains(uids, g.UID) != (len(want) > 0) || err != nil {
		t.Errorf("listed are %v, %v", uids, err)
	}
}

func (s VolumesSetup) detach(t *testing.T, g volume.Guest) {
	t.Helper()
	if err := s.Detach(t.Context(), g.UID); err != nil {
		t.Fatal(err)
	}
	s.expect(t, g)
}

func expectVolumeReason(t *testing.T, err error, want v1alpha1.Reason, class fault.Class) {
	t.Helper()
	if fault.ReasonOf(err) != want || fault.ClassOf(err) != class {
		t.Errorf("got %v of class %d, want %s of class %d", err, fault.ClassOf(err), want, class)
	}
}

func testVolume(t *testing.T, s VolumesSetup, block bool) {
	g, claim := newGuest(), s.Claim(t, block)
	s.expect(t, g)
	v, err := s.attach(t, g, claim, volume.Volume{Disk: "data", Claim: "c1", Block: block})
	if err != nil {
		t.Fatal(err)
	}
	s.expect(t, g, volume.Attached{Volume: v})
	if err := s.RecordMade(g.UID, "data", volume.Made{Size: 1, Target: 2, Capacity: 3, Seed: "s"}); err != nil {
		t.Fatal(err)
	}
	if v, err = s.attach(t, g, claim, volume.Volume{Disk: "data", Claim: "c1", Block: block}); err != nil { // again: it is the same
		t.Fatal(err)
	}
	s.expect(t, g, volume.Attached{Volume: v, Made: true, Size: 1, Target: 2, Capacity: 3, Seed: "s"})
	dir, name, err := s.OpenForWorker(t.Context(), g.UID, "data")
	if err != nil {
		t.Fatal(err)
	}
	dir.Close()
	if want := map[bool]string{false: "disk.img", true: "data.raw"}[block]; name != want {
		t.Errorf("the worker finds %s, want %s", name, want)
	}
	s.detach(t, g)
	s.detach(t, g)
}

func testReplace(t *testing.T, s VolumesSetup) {
	g, claim := newGuest(), s.Claim(t, false)
	if _, err := s.attach(t, g, claim, volume.Volume{Disk: "data", Claim: "c1"}); err != nil {
		t.Fatal(err)
	}
	if err := s.RecordMade(g.UID, "data", volume.Made{Size: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := s.attach(t, g, s.Claim(t, false), volume.Volume{Disk: "data", Claim: "c2"})
	if err != nil {
		t.Fatal(err)
	}
	s.expect(t, g, volume.Attached{Volume: v}) // nothing is known of this one
	s.detach(t, g)
}

func testInUse(t *testing.T, s VolumesSetup) {
	g, claim := newGuest(), s.Claim(t, false)
	v, err := s.attach(t, g, claim, volume.Volume{Disk: "data"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.RecordMade(g.UID, "data", volume.Made{}); err != nil {
		t.Fatal(err)
	}
	all, err := s.Attached(g.UID)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	stop := s.Use(t, g, all[0].File)
	expectVolumeReason(t, s.Detach(t.Context(), g.UID), v1alpha1.ReasonVolumeInUse, fault.Transient)
	s.expect(t, g, volume.Attached{Volume: v, Made: true})
	stop()
	s.detach(t, g)
}

func testOneGuest(t *testing.T, s VolumesSetup) {
	for _, block := range []bool{false, true} {
		a, b, claim := newGuest(), newGuest(), s.Claim(t, block)
		attach := func(g volume.Guest, disk string, shared bool) error {
			_, err := s.attach(t, g, claim, volume.Volume{Disk: disk, Block: block, Shared: shared})
			return err
		}
		if err := attach(a, "data", true); err != nil {
			t.Fatal(err)
		}
		expectVolumeReason(t, attach(b, "mine", false), v1alpha1.ReasonVolumeInUse, fault.Transient)
		expectVolumeReason(t, attach(a, "twice", false), v1alpha1.ReasonVolumeInUse, fault.Transient)
		if err := attach(b, "mine", true); err != nil {
			t.Error(err)
		}
		s.detach(t, a)
		if err := attach(b, "mine", false); err != nil {
			t.Error(err)
		}
		s.detach(t, b)
	}
}

func testMissing(t *testing.T, s VolumesSetup) {
	g := newGuest()
	for _, block := range []bool{false, true} {
		shim, path := s.Berth(t, s.Claim(t, block), block)
		for _, v := range []volume.Volume{
			{Disk: "data", Path: path + "-not", Block: block},
			{Disk: "data", Path: path, Block: !block},
		} {
			expectVolumeReason(t, s.Attach(t.Context(), g, shim, v), v1alpha1.ReasonVolumeMissing, fault.User)
		}
	}
	expectVolumeReason(t, s.Attach(t.Context(), g, 1<<22+1, volume.Volume{Disk: "data", Path: "/x"}), v1alpha1.ReasonVolumeMissing, fault.Transient)
	s.expect(t, g)
}

func testNotAttached(t *testing.T, s VolumesSetup) {
	g := newGuest()
	_, _, err := s.OpenForWorker(t.Context(), g.UID, "data")
	for doing, err := range map[string]error{"opening": err, "recording": s.RecordMade(g.UID, "data", volume.Made{})} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s what is not attached: %v", doing, err)
		}
	}
	if s.Detach(t.Context(), "../x") == nil || s.RecordMade(g.UID, "../x", volume.Made{}) == nil {
		t.Error("a path is a name")
	}
}
