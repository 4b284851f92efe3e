package domain

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"libvirt.org/go/libvirtxml"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

var update = flag.Bool("update", false, "write the goldens anew")

func web() Guest {
	return Guest{
		UUID:         "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
		Name:         "shop_web",
		Identity:     Identity{Namespace: "shop", Name: "web", VM: "6ba7b810-9dad-41d1-80b4-00c04fd430c8", Berth: "0f0e0d0c-0b0a-4908-8706-050403020100"},
		Hardware:     Hardware{Layout: 2, Machine: "pc-q35-7.2"},
		Acceleration: v1alpha1.AccelerationKVM,
		CPU:          CPU{Sockets: 1, Cores: 2, Threads: 1, Model: berth.CPUHostModel},
		Memory:       2 << 30,
		Disks: []Disk{
			{Name: "root", Path: "/var/lib/berth/disks/u/root.qcow2", Backing: []Backing{{Path: "/var/lib/berth/images/a.qcow2", Format: QCOW2}}},
			{Name: "tools", Path: "/var/lib/berth/disks/u/tools.qcow2", Backing: []Backing{{Path: "/var/lib/berth/images/b.raw", Format: Raw}}},
		},
		Seed:    "/run/berth/seed/u.iso",
		NIC:     &NIC{Tap: "btabcdefghijklm", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}},
		Console: "/run/berth/console/u.sock", GuestPort: "/run/berth/console/u.guest.sock", ExitPort: "/run/berth/console/u.exit.sock",
		UID: 64100,
		GID: 107,
	}
}

func edited(edit func(*Guest)) Guest {
	g := web()
	edit(&g)
	return g
}

// buses16 gives a guest disks of every kind.
func buses16(g *Guest) {
	g.Tools = "/tools.iso"
	g.Disks = []Disk{
		{Name: "root", Path: "/root.qcow2", Direct: true, IOThread: true},
		{Name: "scratch", Path: "/scratch.qcow2", Ephemeral: true, Direct: true},
		{Name: "fast", Path: "/fast.qcow2", Bus: v1alpha1.BusSCSI, IOThread: true, Direct: true, Limits: Limits{500, 50 << 20, 2000, 200 << 20, 10}},
		{Name: "install", CDROM: true, Path: "/install.iso", Format: Raw},
		{Name: "tools", CDROM: true, Bus: v1alpha1.BusSCSI},
		{Name: "old", Path: "/old.qcow2", Bus: v1alpha1.BusSATA, Cache: v1alpha1.CacheWritethrough, Serial: "WD-1234"},
		{Name: "log", Path: "/log.raw", Volume: &Volume{Block: true}, IOThread: true, Direct: true, Limits: Limits{IOPS: 100}},
		{Name: "kept", Path: "/kept.qcow2", Ephemeral: true, Cache: v1alpha1.CacheNone},
	}
}

