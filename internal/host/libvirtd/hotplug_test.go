package libvirtd_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// linux describes a guest that boots the tiny Linux from its kernel, with so many disks, a seed and a NIC.
func linux(t *testing.T, l *env.Libvirt, name string, disks int) domain.Guest {
	t.Helper()
	return linuxOf(t, l, env.Need(t, "BERTH_TINY_GUEST", "the directory of the tiny guest's vmlinuz and initrd"), name, disks)
}

func linuxOf(t *testing.T, l *env.Libvirt, files, name string, disks int) domain.Guest {
	t.Helper()
	g := guest(t, l, name, env.Idle)
	dir := filepath.Dir(g.Console)
	g.Seed = g.Disks[0].Backing[0].Path
	g.Disks = nil
	for i := range disks {
		path := filepath.Join(dir, fmt.Sprintf("d%d.qcow2", i))
		env.EmptyDisk(t, path, l.UID, l.GID)
		g.Disks = append(g.Disks, domain.Disk{Name: fmt.Sprintf("d%d", i), Path: path})
	}
	g.Kernel = &domain.Kernel{CommandLine: "console=ttyS0 quiet no_timer_check"}
	for file, path := range map[string]*string{"vmlinuz": &g.Kernel.Path, "initrd": &g.Kernel.Initrd} {
		raw, err := os.ReadFile(filepath.Join(files, file))
		if err != nil {
			t.Fatal(err)
		}
		*path = filepath.Join(dir, file)
		if err := os.WriteFile(*path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g.Memory, g.TranslationCache = 128<<20, 128<<20
	g.NIC = &domain.NIC{Tap: "bt" + g.UUID[:8], MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	return g
}

// terminal is a guest's serial console.
type terminal struct {
	net.Conn
	t    *testing.T
	read []byte
}

// boot starts a guest and waits until it obeys.
func boot(t *testing.T, c *libvirtd.Client, g domain.Guest) *terminal {
	t.Helper()
	tty := watched(t, c, g)
	tty.await(regexp.MustCompile("tiny: up"))
	return tty
}

// watched starts a guest whose console is watched from its first byte.
func watched(t *testing.T, c *libvirtd.Client, g domain.Guest) *terminal {
	t.Helper()
	create(t, c, g)
	conn, err := net.Dial("unix", g.Console)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := c.Resume(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	return &terminal{Conn: conn, t: t}
}

// await reads on until the guest has said something, and returns it.
func (tty *terminal) await(what *regexp.Regexp) string {
	tty.t.Helper()
	if err := tty.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		tty.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	for {
		if at := what.FindIndex(tty.read); at != nil {
			said := string(tty.read[at[0]:at[1]])
			tty.read = bytes.Clone(tty.read[at[1]:])
			return said
		}
		n, err := tty.Read(buf)
		if err != nil {
			tty.t.Fatalf("waiting for %v after %q: %v", what, tty.read, err)
		}
		tty.read = append(tty.read, buf[:n]...)
	}
}

// sees waits until the guest has these devices and no others.
func (tty *terminal) sees(want string) {
	tty.t.Helper()
	var last string
	defer func() { tty.t.Log(last) }()
	env.Eventually(tty.t, "the guest to see "+want, func() bool {
		if _, err := tty.Write([]byte("devices\n")); err != nil {
			tty.t.Fatal(err)
		}
		last = tty.await(regexp.MustCompile(`tiny: devices [^\r\n]*cpus=[0-9,-]+`))
		return last == "tiny: devices "+want
	})
}

// TestPlug plugs into and unplugs from a running Linux what layout 1 has room for.
func TestPlug(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := linux(t, l, "plug", 1)
	tty := boot(t, c, g)
	const (
		root = "vda=0000:02:09.0"
		seed = "vdb=0000:02:1f.0"
		nic  = "eth0=0000:02:01.0"
	)
	tty.sees(root + " " + seed + " " + nic + " cpus=0")

	dir := filepath.Dir(g.Console)
	env.EmptyDisk(t, filepath.Join(dir, "hot.qcow2"), l.UID, l.GID)
	address := func(slot int) string {
		return fmt.Sprintf(`<address type="pci" domain="0" bus="2" slot="%d" function="0"/>`, slot)
	}
	files := map[string]string{
		"disk.xml": fmt.Sprintf(`<disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="%s/hot.qcow2"/><backingStore/>
			<target dev="vdp" bus="virtio"/><serial>hot</serial>%s</disk>`, dir, address(24)),
		"nic.xml": fmt.Sprintf(`<interface type="ethernet"><mac address="02:00:00:00:00:02"/><target dev="bp%s"/>
			<model type="virtio"/><rom enabled="no"/>%s</interface>`, g.UUID[:8], address(8)),
	}
	for name, doc := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.Virsh("attach-device", g.Name, filepath.Join(dir, "disk.xml"))
	tty.sees(root + " " + seed + " vdc=0000:02:18.0 " + nic + " cpus=0")
	l.Virsh("attach-device", g.Name, filepath.Join(dir, "nic.xml"))
	tty.sees(root + " " + seed + " vdc=0000:02:18.0 " + nic + " eth1=0000:02:08.0 cpus=0")
	l.Virsh("setvcpus", g.Name, "4")
	tty.sees(root + " " + seed + " vdc=0000:02:18.0 " + nic + " eth1=0000:02:08.0 cpus=0-3")
	l.Virsh("detach-device", g.Name, filepath.Join(dir, "disk.xml"))
	tty.sees(root + " " + seed + " " + nic + " eth1=0000:02:08.0 cpus=0-3")
	l.Virsh("detach-device", g.Name, filepath.Join(dir, "nic.xml"))
	tty.sees(root + " " + seed + " " + nic + " cpus=0-3")
}

// TestAddressesStay boots with more disks than TestPlug does: what was there has the addresses, of which udev makes
// names, that it has there.
func TestAddressesStay(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	tty := boot(t, c, linux(t, l, "stay", 4))
	tty.sees("vda=0000:02:09.0 vdb=0000:02:0a.0 vdc=0000:02:0b.0 vdd=0000:02:0c.0 vde=0000:02:1f.0 eth0=0000:02:01.0 cpus=0")
}
