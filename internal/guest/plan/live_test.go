package plan

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
)

var (
	root    = v1alpha1.Disk{Name: "root", Image: "registry/web:1"}
	scratch = v1alpha1.Disk{Name: "scratch", Empty: &v1alpha1.EmptyDisk{}, Size: new(resource.MustParse("1Gi"))}
	extra   = v1alpha1.Disk{Name: "extra", Image: "registry/extra:1"}
	drive   = v1alpha1.Disk{Name: "cd", Type: v1alpha1.DiskTypeCDROM, Bus: v1alpha1.BusSCSI}
)

// hotGuest is a guest that runs, and was started with the first disks, as the spec asks now for the second.
func hotGuest(t *testing.T, started, spec []v1alpha1.Disk, changes ...func(*Have)) (Want, Have) {
	t.Helper()
	with := func(disks []v1alpha1.Disk) *v1alpha1.VirtualMachine {
		return vm(func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks = slices.Clone(disks) })
	}
	record, err := berth.Record(&with(started).Spec)
	if err != nil {
		t.Fatal(err)
	}
	w := resolved(t, Want{VM: with(spec), Berth: fresh(used)})
	h := Have{
		Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true},
		Facts: domain.Facts{Identity: &domain.Identity{Record: record}, Hardware: domain.Hardware{Layout: domain.NewestLayout, Machine: "q35"}},
	}
	for _, d := range resolved(t, Want{VM: with(started)}).Machine.Disks {
		path := "/vms/" + d.Name
		if d.Claim != nil {
			h.Volumes = append(h.Volumes, Volume{Disk: d.Name, Made: true})
		} else if !d.CDROM {
			h.Disks = append(h.Disks, machine.Disk{Name: d.Name, Image: d.Image, Size: max(d.Size, 1<<30), Ephemeral: d.Ephemeral, Path: path})
		} else {
			path = ""
		}
		h.Facts.Disks = append(h.Facts.Disks, domain.LiveDisk{Name: d.Name, Alias: "ua-" + d.Name, Bus: cmp.Or(d.Bus, v1alpha1.BusVirtio), CDROM: d.CDROM, Path: path, Limits: d.Limits})
	}
	for _, change := range changes {
		change(&h)
	}
	if h.Pending, err = berth.Changes(h.Facts.Identity.Record, &w.VM.Spec); err != nil {
		t.Fatal(err)
	}
	return w, h
}

func image(disk string, i Image) func(*Have) {
	return func(h *Have) { h.Images = map[string]Image{disk: i} }
}

func names(list []Step) string {
	var all []string
	for _, s := range list {
		all = append(all, Name(s))
	}
	return strings.Join(all, " ")
}

