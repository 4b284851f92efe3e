package berth

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
)

type change = v1alpha1.PendingChange

func leaf(path, from, to string, effect v1alpha1.ChangeEffect) change {
	return change{Path: path, From: from, To: to, Effect: effect}
}

func recordOf(t *testing.T, spec v1alpha1.VirtualMachineSpec) string {
	t.Helper()
	text, err := Record(&spec)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestChanges(t *testing.T) {
	secret, long := "#cloud-config password: hunter2", "ssh-rsa "+strings.Repeat("A", 500)
	kernel := func(commandLine string) func(*v1alpha1.VirtualMachineSpec) {
		return func(s *v1alpha1.VirtualMachineSpec) {
			s.Kernel = &v1alpha1.Kernel{Image: "k", KernelPath: "/boot/vmlinuz", CommandLine: commandLine}
		}
	}
	two := func(s *v1alpha1.VirtualMachineSpec) {
		s.Disks = append(s.Disks, v1alpha1.Disk{Name: "data", Image: "registry.example/empty:1"})
	}
	root := func(change func(*v1alpha1.Disk)) func(*v1alpha1.VirtualMachineSpec) {
		return func(s *v1alpha1.VirtualMachineSpec) { change(&s.Disks[0]) }
	}
	cdrom := func(image string) func(*v1alpha1.VirtualMachineSpec) {
		return func(s *v1alpha1.VirtualMachineSpec) {
			s.Disks = append(s.Disks, v1alpha1.Disk{Name: "cd", Type: v1alpha1.DiskTypeCDROM, Image: image})
		}
	}
	none := func(*v1alpha1.VirtualMachineSpec) {}
	restart, anew := v1alpha1.EffectRestart, v1alpha1.EffectNewBerth
	tests := []struct {
		name      string
		from, now func(*v1alpha1.VirtualMachineSpec)
		want      []change
	}{
		{"nothing changed", everything, everything, nil},
		{"what acts at once", none, func(s *v1alpha1.VirtualMachineSpec) { s.TerminationGracePeriodSeconds = new(int64(5)) }, nil},
		{"a changed field", none, func(s *v1alpha1.VirtualMachineSpec) { s.CPU.Cores = 2 }, []change{leaf("cpu.cores", "1", "2", anew)}},
		{
			"two fields, sorted", none, func(s *v1alpha1.VirtualMachineSpec) { s.Memory.Size.Set(2 << 30); s.CPU.Cores = 2 },
			[]change{leaf("cpu.cores", "1", "2", anew), leaf("memory.size", "1Gi", "2Gi", anew)},
		},
		{
			"an added field", none, func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{"ssh-ed25519 A"} },
			[]change{leaf("sshAuthorizedKeys[0]", "", "ssh-ed25519 A", restart)},
		},
		{"an added disk", none, two, []change{leaf("disks[data]", "", "attached", anew)}},
		{"a removed disk", two, none, []change{leaf("disks[data]", "attached", "", anew)}},
		{"a disk before the others", none, func(s *v1alpha1.VirtualMachineSpec) { two(s); slices.Reverse(s.Disks) }, []change{leaf("disks[data]", "", "attached", anew)}},
		{"a disk in place of the only one", none, root(func(d *v1alpha1.Disk) { d.Name = "new" }), []change{
			leaf("disks[new]", "", "attached", anew), leaf("disks[root]", "attached", "", anew),
		}},
		{"no disk any more", none, func(s *v1alpha1.VirtualMachineSpec) { s.Disks = nil }, []change{leaf("disks[root]", "attached", "", anew)}},
		{"another boot order, and a disk more", two, func(s *v1alpha1.VirtualMachineSpec) { two(s); cdrom("")(s); slices.Reverse(s.Disks) }, []change{
			leaf("disks", "[root data]", "[data root]", anew), leaf("disks[cd]", "", "attached", anew),
		}},
		{"a disk of another image", none, root(func(d *v1alpha1.Disk) { d.Image = "b" }), []change{leaf("disks[root].image", "registry.example/debian:12", "b", anew)}},
		{"a disk that is not kept any more", none, root(func(d *v1alpha1.Disk) { d.Ephemeral = true }), []change{leaf("disks[root].ephemeral", "", "true", anew)}},
		{"a disk that grows is compared with the guest's", none, root(func(d *v1alpha1.Disk) { d.Size = new(resource.MustParse("1Ti")) }), nil},
		{"so are limits", none, root(func(d *v1alpha1.Disk) { d.Limits = &v1alpha1.DiskLimits{IOPS: new(int64(5))} }), nil},
		{"and a CD-ROM's medium", cdrom("a"), cdrom(""), nil},
		{"removeDisks act at once", none, func(s *v1alpha1.VirtualMachineSpec) { s.RemoveDisks = []string{"old"} }, nil},
		{"a disk's bus takes a restart in place", none, root(func(d *v1alpha1.Disk) { d.Bus = v1alpha1.BusSCSI }), []change{leaf("disks[root].bus", "", "SCSI", restart)}},
		{"so does its cache", none, root(func(d *v1alpha1.Disk) { d.Cache = v1alpha1.CacheWriteback }), []change{leaf("disks[root].cache", "", "Writeback", restart)}},
		{"and a thread of its own", none, root(func(d *v1alpha1.Disk) { d.IOThread = true }), []change{leaf("disks[root].ioThread", "", "true", restart)}},
		{"and its serial number", none, root(func(d *v1alpha1.Disk) { d.Serial = "WD-1" }), []change{leaf("disks[root].serial", "", "WD-1", restart)}},
		{"what a disk is by default, written or not", none, root(func(d *v1alpha1.Disk) {
			d.Type, d.Bus, d.Serial = v1alpha1.DiskTypeDisk, v1alpha1.BusVirtio, d.Name
		}), nil},
		{"what a CD-ROM is by default, written or not", cdrom(""), func(s *v1alpha1.VirtualMachineSpec) { cdrom("")(s); s.Disks[1].Bus = v1alpha1.BusSATA }, nil},
		{"another boot order", two, func(s *v1alpha1.VirtualMachineSpec) { two(s); slices.Reverse(s.Disks) }, []change{leaf("disks", "[root data]", "[data root]", anew)}},
		{"no network any more", none, func(s *v1alpha1.VirtualMachineSpec) { s.Networks = []v1alpha1.Network{} }, []change{
			leaf("networks", "[default]", "[]", anew), leaf("networks[default].pod", "{}", "", anew),
		}},
		{"a kernel's command line takes a restart in place", kernel("a"), kernel("b"), []change{leaf("kernel.commandLine", "a", "b", restart)}},
		{"guest tools take a restart in place", none, func(s *v1alpha1.VirtualMachineSpec) { s.GuestTools = v1alpha1.GuestToolsNone }, []change{leaf("guestTools", "Offered", "None", restart)}},
		{
			"a display takes memory, so a new berth", none,
			func(s *v1alpha1.VirtualMachineSpec) { s.Display = &v1alpha1.Display{Type: v1alpha1.DisplayVirtio} },
			[]change{leaf("display.type", "", "Virtio", anew)},
		},
		{
			"a label with a domain", none, func(s *v1alpha1.VirtualMachineSpec) { s.NodeSelector = map[string]string{"example.com/zone": "a"} },
			[]change{leaf("nodeSelector[example.com/zone]", "", "a", anew)},
		},
		{"guest tools, offered or not said", none, func(s *v1alpha1.VirtualMachineSpec) { s.GuestTools = v1alpha1.GuestToolsOffered }, nil},
		{"the state acts at once", none, func(s *v1alpha1.VirtualMachineSpec) { s.State = v1alpha1.StatePaused }, nil},
		{"so does a restart", none, func(s *v1alpha1.VirtualMachineSpec) { s.RestartedAt = "now" }, nil},
		{"and a time to live", none, func(s *v1alpha1.VirtualMachineSpec) { s.TTLSecondsAfterFinished = new(int32(5)) }, nil},
		{
			"a probe's command", none, func(s *v1alpha1.VirtualMachineSpec) {
				s.LivenessProbe = &v1alpha1.Probe{Probe: corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}}
			},
			[]change{leaf("livenessProbe.exec.command[0]", "", "true", anew)},
		},
		{"the same quantity, written otherwise", none, func(s *v1alpha1.VirtualMachineSpec) { s.Memory.Size = resource.MustParse("1024Mi") }, nil},
		{"a default, written or not", none, func(s *v1alpha1.VirtualMachineSpec) { s.CPU, s.RestartPolicy, s.Networks = v1alpha1.CPU{}, "", nil }, nil},
		{
			"user data, of which nothing is told", none, func(s *v1alpha1.VirtualMachineSpec) { s.CloudInit = &v1alpha1.CloudInit{UserData: &secret} },
			[]change{leaf("cloudInit.userData", "", "", restart)},
		},
		{
			"odd characters", none, func(s *v1alpha1.VirtualMachineSpec) {
				s.NodeSelector = map[string]string{"a": "é\uffff\x7f\U0001f600"}
			},
			[]change{leaf("nodeSelector.a", "", "é\uffff\x7f\U0001f600", anew)},
		},
		{"a long string", none, func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{long} }, []change{leaf("sshAuthorizedKeys[0]", "", "", restart)}},
		{"the same long string", func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{long} }, func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{long} }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := recordOf(t, vm(tt.from).Spec)
			got, err := Changes(text, &vm(tt.now).Spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			now := recordOf(t, vm(tt.now).Spec)
			if strings.Contains(now, "hunter2") {
				t.Errorf("the record tells user data: %s", now)
			}
			if odd := func(r rune) bool { return r < ' ' || r > '~' }; strings.ContainsFunc(now, odd) {
				t.Errorf("the record is not printable ASCII: %q", now)
			}
			if same, err := Changes(now, &vm(tt.now).Spec); err != nil || len(same) > 0 {
				t.Errorf("it differs from itself in %+v: %v", same, err)
			}
		})
	}
}