func TestXML(t *testing.T) {
	for name, g := range map[string]Guest{
		"disks": web(),
		"volumes": edited(func(g *Guest) {
			volumes := "/run/berth/volumes/u/"
			g.Disks = []Disk{
				{Name: "data", Path: volumes + "data/disk.img", Volume: &Volume{}},
				{Name: "log", Path: volumes + "log.raw", Volume: &Volume{Block: true}},
				{Name: "library", Path: volumes + "library/disk.img", Volume: &Volume{ReadOnly: true}},
				{Name: "cluster", Path: volumes + "cluster.raw", Volume: &Volume{Block: true, Shared: true}},
			}
		}),
		"buses": edited(buses16),
		"display": edited(func(g *Guest) {
			g.Display = &Display{Type: v1alpha1.DisplayVGA, Socket: "/run/berth/displays/u/vnc.sock"}
			g.Tools = "/var/lib/berth/vms/u/tools.iso"
		}),
		"kernel": edited(func(g *Guest) {
			g.Acceleration, g.TranslationCache = v1alpha1.AccelerationEmulation, 64<<20
			g.Kernel = &Kernel{Path: "/k/vmlinuz", Initrd: "/k/initrd", CommandLine: `console=ttyS0 a="<b>&'c'"`}
			g.Disks, g.Seed, g.NIC = nil, "", nil
			g.Partition = "/kubepods/burstable/pod1"
			g.CPU = CPU{Sockets: 2, Cores: 3, Threads: 2, Model: "Skylake-Server"}
			g.Ignition = "/run/berth/seeds/u.ign"
		}),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := XML(g)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".xml")
			if *update {
				if err := os.WriteFile(golden, []byte(got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.TrimSpace(string(want)), got); diff != "" {
				t.Errorf("domain differs from %s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

func TestXMLRefuses(t *testing.T) {
	for what, edit := range map[string]func(*Guest){
		"a name for a UUID":                    func(g *Guest) { g.UUID = "web" },
		"a UUID in another form":               func(g *Guest) { g.UUID = strings.ToUpper(g.UUID) },
		"a layout of a newer Berth":            func(g *Guest) { g.Hardware.Layout = NewestLayout + 1 },
		"a layout of an older Berth":           func(g *Guest) { g.Hardware.Layout = NewestLayout - 1 },
		"no layout":                            func(g *Guest) { g.Hardware.Layout = -1 },
		"no machine type":                      func(g *Guest) { g.Hardware.Machine = "" },
		"no CPU":                               func(g *Guest) { g.CPU.Cores = 0 },
		"no memory":                            func(g *Guest) { g.Memory = 0 },
		"root":                                 func(g *Guest) { g.UID = 0 },
		"root's group":                         func(g *Guest) { g.GID = 0 },
		"too many disks":                       func(g *Guest) { g.Disks = make([]Disk, MaxDisks+1) },
		"a serial number of the guest program": func(g *Guest) { g.Disks[0].Serial = toolsSerial },
		"a CD-ROM on virtio":                   func(g *Guest) { g.Disks[0] = Disk{Name: "a", CDROM: true, Bus: v1alpha1.BusVirtio} },
		"a medium to guess":                    func(g *Guest) { g.Disks[0] = Disk{Name: "a", CDROM: true, Path: "/a"} },
		"a bus of another machine":             func(g *Guest) { g.Disks[0].Bus = "IDE" },
		"an IO thread on SATA":                 func(g *Guest) { g.Disks[0].Bus, g.Disks[0].IOThread = v1alpha1.BusSATA, true },
		"limits below nothing":                 func(g *Guest) { g.Disks[0].Limits.BurstBytes = -1 },
		"more SATA disks than ports": func(g *Guest) {
			g.Disks = nil
			for range maxSATA + 1 {
				g.Disks = append(g.Disks, Disk{Name: "a", CDROM: true})
			}
		},
		"a format to guess":             func(g *Guest) { g.Disks[0].Backing[0].Format = "" },
		"a disk nowhere":                func(g *Guest) { g.Disks[0].Path = "" },
		"a path that climbs":            func(g *Guest) { g.Disks[0].Path = "/var/../etc/shadow" },
		"a relative path":               func(g *Guest) { g.Seed = "seed.iso" },
		"a long serial":                 func(g *Guest) { g.Disks[0].Name = strings.Repeat("x", 21) },
		"a console nowhere":             func(g *Guest) { g.Console = "" },
		"a console too deep":            func(g *Guest) { g.Console = "/" + strings.Repeat("x", 107) },
		"no port for the guest program": func(g *Guest) { g.GuestPort = "" },
		"an exit port too deep":         func(g *Guest) { g.ExitPort = "/" + strings.Repeat("x", 107) },
		"a display nowhere":             func(g *Guest) { g.Display = &Display{Type: v1alpha1.DisplayVGA} },
		"a display too deep": func(g *Guest) {
			g.Display = &Display{Type: v1alpha1.DisplayVGA, Socket: "/" + strings.Repeat("x", 107)}
		},
		"a display of no type":          func(g *Guest) { g.Display = &Display{Socket: "/run/vnc.sock"} },
		"tools at a path that climbs":   func(g *Guest) { g.Tools = "/var/../tools.iso" },
		"a tap that libvirt would name": func(g *Guest) { g.NIC.Tap = "bt%d" },
		"a tap too long":                func(g *Guest) { g.NIC.Tap = strings.Repeat("x", 16) },
		"a NIC without MAC":             func(g *Guest) { g.NIC.MAC = nil },
		"a line break":                  func(g *Guest) { g.Kernel = &Kernel{Path: "/k", CommandLine: "a\nb"} },
		"a NUL":                         func(g *Guest) { g.Name = "a\x00b" },
		"what is not UTF-8":             func(g *Guest) { g.Name = "\xff" },
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := XML(edited(edit)); err == nil {
				t.Error("no error")
			}
		})
	}
}

// FuzzXML looks for text that leaves its place in the document.
func FuzzXML(f *testing.F) {
	f.Add("shop_web", "web", "console=ttyS0", "root", "/d/root.qcow2", "bt0", "host-model")
	f.Add("a'b", `"/><disk type="file">`, "]]>&lt;", "<!--", "/x<y>/&amp;", "bt&", "</model>")
	f.Fuzz(func(t *testing.T, name, identity, cmdline, serial, path, tap, model string) {
		g := web()
		g.Name, g.Identity.Name, g.CPU.Model, g.NIC.Tap = name, identity, model, tap
		g.Identity.Record = strings.TrimSpace(identity)
		g.Kernel = &Kernel{Path: path, CommandLine: cmdline}
		g.Disks = []Disk{{Name: serial, Path: path, Backing: []Backing{{Path: path, Format: Raw}}}}
		g.Seed = ""
		doc, err := XML(g)
		if err != nil {
			return
		}
		var d libvirtxml.Domain
		if err := d.Unmarshal(doc); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if d.Name != name || d.OS.Kernel != path || d.OS.Cmdline != cmdline || len(d.Devices.Disks) != 1 ||
			d.Devices.Disks[0].Serial != serial || d.Devices.Disks[0].BackingStore.Source.File.File != path || d.QEMUCommandline != nil ||
			d.UUID != g.UUID || len(d.Devices.Interfaces) != 1 || d.Devices.Interfaces[0].Target.Dev != tap ||
			len(d.Devices.Serials) != 1 || d.Devices.Serials[0].Source.UNIX.Path != g.Console {
			t.Fatalf("not what was said:\n%s", doc)
		}
		facts, err := ParseFacts(doc)
		if err != nil {
			t.Fatal(err)
		}
		want := Facts{Name: name, Identity: &g.Identity, Hardware: g.Hardware, AgentPTY: -1}
		if serial != "" {
			want.Disks = []LiveDisk{{Name: serial, Alias: "ua-" + serial, Target: "vda", Bus: v1alpha1.BusVirtio, Path: path}}
		}
		if diff := cmp.Diff(want, facts, seen); diff != "" {
			t.Fatalf("facts (-want +got):\n%s", diff)
		}
	})
}