func TestLiveChanges(t *testing.T) {
	limited, grown, slow, cached := scratch, scratch, scratch, scratch
	limited.Limits = &v1alpha1.DiskLimits{IOPS: new(int64(500))}
	grown.Size = new(resource.MustParse("2Gi"))
	slow.IOThread = true
	cached.Cache = v1alpha1.CacheWriteback
	full := drive
	full.Image = "registry/cd:1"
	claim := v1alpha1.Disk{Name: "data", PersistentVolumeClaim: &v1alpha1.DiskClaim{ClaimName: "data"}}
	asked := func(disk string, ago time.Duration) Memory {
		return Memory{asked: map[string]time.Time{disk: now.Add(-ago)}}
	}
	list := func(disks ...v1alpha1.Disk) []v1alpha1.Disk { return disks }
	inDrive := func(h *Have) {
		h.Disks = append(h.Disks, machine.Disk{Name: "cd", CDROM: true, Ephemeral: true, Image: machine.Image{Reference: "registry/cd:1", Digest: "sha256:1"}, Path: "/images/1"})
		h.live("cd").Path = "/images/1"
		h.Images = map[string]Image{"cd": {State: ImageReady, Digest: "sha256:1"}}
	}
	tests := []struct {
		name          string
		started, spec []v1alpha1.Disk
		have          func(*Have)
		memory        Memory
		steps         string
		wake          time.Duration
		pending       string // paths with their effect
	}{
		{"what it was started with", list(root, scratch), list(root, scratch), nil, Memory{}, "", 0, ""},
		{"a disk more", list(root), list(root, scratch), nil, Memory{}, "MakeDisk SetRecord PlugDisk", 0, ""},
		{"one that was kept comes back as it is", list(root), list(root, scratch), func(h *Have) {
			h.Disks = append(h.Disks, machine.Disk{Name: "scratch", Size: 1 << 30})
		}, Memory{}, "SetRecord PlugDisk", 0, ""},
		{"but not as another", list(root), list(root, extra), func(h *Have) {
			h.Disks = append(h.Disks, machine.Disk{Name: "extra", Size: 1 << 30, Image: machine.Image{Reference: "registry/other:1"}})
		}, Memory{}, "", 0, "disks[extra]=NewBerth"},
		{"two disks more, one at a time", list(root), list(root, scratch, extra), image("extra", Image{State: ImageReady}), Memory{}, "MakeDisk SetRecord PlugDisk", time.Millisecond, ""},
		{"its image first", list(root), list(root, extra), image("extra", Image{State: ImageMissing}), Memory{}, "PullImages", letGo, ""},
		{"which takes its time", list(root), list(root, extra), image("extra", Image{State: ImagePulling}), Memory{}, "", pullProgress, "disks[extra]=Live"},
		{"and may fail", list(root), list(root, extra), image("extra", Image{State: ImageFailed, Err: errors.New("no such image"), Retry: now.Add(time.Hour)}), Memory{}, "", time.Hour, "disks[extra]=Live"},
		{"no room", list(root), list(root, scratch), func(h *Have) { h.Facts.Hardware.Layout = 0 }, Memory{}, "", 0, "disks[scratch]=NewBerth"},
		{"no thread comes to a QEMU that runs", list(root), list(root, slow), nil, Memory{}, "", 0, "disks[scratch]=NewBerth"},
		{"no claim to a pod that does", list(root), list(root, claim), nil, Memory{}, "", 0, "disks[data]=NewBerth"},
		{"nor does it go", list(root, claim), list(root), nil, Memory{}, "", 0, "disks[data]=NewBerth"},
		{"a record that another version wrote", list(root), list(root, scratch), func(h *Have) { h.Facts.Identity.Record = "{}" }, Memory{}, "", 0, "spec=NewBerth"},
		{"another cache", list(root, scratch), list(root, cached), nil, Memory{}, "", 0, "disks[scratch].cache=Restart"},
		{"limits", list(root, scratch), list(root, limited), nil, Memory{}, "TuneDisk", 0, ""},
		{"none any more", list(root, limited), list(root, scratch), nil, Memory{}, "TuneDisk", 0, ""},
		{"a larger size", list(root, scratch), list(root, grown), nil, Memory{}, "GrowDisk", 0, ""},
		{"a disk less", list(root, scratch), list(root), nil, Memory{}, "UnplugDisk", letGo, ""},
		{"whose going is no news", list(root, scratch), list(root), nil, asked("scratch", time.Second), "", time.Second, ""},
		{"unless it takes long", list(root, scratch), list(root), nil, asked("scratch", 20*time.Second), "", 10 * time.Second, "disks[scratch]=Live"},
		{"and it is asked again", list(root, scratch), list(root), nil, asked("scratch", unplugAgain), "UnplugDisk", letGo, "disks[scratch]=Live"},
		{"wanted again by then", list(root, scratch), list(root, scratch), nil, asked("scratch", unplugAgain), "", 0, ""},
		{"nothing leaves a bus that cannot", list(root, scratch), list(root), func(h *Have) { h.Facts.Hardware.Layout = 0 }, Memory{}, "", 0, "disks[scratch]=NewBerth"},
		{"gone", list(root, scratch), list(root), func(h *Have) { h.Facts.Disks = h.Facts.Disks[:1] }, Memory{}, "SetRecord", 0, ""},
		{"taken by somebody else", list(root, scratch), list(root, scratch), func(h *Have) { h.Facts.Disks = h.Facts.Disks[:1] }, Memory{}, "SetRecord PlugDisk", 0, ""},
		{"something into the drive", list(root, drive), list(root, full), image("cd", Image{State: ImageReady, Digest: "sha256:1"}), Memory{}, "MakeDisk ChangeMedium", 0, ""},
		{"which is in it", list(root, drive), list(root, full), inDrive, Memory{}, "", 0, ""},
		{"which is in it, and not in the cache", list(root, drive), list(root, full), func(h *Have) {
			inDrive(h)
			h.disk("cd").Path = ""
		}, Memory{}, "MakeDisk ChangeMedium", 0, ""},
		{"and out", list(root, drive), list(root, drive), inDrive, Memory{}, "MakeDisk ChangeMedium", 0, ""},
		{"which the guest may hold", list(root, drive), list(root, drive), func(h *Have) {
			inDrive(h)
			h.Disks, h.Images = h.Disks[:1], nil
		}, asked("cd", 4*time.Second), "", 6 * time.Second, "disks[cd].image=Live"},
		{"but not for ever", list(root, drive), list(root, drive), func(h *Have) {
			inDrive(h)
			h.Disks, h.Images = h.Disks[:1], nil
		}, asked("cd", holdsMedium), "ChangeMedium", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			change := func(*Have) {}
			if tt.have != nil {
				change = tt.have
			}
			w, h := hotGuest(t, tt.started, tt.spec, change)
			next, _ := Decide(w, h, tt.memory, now)
			if got := names(next.Steps); got != tt.steps || next.Wake != tt.wake {
				t.Errorf("%q, and a look in %s, want %q and one in %s", got, next.Wake, tt.steps, tt.wake)
			}
			s, _ := Report(w, h, tt.memory, nil, now)
			var paths []string
			for _, p := range s.PendingChanges {
				paths = append(paths, p.Path+"="+string(p.Effect))
			}
			if got := strings.Join(paths, " "); got != tt.pending {
				t.Errorf("pending are %q, want %q: %s", got, tt.pending, condition.Reason(s.Conditions, v1alpha1.ConditionUpToDate))
			}
		})
	}
}