// TestRecordOfVersion1: what a version that upgrades begin with has recorded of a spec is no change of that, whatever defaults
// came since. The record never changes.
func TestRecordOfVersion1(t *testing.T) {
	golden, err := os.ReadFile("testdata/record-1.json")
	if err != nil {
		t.Fatal(err)
	}
	text, spec := strings.TrimSpace(string(golden)), vm(everything).Spec
	if changes, err := Changes(text, &spec); err != nil || len(changes) > 0 {
		t.Errorf("changes %+v, %v", changes, err)
	}
	spec.CPU.Cores = 7
	want := []change{leaf("cpu.cores", "2", "7", v1alpha1.EffectNewBerth)}
	got, err := Changes(text, &spec)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("of another one -want +got, %v:\n%s", err, diff)
	}
	if _, err := RecordWithDisk(text, "root", spec.Disks); err != nil {
		t.Error(err)
	}
}

// A record lives as long as its guest, so it is older than the program that reads it, or newer after a rollback.
func TestRecordsOfOtherVersions(t *testing.T) {
	spec := vm(everything).Spec
	edit := func(change func(record, spec map[string]any)) string {
		var r map[string]any
		if err := json.Unmarshal([]byte(recordOf(t, spec)), &r); err != nil {
			t.Fatal(err)
		}
		change(r, r["spec"].(map[string]any))
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	unreadable := []change{{Path: "spec", From: "a record that cannot be read", Effect: v1alpha1.EffectNewBerth}}
	tests := []struct {
		name, record string
		spec         v1alpha1.VirtualMachineSpec
		want         []change
	}{
		{"one from before defaulted fields", edit(func(_, s map[string]any) {
			delete(s, "networks")
			delete(s, "guestTools")
			delete(s["cpu"].(map[string]any), "sockets")
			delete(s["cloudInit"].(map[string]any)["userDataSecretRef"].(map[string]any), "key")
		}), spec, nil},
		{"one with fields that came later", edit(func(r, s map[string]any) {
			r["hardware"], s["firmware"] = map[string]any{"a": 1}, "UEFI"
			s["cpu"].(map[string]any)["dedicated"] = true
		}), spec, nil},
		{"one of a version that came later", edit(func(r, s map[string]any) { r["recordVersion"], r["spec"] = 2, "elsewhere" }), spec, nil},
		{"one without a version", `{"cpu":"0123456789ab"}`, spec, unreadable},
		{"one that cannot be read", "{", spec, unreadable},
		{"one of another form", `{"cpu":1}`, spec, unreadable},
		{"one that holds nothing", `{}`, spec, unreadable},
		{"one that is missing", "", spec, unreadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Changes(tt.record, &tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestOutdated: a berth requests what the disks may grow to, and a restart in place needs no other one.
func TestOutdated(t *testing.T) {
	was := recordOf(t, vm(everything).Spec)
	grown := func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Size = new(resource.MustParse("30Gi")) }
	for name, tt := range map[string]struct {
		now  func(*v1alpha1.VirtualMachineSpec)
		want []change
	}{
		"nothing":        {func(*v1alpha1.VirtualMachineSpec) {}, nil},
		"a larger disk":  {grown, []change{leaf("disks[root].size", "20Gi", "30Gi", v1alpha1.EffectNewBerth)}},
		"a disk's bus":   {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Bus = v1alpha1.BusSCSI }, nil},
		"a disk's limit": {func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Limits = &v1alpha1.DiskLimits{IOPS: new(int64(5))} }, nil},
	} {
		got, err := Outdated(was, &vm(everything, tt.now).Spec)
		if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s: -want +got, %v:\n%s", name, err, diff)
		}
	}
}

// TestRecordWithDisk: what was plugged into a guest, or out of it, is no change any more, and what else is pending stays.
func TestRecordWithDisk(t *testing.T) {
	disk := func(name, image string) v1alpha1.Disk {
		return v1alpha1.Disk{Name: name, Image: image, Limits: &v1alpha1.DiskLimits{IOPS: new(int64(5))}}
	}
	started := func(s *v1alpha1.VirtualMachineSpec) { // with root and tmp
		everything(s)
		s.SSHAuthorizedKeys = []string{"ssh-rsa " + strings.Repeat("A", 500)}
	}
	for _, tt := range []struct {
		name, disk string
		now        func(*v1alpha1.VirtualMachineSpec)
		want       []change
	}{
		{"a new one", "data", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = append(s.Disks, disk("data", "a")) }, nil},
		{"one in place of another", "tmp", func(s *v1alpha1.VirtualMachineSpec) { s.Disks[1] = disk("tmp", "b") }, nil},
		{"one less", "tmp", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = s.Disks[:1] }, nil},
		{"one less, of those that boot", "root", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = s.Disks[1:] }, nil},
		{"one that was not there", "data", func(*v1alpha1.VirtualMachineSpec) {}, nil},
		{"one that is first", "data", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = slices.Insert(s.Disks, 0, disk("data", "a")) }, nil},
		{"one in between", "data", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = slices.Insert(s.Disks, 1, disk("data", "a")) }, nil},
		{
			"one of two", "data", func(s *v1alpha1.VirtualMachineSpec) {
				s.Disks = slices.Insert(s.Disks, 1, disk("more", "a"), disk("data", "a"))
			},
			[]change{leaf("disks[more]", "", "attached", v1alpha1.EffectNewBerth)},
		},
		{
			"among others in another order", "data", func(s *v1alpha1.VirtualMachineSpec) {
				s.Disks = []v1alpha1.Disk{s.Disks[1], disk("data", "a"), s.Disks[0]}
			},
			[]change{leaf("disks", "[root tmp data]", "[tmp data root]", v1alpha1.EffectNewBerth)},
		},
		{
			"beside another change", "tmp", func(s *v1alpha1.VirtualMachineSpec) { s.Disks = s.Disks[:1]; s.CPU.Cores = 4 },
			[]change{leaf("cpu.cores", "2", "4", v1alpha1.EffectNewBerth)},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := vm(started, tt.now).Spec
			record, err := RecordWithDisk(recordOf(t, vm(started).Spec), tt.disk, now.Disks)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Changes(record, &now)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
				t.Errorf("-want +got, %v:\n%s", err, diff)
			}
			again, err := RecordWithDisk(record, tt.disk, now.Disks)
			if diff := cmp.Diff(record, again); diff != "" || err != nil {
				t.Errorf("done once more it is another, %v:\n%s", err, diff)
			}
		})
	}
	for _, other := range []string{"", "{", `{}`, `{"cpu":"0123456789ab"}`, `{"recordVersion":2,"spec":{}}`} {
		if text, err := RecordWithDisk(other, "root", nil); err == nil {
			t.Errorf("%q becomes %q", other, text)
		}
	}
}

