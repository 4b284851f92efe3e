package libvirtd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

func factsOf(t *testing.T, c *libvirtd.Client, id string) domain.Facts {
	t.Helper()
	f, err := domain.ParseFacts(look(t, c, id).XML)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// liveDisk is a disk that a guest has; without Alias if it has none.
func liveDisk(t *testing.T, c *libvirtd.Client, id, name string) domain.LiveDisk {
	t.Helper()
	disks := factsOf(t, c, id).Disks
	if i := slices.IndexFunc(disks, func(d domain.LiveDisk) bool { return d.Name == name }); i >= 0 {
		return disks[i]
	}
	return domain.LiveDisk{}
}

// plugIn plugs a disk where its guest has room for it.
func plugIn(t *testing.T, c *libvirtd.Client, id string, d domain.Disk) {
	t.Helper()
	at, ok := factsOf(t, c, id).Spot(d.Bus)
	if !ok {
		t.Fatal("there is no room")
	}
	doc, err := domain.DiskXML(d, at)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AttachDisk(t.Context(), id, doc); err != nil {
		t.Fatal(err)
	}
}

func refusedDisk(t *testing.T, what string, err error) {
	t.Helper()
	t.Logf("%s: %v", what, err)
	if fault.ClassOf(err) != fault.Transient || fault.ReasonOf(err) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("%s: %v, %s, want LibvirtRefused, for now", what, err, fault.ReasonOf(err))
	}
}