// TestAskedOnce: a guest that was asked is not asked at each look, and who is not outstanding any more is forgotten.
func TestAskedOnce(t *testing.T) {
	w, h := hotGuest(t, []v1alpha1.Disk{root, scratch}, []v1alpha1.Disk{root})
	next, m := Decide(w, h, Memory{}, now)
	if names(next.Steps) != "UnplugDisk" || len(m.asked) != 1 {
		t.Fatalf("%v, asked are %v", next.Steps, m.asked)
	}
	if next, m = Decide(w, h, m, now.Add(time.Second)); len(next.Steps) > 0 || len(m.asked) != 1 {
		t.Errorf("it is asked again: %v, %v", next.Steps, m.asked)
	}
	h.Facts.Disks = h.Facts.Disks[:1]
	if _, m = Decide(w, h, m, now.Add(2*time.Second)); len(m.asked) != 0 {
		t.Errorf("asked are %v, though it is gone", m.asked)
	}
}

// TestAFailedLiveChangeIsPending: a step that fails leaves the guest without the change, and says why.
func TestAFailedLiveChangeIsPending(t *testing.T) {
	w, h := hotGuest(t, []v1alpha1.Disk{root}, []v1alpha1.Disk{root, scratch})
	s, _ := Report(w, h, Memory{}, errors.New("no space left"), now)
	message := ""
	for _, c := range s.Conditions {
		if c.Type == v1alpha1.ConditionUpToDate {
			message = c.Message
		}
	}
	if len(s.PendingChanges) != 1 || s.PendingChanges[0].Effect != v1alpha1.EffectLive || message != "disks[scratch]: no space left" {
		t.Errorf("%+v: %q", s.PendingChanges, message)
	}
}

func TestUnwantedDisks(t *testing.T) {
	kept := machine.Disk{Name: "old", Size: 1 << 30}
	ephemeral := machine.Disk{Name: "tmp", Size: 1 << 30, Ephemeral: true}
	for name, tt := range map[string]struct {
		remove  []string
		disks   []v1alpha1.Disk
		change  func(*Have)
		removed string
	}{
		"what was kept stays":                  {nil, []v1alpha1.Disk{root}, nil, "tmp"},
		"until the spec says otherwise":        {[]string{"old"}, []v1alpha1.Disk{root}, nil, "old tmp"},
		"not while the guest has it":           {[]string{"old"}, []v1alpha1.Disk{root}, func(h *Have) { h.Facts.Disks = append(h.Facts.Disks, domain.LiveDisk{Name: "old"}) }, "tmp"},
		"not while it is wanted":               {nil, []v1alpha1.Disk{root, {Name: "tmp", Empty: scratch.Empty, Size: scratch.Size, Ephemeral: true}}, nil, ""},
		"not while nobody knows what it has":   {[]string{"old"}, []v1alpha1.Disk{root}, func(h *Have) { h.Facts = domain.Facts{} }, ""},
		"not while nobody knows what is there": {[]string{"old"}, []v1alpha1.Disk{root}, func(h *Have) { h.StartUnknown = errors.New("no answer") }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w, h := hotGuest(t, []v1alpha1.Disk{root}, tt.disks, func(h *Have) { h.Disks = append(h.Disks, kept, ephemeral) })
			w.VM.Spec.RemoveDisks = tt.remove
			if tt.change != nil {
				tt.change(&h)
			}
			var removed []string
			for _, s := range unwanted(w, h) {
				removed = append(removed, s.(DeleteDisk).Disk)
			}
			if got := strings.Join(removed, " "); got != tt.removed {
				t.Errorf("removed are %q, want %q", got, tt.removed)
			}
		})
	}
}