// What is said to take a restart in place must leave the pod as it is.
func TestChangesInPlaceLeaveTheBerth(t *testing.T) {
	full := func(s *v1alpha1.VirtualMachineSpec) {
		everything(s)
		s.CloudInit.UserDataSecretRef = nil
		s.CloudInit.UserData, s.CloudInit.NetworkData = new("a"), new("a")
		s.Ignition = &v1alpha1.Ignition{Config: new("a")}
		s.Kernel = &v1alpha1.Kernel{Image: "a", KernelPath: "/a", InitrdPath: "/a", CommandLine: "a"}
		s.SSHAuthorizedKeys = []string{"a"}
	}
	podOf := func(change func(*v1alpha1.VirtualMachineSpec)) *corev1.Pod {
		pod, err := PodFor(Input{VM: vm(full, change), Options: options})
		if err != nil {
			t.Fatal(err)
		}
		delete(pod.Annotations, AnnotationSpec)
		return pod
	}
	plain := podOf(func(*v1alpha1.VirtualMachineSpec) {})
	was := recordOf(t, vm(full).Spec)
	seen := map[string]bool{}
	for _, change := range []func(*v1alpha1.VirtualMachineSpec){
		func(s *v1alpha1.VirtualMachineSpec) { s.Kernel.Image = "b" },
		func(s *v1alpha1.VirtualMachineSpec) { s.Kernel.KernelPath = "/b" },
		func(s *v1alpha1.VirtualMachineSpec) { s.Kernel.InitrdPath = "/b" },
		func(s *v1alpha1.VirtualMachineSpec) { s.Kernel.CommandLine = "b" },
		func(s *v1alpha1.VirtualMachineSpec) { s.CloudInit.UserData = new("b") },
		func(s *v1alpha1.VirtualMachineSpec) { s.CloudInit.NetworkData = new("b") },
		func(s *v1alpha1.VirtualMachineSpec) { s.Ignition.Config = new("b") },
		func(s *v1alpha1.VirtualMachineSpec) { s.SSHAuthorizedKeys = []string{"b"} },
		func(s *v1alpha1.VirtualMachineSpec) { s.GuestTools = v1alpha1.GuestToolsNone },
		func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Bus = v1alpha1.BusSATA },
		func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Cache = v1alpha1.CacheNone },
		func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].IOThread = true },
		func(s *v1alpha1.VirtualMachineSpec) { s.Disks[0].Serial = "b" },
	} {
		changes, err := Changes(was, &vm(full, change).Spec)
		if err != nil || len(changes) != 1 || changes[0].Effect != v1alpha1.EffectRestart {
			t.Errorf("changes %+v, %v", changes, err)
			continue
		}
		if diff := cmp.Diff(plain, podOf(change)); diff != "" {
			t.Errorf("%s changes the berth:\n%s", changes[0].Path, diff)
		}
		for _, field := range inPlace {
			seen[field] = seen[field] || strings.HasPrefix(changes[0].Path, field)
		}
		_, field, _ := strings.Cut(changes[0].Path, "disks[root].")
		seen[field] = true
	}
	for _, field := range slices.Concat(inPlace, inPlaceOfDisk) {
		if !seen[field] {
			t.Errorf("nothing here changes %s", field)
		}
	}
}