// TestDisks changes the disks of a running Linux, which tells what it sees.
func TestDisks(t *testing.T) {
	l := env.Libvirtd(t)
	c, told := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := linux(t, l, "disks", 2)
	dir := filepath.Dir(g.Console)
	at := func(name string) string { return filepath.Join(dir, name) }
	for i := range 4 {
		env.EmptyDisk(t, at(fmt.Sprintf("more%d.qcow2", i)), l.UID, l.GID)
	}
	for name, sectors := range map[string]int{"a.iso": 2048, "b.iso": 4096} {
		if err := os.WriteFile(at(name), make([]byte, 512*sectors), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	limits := domain.Limits{IOPS: 500, Bytes: 50 << 20, BurstIOPS: 2000, BurstBytes: 200 << 20, BurstSeconds: 10}
	g.Disks[0].Direct, g.Disks[0].IOThread = true, true
	g.Disks[1].Direct, g.Disks[1].Ephemeral, g.Disks[1].Serial = true, true, "WD-1234"
	g.Disks = append(g.Disks,
		domain.Disk{Name: "fast", Path: at("more0.qcow2"), Bus: v1alpha1.BusSCSI, IOThread: true, Direct: true, Limits: limits},
		domain.Disk{Name: "install", CDROM: true, Bus: v1alpha1.BusSCSI, Path: at("a.iso"), Format: domain.Raw},
		domain.Disk{Name: "empty", CDROM: true},
	)
	tty := boot(t, c, g)
	const (
		disks = "vda=0000:02:09.0 vdb=0000:02:0a.0 vdc=0000:02:1f.0"
		nic   = "eth0=0000:02:01.0 cpus=0"
	)
	tty.sees(disks + " sda=target0:0:0 sr0=target0:0:1 sr1=target1:0:0 " + nic)
	t.Run("its disks are told", func(t *testing.T) {
		want := []domain.LiveDisk{
			{Name: "d0", Alias: "ua-d0", Target: "vda", Bus: v1alpha1.BusVirtio, Path: g.Disks[0].Path},
			{Name: "d1", Alias: "ua-d1", Target: "vdb", Bus: v1alpha1.BusVirtio, Path: g.Disks[1].Path},
			{Name: "fast", Alias: "ua-fast", Target: "sdc", Bus: v1alpha1.BusSCSI, Path: at("more0.qcow2"), Limits: limits},
			{Name: "install", Alias: "ua-install", Target: "sdd", Bus: v1alpha1.BusSCSI, CDROM: true, Path: at("a.iso")},
			{Name: "empty", Alias: "ua-empty", Target: "sde", Bus: v1alpha1.BusSATA, CDROM: true},
		}
		byName := cmpopts.SortSlices(func(a, b domain.LiveDisk) bool { return a.Name < b.Name })
		if diff := cmp.Diff(want, factsOf(t, c, g.UUID).Disks, byName, cmpopts.IgnoreUnexported(domain.LiveDisk{})); diff != "" {
			t.Errorf("disks (-want +got):\n%s", diff)
		}
		doc := look(t, c, g.UUID).XML
		for _, want := range []string{`cache='none'`, `cache='unsafe'`, `<serial>WD-1234</serial>`, `iothread='1'`, `iothread='2'`} {
			if !strings.Contains(doc, want) {
				t.Errorf("%s is missing in %s", want, doc)
			}
		}
	})
	t.Run("disks are plugged and unplugged", func(t *testing.T) {
		for range 2 {
			plugIn(t, c, g.UUID, domain.Disk{Name: "hot", Path: at("more1.qcow2"), Direct: true, Limits: limits, IOThread: true})
			plugIn(t, c, g.UUID, domain.Disk{Name: "scsi", Path: at("more2.qcow2"), Bus: v1alpha1.BusSCSI, Ephemeral: true})
			plugIn(t, c, g.UUID, domain.Disk{Name: "cd", Path: at("b.iso"), Bus: v1alpha1.BusSCSI, CDROM: true, Format: domain.Raw})
			tty.sees(disks + " vdd=0000:02:0b.0 sda=target0:0:0 sdb=target0:0:2 sr0=target0:0:1 sr1=target1:0:0 sr2=target0:0:3 " + nic)
			if d := liveDisk(t, c, g.UUID, "hot"); d.Limits != limits || d.Path != at("more1.qcow2") {
				t.Errorf("plugged %+v", d)
			}
			for _, name := range []string{"hot", "scsi", "cd"} {
				before := told.of(g.UUID)
				if err := c.DetachDisk(t.Context(), g.UUID, liveDisk(t, c, g.UUID, name).Alias); err != nil {
					t.Error(err)
				}
				env.Eventually(t, "word of "+name, func() bool { return told.of(g.UUID) > before })
				env.Eventually(t, "the end of "+name, func() bool { return liveDisk(t, c, g.UUID, name).Alias == "" })
			}
			tty.sees(disks + " sda=target0:0:0 sr0=target0:0:1 sr1=target1:0:0 " + nic)
		}
	})
	t.Run("a disk cannot be plugged", func(t *testing.T) {
		spot, _ := factsOf(t, c, g.UUID).Spot(v1alpha1.BusVirtio)
		doc, err := domain.DiskXML(domain.Disk{Name: "hot", Path: at("none.qcow2")}, spot)
		if err != nil {
			t.Fatal(err)
		}
		refusedDisk(t, "its file is missing", c.AttachDisk(t.Context(), g.UUID, doc))
		doc = strings.ReplaceAll(doc, "none.qcow2", "more1.qcow2")
		refusedDisk(t, "its slot is taken", c.AttachDisk(t.Context(), g.UUID, strings.ReplaceAll(doc, `slot="0x0b"`, `slot="0x09"`)))
		refusedDisk(t, "its name is taken", c.AttachDisk(t.Context(), g.UUID, strings.ReplaceAll(doc, `ua-hot`, `ua-d0`)))
		refusedDisk(t, "its target is taken", c.AttachDisk(t.Context(), g.UUID, strings.ReplaceAll(doc, `"vdg"`, `"vda"`)))
		refusedDisk(t, "its file is another disk's", c.AttachDisk(t.Context(), g.UUID, strings.ReplaceAll(doc, "more1.qcow2", "more0.qcow2")))
		if d := liveDisk(t, c, g.UUID, "hot"); d.Alias != "" {
			t.Errorf("left %+v", d)
		}
	})
	t.Run("limits are changed", func(t *testing.T) {
		for _, name := range []string{"fast", "d0"} {
			disk := liveDisk(t, c, g.UUID, name)
			for _, want := range []domain.Limits{
				limits, {IOPS: 100}, {IOPS: 100, BurstIOPS: 200, BurstSeconds: 1}, {Bytes: 1 << 20}, {}, {Bytes: 1 << 20, BurstBytes: 2 << 20, BurstSeconds: 30}, {Bytes: 1 << 20}, {},
			} {
				if err := c.SetDiskLimits(t.Context(), g.UUID, disk.Target, libvirtd.DiskLimits(want)); err != nil {
					t.Errorf("%s to %+v: %v", name, want, err)
				}
				if got := liveDisk(t, c, g.UUID, name).Limits; got != want {
					t.Errorf("%s has %+v, want %+v", name, got, want)
				}
			}
		}
		refusedDisk(t, "limits of a disk that is not there", c.SetDiskLimits(t.Context(), g.UUID, "vdz", libvirtd.DiskLimits{IOPS: 1}))
	})
	medium := func(name, file string, force bool) error {
		t.Helper()
		d := g.Disks[3]
		d.Name, d.Path = name, ""
		if file != "" {
			d.Path = at(file)
		}
		doc, err := domain.MediumXML(d, liveDisk(t, c, g.UUID, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ChangeMedium(t.Context(), g.UUID, doc, force); err != nil {
			return err
		}
		if got := liveDisk(t, c, g.UUID, name).Path; got != d.Path {
			return errors.New("the medium is " + got)
		}
		return nil
	}
	sectors := func(want string) {
		t.Helper()
		env.Eventually(t, want+" sectors", func() bool {
			if _, err := tty.Write([]byte("size sr0\n")); err != nil {
				t.Fatal(err)
			}
			return tty.await(regexp.MustCompile(`tiny: size sr0=\d+`)) == "tiny: size sr0="+want
		})
	}
	t.Run("a medium is changed", func(t *testing.T) {
		for _, name := range []string{"install", "empty"} {
			for _, file := range []string{"b.iso", "b.iso", "", "", "a.iso", "b.iso"} {
				if err := medium(name, file, false); err != nil {
					t.Errorf("%s to %q: %v", name, file, err)
				}
			}
		}
	})
	t.Run("a medium is held", func(t *testing.T) {
		do := func(command, answer string) {
			t.Helper()
			if _, err := tty.Write([]byte(command + "\n")); err != nil {
				t.Fatal(err)
			}
			tty.await(regexp.MustCompile(answer))
		}
		do("hold sr0", "tiny: holds sr0")
		sectors("4096")
		refusedDisk(t, "asked for", medium("install", "a.iso", false))
		refusedDisk(t, "asked to eject", medium("install", "", false))
		if got := liveDisk(t, c, g.UUID, "install").Path; got != at("b.iso") {
			t.Errorf("the medium is %q", got)
		}
		if err := medium("install", "a.iso", true); err != nil {
			t.Errorf("by force: %v", err)
		}
		if err := medium("install", "", true); err != nil {
			t.Errorf("ejected by force: %v", err)
		}
		if err := medium("install", "a.iso", false); err != nil {
			t.Errorf("put into an empty drive: %v", err)
		}
		do("release", "tiny: released")
		do("hold sr0", "tiny: holds sr0")
		sectors("2048")
	})
	t.Run("its record is changed", func(t *testing.T) {
		f := factsOf(t, c, g.UUID)
		for _, record := range []string{`{"a":"<&>"}`, `{"b":2}`} {
			doc, err := f.MetadataXML(record)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetMetadata(t.Context(), g.UUID, doc); err != nil {
				t.Fatal(err)
			}
			want := *f.Identity
			want.Record = record
			got := factsOf(t, c, g.UUID)
			if diff := cmp.Diff(&want, got.Identity); diff != "" || got.Hardware != f.Hardware {
				t.Errorf("hardware %+v, identity (-want +got):\n%s", got.Hardware, diff)
			}
		}
	})
	t.Run("what they have done is told", func(t *testing.T) {
		all, err := c.BlockStats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", all[g.UUID])
		i := slices.IndexFunc(all[g.UUID], func(b libvirtd.BlockStats) bool { return b.Target == "sdc" })
		if i < 0 {
			t.Fatalf("%+v", all)
		}
		if b := all[g.UUID][i]; b.Reads == 0 || b.ReadBytes == 0 || b.ReadTime == 0 || b.Capacity != 1<<30 {
			t.Errorf("%+v", b)
		}
	})
	t.Run("a halted guest lets go later", func(t *testing.T) {
		plugIn(t, c, g.UUID, domain.Disk{Name: "hot", Path: at("more3.qcow2")})
		tty.sees(disks + " vdd=0000:02:0b.0 sda=target0:0:0 sr0=target0:0:1 sr1=target1:0:0 " + nic)
		if err := c.Suspend(t.Context(), g.UUID); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := c.DetachDisk(t.Context(), g.UUID, "ua-hot"); err != nil {
				t.Error(err)
			}
			if d := liveDisk(t, c, g.UUID, "hot"); d.Alias == "" {
				t.Error("a halted guest let go")
			}
		}
		if err := c.Resume(t.Context(), g.UUID); err != nil {
			t.Fatal(err)
		}
		env.Eventually(t, "its end", func() bool { return liveDisk(t, c, g.UUID, "hot").Alias == "" })
		tty.sees(disks + " sda=target0:0:0 sr0=target0:0:1 sr1=target1:0:0 " + nic)
	})
}
