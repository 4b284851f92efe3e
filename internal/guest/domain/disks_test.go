package domain

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func parsed(t *testing.T, doc string) Facts {
	t.Helper()
	f, err := ParseFacts(doc)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func described(t *testing.T, g Guest) string {
	t.Helper()
	doc, err := XML(g)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// plug adds the disk of this XML, as libvirt does.
func plug(doc, disk string) string { return strings.Replace(doc, "<disk ", disk+"<disk ", 1) }

func TestFactsHaveTheDisksOfTheSpec(t *testing.T) {
	want := []LiveDisk{
		{Name: "root", Alias: "ua-root", Target: "vda", Bus: v1alpha1.BusVirtio, Path: "/root.qcow2"},
		{Name: "scratch", Alias: "ua-scratch", Target: "vdb", Bus: v1alpha1.BusVirtio, Path: "/scratch.qcow2"},
		{Name: "fast", Alias: "ua-fast", Target: "sdc", Bus: v1alpha1.BusSCSI, Path: "/fast.qcow2", Limits: Limits{500, 50 << 20, 2000, 200 << 20, 10}},
		{Name: "install", Alias: "ua-install", Target: "sdd", Bus: v1alpha1.BusSATA, CDROM: true, Path: "/install.iso"},
		{Name: "tools", Alias: "ua-tools", Target: "sde", Bus: v1alpha1.BusSCSI, CDROM: true},
		{Name: "old", Alias: "ua-old", Target: "sdf", Bus: v1alpha1.BusSATA, Path: "/old.qcow2"},
		{Name: "log", Alias: "ua-log", Target: "vdg", Bus: v1alpha1.BusVirtio, Path: "/log.raw", Limits: Limits{IOPS: 100}},
		{Name: "kept", Alias: "ua-kept", Target: "vdh", Bus: v1alpha1.BusVirtio, Path: "/kept.qcow2"},
	}
	f := parsed(t, described(t, edited(buses16)))
	if diff := cmp.Diff(want, f.Disks, seen); diff != "" || !f.Tools {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
	f = parsed(t, `<domain><devices>
		<disk><target dev="vda" bus="virtio"/><serial>WD-1</serial><alias name="ua-web"/></disk>
		<disk><target dev="vdb" bus="virtio"/><alias name="virtio-disk1"/></disk>
		<disk><target dev="vdc" bus="virtio"/><serial>BERTH</serial><alias name="virtio-disk2"/></disk>
		<disk><target dev="vdd" bus="virtio"/><serial>somebody-s</serial><alias name="virtio-disk3"/></disk>
		<disk><target/><serial>x</serial><alias name="ua-x"/><iotune><total_iops_sec>x</total_iops_sec><total_bytes_sec_max>5</total_bytes_sec_max></iotune></disk>
	</devices></domain>`)
	want = []LiveDisk{
		{Name: "web", Alias: "ua-web", Target: "vda", Bus: v1alpha1.BusVirtio},
		{Name: "x", Alias: "ua-x", Limits: Limits{BurstBytes: 5, BurstSeconds: 1}},
	}
	if diff := cmp.Diff(want, f.Disks, seen); diff != "" {
		t.Errorf("disks with aliases of ours (-want +got):\n%s", diff)
	}
}

// TestSpots fills guests with disks until there is no room.
func TestSpots(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(*Guest)
		bus  v1alpha1.DiskBus
		room int
		want string // of the first
	}{
		"behind the bridge":              {func(*Guest) {}, "", 14, `dev="vdd" bus="virtio".* slot="0x0b"`},
		"after a disk on another bus":    {buses16, v1alpha1.BusVirtio, 8, `dev="vdk" bus="virtio".* slot="0x0b"`},
		"on the controller":              {buses16, v1alpha1.BusSCSI, 8, `dev="sdk" bus="scsi".* target="2" unit="0"`},
		"not without a controller":       {func(*Guest) {}, v1alpha1.BusSCSI, 0, ""},
		"not on SATA":                    {buses16, v1alpha1.BusSATA, 0, ""},
		"not on a bus that nobody knows": {buses16, "IDE", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			doc := described(t, edited(tc.edit))
			for n := range 40 {
				at, ok := parsed(t, doc).Spot(tc.bus)
				if ok != (n < tc.room) {
					t.Fatalf("%t after %d disks, want room for %d", ok, n, tc.room)
				}
				if !ok {
					break
				}
				disk, err := DiskXML(Disk{Name: "x" + string(rune('a'+n)), Path: "/x"}, at)
				if err != nil {
					t.Fatal(err)
				}
				if flat := strings.Join(strings.Fields(disk), " "); n == 0 && !regexp.MustCompile(tc.want).MatchString(flat) {
					t.Errorf("the first is %s", flat)
				}
				doc = plug(doc, disk)
			}
		})
	}
	for _, unknown := range []int{-1, 0, 1, NewestLayout + 1} {
		f := Facts{Hardware: Hardware{Layout: unknown}}
		if at, ok := f.Spot(""); ok || f.CanUnplug(LiveDisk{Bus: v1alpha1.BusVirtio}) {
			t.Errorf("%+v in layout %d", at, unknown)
		}
	}
}

func TestDiskXMLRefuses(t *testing.T) {
	at, _ := parsed(t, described(t, edited(buses16))).Spot(v1alpha1.BusVirtio)
	for what, d := range map[string]Disk{
		"a CD-ROM on virtio": {Name: "a", CDROM: true}, "nothing": {Name: "a"}, "a control character": {Name: "a\n", Path: "/a"},
	} {
		if doc, err := DiskXML(d, at); err == nil {
			t.Errorf("%s: %s", what, doc)
		}
	}
}

// TestMediumXML: only the medium differs from the drive that the guest has.
func TestMediumXML(t *testing.T) {
	doc := described(t, edited(buses16))
	has := parsed(t, doc).Disks
	var full libvirtxml.Domain
	if err := full.Unmarshal(doc); err != nil {
		t.Fatal(err)
	}
	for i, d := range edited(buses16).Disks {
		if !d.CDROM {
			if doc, err := MediumXML(d, has[i]); err == nil {
				t.Errorf("%s is no CD-ROM drive: %s", d.Name, doc)
			}
			continue
		}
		for _, path := range []string{"", "/another.qcow2"} {
			d.Path, d.Format = path, QCOW2
			doc, err := MediumXML(d, has[i])
			if err != nil {
				t.Fatal(err)
			}
			var got libvirtxml.DomainDisk
			if err := got.Unmarshal(doc); err != nil {
				t.Fatal(err)
			}
			if got.Source.File.File != path {
				t.Errorf("the medium is %+v, want %q", got.Source.File, path)
			}
			want := full.Devices.Disks[i]
			got.Source, got.BackingStore, got.Driver.Type, got.Boot = want.Source, want.BackingStore, want.Driver.Type, want.Boot
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the drive (-has +another):\n%s", diff)
			}
		}
	}
}

func TestMetadataXML(t *testing.T) {
	f := parsed(t, described(t, edited(buses16)))
	doc, err := f.MetadataXML(`{"a": "<&>"}`)
	if err != nil {
		t.Fatal(err)
	}
	want := *f.Identity
	want.Record = `{"a": "<&>"}`
	got := parsed(t, "<domain><metadata>"+doc+"</metadata></domain>")
	if diff := cmp.Diff(&want, got.Identity); diff != "" || got.Hardware != f.Hardware {
		t.Errorf("hardware %+v, identity (-want +got):\n%s", got.Hardware, diff)
	}
	foreign, err := os.ReadFile(filepath.Join("testdata", "live-foreign.xml"))
	if err != nil {
		t.Fatal(err)
	}
	newer, older := f, f
	newer.Hardware.Layout, older.Hardware.Layout = NewestLayout+1, 0
	for what, f := range map[string]Facts{"a foreign domain": parsed(t, string(foreign)), "a newer one": newer, "an older one": older} {
		if doc, err := f.MetadataXML("{}"); err == nil {
			t.Errorf("%s: %s", what, doc)
		}
	}
	if doc, err := f.MetadataXML("\x00"); err == nil {
		t.Errorf("a NUL: %s", doc)
	}
}
