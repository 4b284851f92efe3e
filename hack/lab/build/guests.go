package build

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed tiny
var tinyFiles embed.FS

// suite of Debian that guests are made of. Raising it, or the number after it, makes them anew.
const suite = "bookworm/2"

// qemuUID owns the disk in a container disk, by KubeVirt's convention.
const qemuUID = 107

// Guest images, by the name of the variable that tells tests where they are.
const (
	ImageTiny   = "LAB_IMAGE_TINY"
	ImageKernel = "LAB_IMAGE_KERNEL"
	ImageCloud  = "LAB_IMAGE_CLOUD"
)

// kernelPackage unpacks Debian's kernel for virtual machines: boot/ and lib/modules/.
func (c *Cache) kernelPackage() (string, error) {
	return c.part("guest-kernel", suite, func(dir string) error {
		const meta = "linux-image-cloud-amd64"
		return run(dir, nil, "sh", "-ec", `
			apt-get download -qq "$(apt-cache depends `+meta+` | sed -n 's/^ *Depends: //p')"
			dpkg -x *.deb .
			rm *.deb
			/sbin/depmod -b . "$(ls lib/modules)"
		`)
	})
}

// embedded reads every file of a folder: its contents by name.
func embedded(files fs.ReadDirFS, folder string) (map[string][]byte, error) {
	all := map[string][]byte{}
	entries, err := files.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if all[e.Name()], err = fs.ReadFile(files, folder+"/"+e.Name()); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// unpack writes embedded files into a directory.
func unpack(files map[string][]byte, dir string) error {
	for name, raw := range files {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Guests builds the test guests and returns their images' directories, by the
// variables that name them.
func (c *Cache) Guests() (map[string]string, error) {
	return c.tiny()
}

// tiny builds the tiny guest and returns its images' directories: one that
// boots from its disk, one of its kernel alone.
func (c *Cache) tiny() (map[string]string, error) {
	kernel, err := c.kernelPackage()
	if err != nil {
		return nil, err
	}
	files, err := embedded(tinyFiles, "tiny")
	if err != nil {
		return nil, err
	}
	dir, err := c.part("guest-tiny", fmt.Sprint(kernel, files), func(dir string) error { return makeTiny(dir, kernel, files) })
	if err != nil {
		return nil, err
	}
	return map[string]string{ImageTiny: filepath.Join(dir, "disk"), ImageKernel: filepath.Join(dir, "kernel")}, nil
}

func makeTiny(dir, kernel string, files map[string][]byte) error {
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
		{"bin", "", 0o755}, {"bin/busybox", "/bin/busybox", 0o755}, {"dev", "", 0o755},
		{"etc", "", 0o755}, {"etc/udhcpc", in("udhcpc"), 0o755}, {"etc/console", in("console"), 0o755},
		{"etc/acpi", "", 0o755}, {"etc/acpi/PWRF", "", 0o755}, {"etc/acpi/PWRF/00000080", in("power"), 0o755},
		{"init", in("init"), 0o755}, {"modules", "", 0o755}, {"modules/order", in("order"), 0o644},
	}
	modules, err := filepath.Glob(filepath.Join(kernel, "lib", "modules", "*"))
	if err != nil || len(modules) != 1 {
		return fmt.Errorf("looking for the kernel's modules in %s: found %q", kernel, modules)
	}
	dep, err := os.ReadFile(filepath.Join(modules[0], "modules.dep"))
	if err != nil {
		return err
	}
	order, err := moduleOrder(string(dep), strings.Fields(string(files["modules"])))
	if err != nil {
		return err
	}
	var names strings.Builder
	for _, path := range order {
		fmt.Fprintln(&names, filepath.Base(path))
		entries = append(entries, entry{"modules/" + filepath.Base(path), filepath.Join(modules[0], path), 0o644})
	}
	if err := os.WriteFile(in("order"), []byte(names.String()), 0o644); err != nil {
		return err
	}
	if err := writeInitramfs(in("initrd"), entries); err != nil {
		return err
	}
	vmlinuz, err := filepath.Glob(filepath.Join(kernel, "boot", "vmlinuz-*"))
	if err != nil || len(vmlinuz) != 1 {
		return fmt.Errorf("looking for the kernel in %s: found %q", kernel, vmlinuz)
	}
	for _, args := range [][]string{
		{"mkfs.vfat", "-C", "disk.raw", "32768"},
		{"mcopy", "-i", "disk.raw", vmlinuz[0], "::vmlinuz"},
		{"mcopy", "-i", "disk.raw", "initrd", "syslinux.cfg", "::"},
		{"syslinux", "--install", "disk.raw"},
		{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"},
	} {
		if err := run(work, nil, args...); err != nil {
			return err
		}
	}
	for name, contents := range map[string][]File{
		"disk":   {{Path: "/disk/disk.qcow2", From: in("disk.qcow2"), Mode: 0o440, UID: qemuUID}},
		"kernel": {{Path: "/boot/vmlinuz", From: vmlinuz[0], Mode: 0o644}, {Path: "/boot/initrd", From: in("initrd"), Mode: 0o644}},
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

// moduleOrder lists the files of wanted modules and of what they depend on, in
// the order in which they can be loaded. dep is a modules.dep(5).
func moduleOrder(dep string, wanted []string) ([]string, error) {
	needs := map[string][]string{} // by path
	paths := map[string]string{}   // by name
	for line := range strings.Lines(dep) {
		path, rest, found := strings.Cut(strings.TrimSpace(line), ":")
		if found {
			needs[path] = strings.Fields(rest)
			paths[strings.TrimSuffix(filepath.Base(path), ".ko")] = path
		}
	}
	var order []string
	for _, name := range wanted {
		path, found := paths[name]
		if !found {
			return nil, fmt.Errorf("the kernel has no module %s", name)
		}
		// The nearest dependency stands first, so load them from the end.
		all := append([]string{path}, needs[path]...)
		slices.Reverse(all)
		for _, p := range all {
			if !slices.Contains(order, p) {
				order = append(order, p)
			}
		}
	}
	return order, nil
}
