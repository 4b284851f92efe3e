package build

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// The Debian guest's disk, in sectors of 512 bytes: the boot loader with kernel
// and initial RAM disk, then the root file system, which grows with the disk.
const (
	sector    = 512
	bootStart = 2048
	bootSize  = 32 << 20 / sector
	rootStart = bootStart + bootSize
	rootSize  = 1 << 30 / sector
)

// cloud builds a guest like Debian's cloud images, and returns its image's directory.
func (c *Cache) cloud() (string, error) {
	kernel, err := c.kernelPackage()
	if err != nil {
		return "", err
	}
	files, err := embedded("cloud")
	if err != nil {
		return "", err
	}
	return c.part("guest-cloud", fmt.Sprint(filepath.Base(kernel), files), func(dir string) error { return makeCloud(dir, kernel, files) })
}

func makeCloud(dir, kernel string, files map[string][]byte) error {
	// Not in /tmp, which may be a small tmpfs.
	work, err := os.MkdirTemp(filepath.Dir(dir), "guest-cloud-work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	in := func(name string) string { return filepath.Join(work, name) }
	lab := in("lab")
	if err := os.Mkdir(lab, 0o755); err != nil {
		return err
	}
	if err := unpack(files, lab); err != nil {
		return err
	}
	if err := makeRoot(in("root"), lab, kernel, files); err != nil {
		return err
	}
	if err := makeInitrd(in("initrd"), kernel, lab, string(files["modules"])); err != nil {
		return err
	}
	vmlinuz, err := only(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	for _, args := range [][]string{
		{"mkfs.vfat", "-C", "--mbr=n", "-h", fmt.Sprint(bootStart), "boot.raw", fmt.Sprint(bootSize / 2)},
		{"mcopy", "-i", "boot.raw", vmlinuz, "::vmlinuz"},
		{"mcopy", "-i", "boot.raw", "initrd", "lab/syslinux.cfg", "::"},
		{"syslinux", "--install", "boot.raw"},
		{"mke2fs", "-q", "-t", "ext4", "-d", "root", "-L", "root", "-E", "lazy_itable_init=1", "root.raw", fmt.Sprintf("%ds", rootSize)},
	} {
		if err := run(work, nil, args...); err != nil {
			return err
		}
	}
	if err := joinDisk(in("disk.raw"), in("boot.raw"), in("root.raw")); err != nil {
		return err
	}
	if err := run(work, nil, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"); err != nil {
		return err
	}
	img, err := Data([]File{{Path: "/disk/disk.qcow2", From: in("disk.qcow2"), Mode: 0o440, UID: qemuUID}})
	if err != nil {
		return err
	}
	return SaveImage(img, dir)
}

// makeInitrd writes an initial RAM disk that goes on to the real root, by the init in the folder lab.
func makeInitrd(initrd, kernel, lab, wanted string) error {
	modules, err := addModules(kernel, wanted, initrd+".order")
	if err != nil {
		return err
	}
	entries := append([]entry{
		{"bin", "", 0o755}, {"bin/busybox", "/bin/busybox", 0o755}, {"init", filepath.Join(lab, "init"), 0o755},
	}, modules...)
	return writeInitramfs(initrd, entries)
}

// installDebian installs the packages that files name into a directory, and has their setup done there. The folder lab
// has the same files.
func installDebian(root, lab, release string, files map[string][]byte) error {
	args := []string{
		"mmdebstrap", "--mode=root", "--variant=minbase",
		"--include=" + strings.Join(strings.Fields(string(files["packages"])), ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--customize-hook=mkdir $1/lab && cp " + lab + "/* $1/lab/ && chroot $1 /bin/sh /lab/setup && rm -r $1/lab",
		release, root,
	}
	// The machine's own mirror, where it names one.
	for _, sources := range []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"} {
		raw, err := os.ReadFile(sources)
		if err != nil || len(raw) == 0 {
			continue
		}
		own := filepath.Join(filepath.Dir(lab), filepath.Base(sources))
		if err := os.WriteFile(own, bytes.ReplaceAll(raw, []byte(defaultRelease), []byte(release)), 0o644); err != nil {
			return err
		}
		args = append(args, own)
		break
	}
	return run("/", nil, args...)
}

// makeRoot is the root of the Debian guest, with those modules of the kernel that guests need.
func makeRoot(root, lab, kernel string, files map[string][]byte) error {
	if err := installDebian(root, lab, defaultRelease, files); err != nil {
		return err
	}
	folder, modules, err := modulesOf(kernel, string(files["rootmodules"]))
	if err != nil {
		return err
	}
	version := filepath.Base(folder)
	for _, path := range append(modules, "modules.builtin", "modules.builtin.modinfo", "modules.order") {
		to := filepath.Join(root, "lib", "modules", version, path)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		raw, err := os.ReadFile(filepath.Join(folder, path))
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, raw, 0o644); err != nil {
			return err
		}
	}
	return run("/", nil, "/sbin/depmod", "-b", root, version)
}

// joinDisk makes a disk of two partitions with a master boot record.
func joinDisk(disk, boot, root string) (err error) {
	out, err := os.Create(disk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	code, err := os.ReadFile("/usr/lib/SYSLINUX/mbr.bin")
	if err != nil {
		return err
	}
	if _, err := out.Write(bootRecord(code)); err != nil {
		return err
	}
	for path, start := range map[string]int64{boot: bootStart, root: rootStart} {
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		if _, err := out.Seek(start*sector, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	return nil
}

// bootRecord is a disk's first sector: code, and a table of both partitions.
func bootRecord(code []byte) []byte {
	record := make([]byte, sector)
	copy(record[:440], code)
	for i, p := range []struct {
		flag, kind  byte
		start, size uint32
	}{
		{0x80, 0x0c, bootStart, bootSize}, // active, FAT by block address
		{0x00, 0x83, rootStart, rootSize}, // Linux
	} {
		e := record[446+16*i:]
		e[0], e[4] = p.flag, p.kind
		copy(e[1:4], []byte{0xfe, 0xff, 0xff}) // beyond what cylinders can tell
		copy(e[5:8], []byte{0xfe, 0xff, 0xff})
		binary.LittleEndian.PutUint32(e[8:], p.start)
		binary.LittleEndian.PutUint32(e[12:], p.size)
	}
	record[510], record[511] = 0x55, 0xaa
	return record
}