func FuzzChanges(f *testing.F) {
	f.Add(`{"cpu":"0123456789ab"}`)
	text, err := Record(&vm(everything).Spec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text string) {
		changes, err := Changes(text, &vm(everything).Spec)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(changes, func(a, b change) int { return strings.Compare(a.Path, b.Path) }) {
			t.Errorf("not sorted: %+v", changes)
		}
		if with, err := RecordWithDisk(text, "root", []v1alpha1.Disk{{Name: "root", Image: "b"}}); err == nil {
			if _, err := Changes(with, &vm(everything).Spec); err != nil {
				t.Errorf("%q becomes %q: %v", text, with, err)
			}
		}
	})
}

// TestHashTexts: a cache that keeps hashes for texts makes the same records, and the same berths.
func TestHashTexts(t *testing.T) {
	full := vm(everything, func(s *v1alpha1.VirtualMachineSpec) {
		s.CloudInit = &v1alpha1.CloudInit{UserData: new(strings.Repeat("u", 1000)), NetworkData: new("version: 2")}
		s.Ignition = &v1alpha1.Ignition{Config: new(strings.Repeat("i", 1000))}
		s.SSHAuthorizedKeys = []string{"ssh-ed25519 A", "ssh-rsa " + strings.Repeat("A", 500)}
	})
	cached := full.DeepCopy()
	HashTexts(&cached.Spec)
	if *cached.Spec.CloudInit.UserData == *full.Spec.CloudInit.UserData || len(*cached.Spec.Ignition.Config) > maxRecorded || len(cached.Spec.SSHAuthorizedKeys[1]) > maxRecorded {
		t.Errorf("texts are kept: %+v", cached.Spec)
	}
	if diff := cmp.Diff(recordOf(t, full.Spec), recordOf(t, cached.Spec)); diff != "" {
		t.Errorf("records -want +got:\n%s", diff)
	}
	was, err := PodFor(Input{VM: full, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	is, err := PodFor(Input{VM: cached, Options: options})
	if diff := cmp.Diff(was, is); diff != "" || err != nil {
		t.Errorf("berths -want +got, %v:\n%s", err, diff)
	}
}
