package build

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// tinyKernel compiles Linux with what tiny guests use and nothing else, and returns the directory of its vmlinuz. Guests are
// often emulated, where Debian's own takes three times as long to boot, and it does not boot in 64 MiB at all.
func (c *Cache) tinyKernel(config []byte) (string, error) {
	return c.part("guest-tiny-kernel", suite+string(config), func(dir string) error {
		path := filepath.Join(dir, "config")
		if err := os.WriteFile(path, config, 0o644); err != nil {
			return err
		}
		return run(dir, nil, "sh", "-ec", `
			apt-get download -qq "$(apt-cache depends linux-source | sed -n 's/^ *Depends: //p')"
			mkdir linux
			dpkg --fsys-tarfile linux-source-*.deb | tar -xO --wildcards './usr/src/linux-source-*.tar.xz' | xz -dc | tar -x -C linux --strip-components=1
			make -s -C linux KCONFIG_ALLCONFIG=../config allnoconfig
			if grep ^CONFIG_ config | grep -vxFf linux/.config; then
				echo "are not taken: this Linux does not know them, or not without others"
				exit 1
			fi
			make -s -C linux -j"$(nproc)" bzImage
			mv linux/arch/x86/boot/bzImage vmlinuz
			rm -r linux linux-source-*.deb
		`)
	})
}

// only returns the one file that matches a pattern.
func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("looking for %s: found %q instead of one", pattern, found)
	}
	return found[0], nil
}

// modulesOf returns the folder of a kernel's modules, and the files of the
// wanted ones below it, in order of loading.
func modulesOf(kernel, wanted string) (string, []string, error) {
	folder, err := only(filepath.Join(kernel, "lib", "modules", "*"))
	if err != nil {
		return "", nil, err
	}
	dep, err := os.ReadFile(filepath.Join(folder, "modules.dep"))
	if err != nil {
		return "", nil, err
	}
	order, err := moduleOrder(string(dep), strings.Fields(wanted))
	return folder, order, err
}

// addModules lists wanted modules for an initial RAM disk, with a file that
// tells their order and is written to orderPath.
func addModules(kernel, wanted, orderPath string) ([]entry, error) {
	folder, order, err := modulesOf(kernel, wanted)
	if err != nil {
		return nil, err
	}
	entries := []entry{{"modules", "", 0o755}, {"modules/order", orderPath, 0o644}}
	var names strings.Builder
	for _, path := range order {
		name := filepath.Base(path)
		fmt.Fprintln(&names, name)
		entries = append(entries, entry{"modules/" + name, filepath.Join(folder, path), 0o644})
	}
	return entries, os.WriteFile(orderPath, []byte(names.String()), 0o644)
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
