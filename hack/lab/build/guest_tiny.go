package build

import (
	"fmt"
	"os"
	"path/filepath"
)

// Tiny builds the tiny guest and returns its directory: vmlinuz and initrd, and
// what tiny finds there.
func (c *Cache) Tiny() (string, error) {
	files, err := embedded("tiny")
	if err != nil {
		return "", err
	}
	kernel, err := c.tinyKernel(files["kernel.config"])
	if err != nil {
		return "", err
	}
	return c.part("guest-tiny", fmt.Sprint(filepath.Base(kernel), files), func(dir string) error { return makeTiny(dir, filepath.Join(kernel, "vmlinuz"), files) })
}

// tiny returns its images' directories: one that boots from its disk, one of
// its kernel alone.
func (c *Cache) tiny() (map[string]string, error) {
	dir, err := c.Tiny()
	if err != nil {
		return nil, err
	}
	return map[string]string{ImageTiny: filepath.Join(dir, "disk"), ImageKernel: filepath.Join(dir, "kernel")}, nil
}

func makeTiny(dir, vmlinuz string, files map[string][]byte) error {
	work, err := os.MkdirTemp("", "berth-tiny-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := unpack(files, work); err != nil {
		return err
	}
	in := func(name string) string { return filepath.Join(work, name) }
	entries := []entry{
		{"bin", "", 0o755},
		{"bin/busybox", "/bin/busybox", 0o755},
		{"dev", "", 0o755},
		{"etc", "", 0o755},
		{"etc/udhcpc", in("udhcpc"), 0o755},
		{"etc/console", in("console"), 0o755},
		{"etc/end", in("end"), 0o755},
		{"etc/acpi", "", 0o755},
		{"etc/acpi/PWRF", "", 0o755},
		{"etc/acpi/PWRF/00000080", in("power"), 0o755},
		{"init", in("init"), 0o755},
	}
	if err := writeInitramfs(in("initrd"), entries); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.vfat", "-C", "disk.raw", "32768"},
		{"mcopy", "-i", "disk.raw", vmlinuz, "::vmlinuz"},
		{"mcopy", "-i", "disk.raw", "initrd", "syslinux.cfg", "::"},
		{"syslinux", "--install", "disk.raw"},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"},
		{"cp", vmlinuz, filepath.Join(dir, "vmlinuz")},
		{"cp", "initrd", filepath.Join(dir, "initrd")},
	} {
		if err := run(work, nil, args...); err != nil {
			return err
		}
	}
	for name, contents := range map[string][]File{
		"disk":   {{Path: "/disk/disk.qcow2", From: in("disk.qcow2"), Mode: 0o440, UID: qemuUID}},
		"kernel": {{Path: "/boot/vmlinuz", From: vmlinuz, Mode: 0o644}, {Path: "/boot/initrd", From: in("initrd"), Mode: 0o644}},
	} {
		img, err := Data(contents)
		if err != nil {
			return err
		}
		if err := SaveImage(img, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
