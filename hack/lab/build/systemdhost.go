package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Releases of Debian that a host with systemd and cgroup v2 can be made of, the default first.
var Releases = []string{defaultRelease, "trixie"}

// systemdHostSize is that of the host's disk: the system, images of pods and guests.
const systemdHostSize = "8G"

// SystemdHost builds the system of a host with systemd and cgroup v2: Debian with libvirt and QEMU. It returns a
// directory that holds vmlinuz, initrd and disk.qcow2.
func (c *Cache) SystemdHost(release string) (string, error) {
	kernel, err := c.kernelPackage()
	if err != nil {
		return "", err
	}
	files, err := embedded("systemdhost")
	if err != nil {
		return "", err
	}
	guest, err := embedded("cloud")
	if err != nil {
		return "", err
	}
	// Its initial RAM disk is the Debian guest's, but for a disk without partitions.
	files["init"] = []byte(strings.ReplaceAll(string(guest["init"]), "/dev/vda2", "/dev/vda"))
	files["modules"] = guest["modules"]
	key := fmt.Sprint(filepath.Base(kernel), files, systemdHostSize)
	return c.part("systemd-host-"+release, key, func(dir string) error { return makeSystemdHost(dir, kernel, release, files) })
}

func makeSystemdHost(dir, kernel, release string, files map[string][]byte) error {
	work, err := os.MkdirTemp(filepath.Dir(dir), "systemd-host-work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	in := func(name string) string { return filepath.Join(work, name) }
	if err := os.Mkdir(in("lab"), 0o755); err != nil {
		return err
	}
	if err := unpack(files, in("lab")); err != nil {
		return err
	}
	if err := makeInitrd(in("initrd"), kernel, in("lab"), string(files["modules"])); err != nil {
		return err
	}
	if err := installDebian(in("root"), in("lab"), release, files); err != nil {
		return err
	}
	vmlinuz, err := only(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	modules, err := only(filepath.Join(kernel, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkdir", "-p", "root/lib/modules"},
		{"cp", "-a", modules, "root/lib/modules/"},
		{"mke2fs", "-q", "-t", "ext4", "-d", "root", "-E", "lazy_itable_init=1", "disk.raw", systemdHostSize},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", filepath.Join(dir, "disk.qcow2")},
		{"cp", vmlinuz, filepath.Join(dir, "vmlinuz")},
		{"cp", "initrd", filepath.Join(dir, "initrd")},
	} {
		if err := run(work, nil, args...); err != nil {
			return err
		}
	}
	return nil
}
