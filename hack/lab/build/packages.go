package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
)

// debianPackage is one that a lab needs, and why.
type debianPackage struct{ name, reason string }

var debianPackages = []debianPackage{
	{"libvirt-daemon-system", "the libvirtd of each node"},
	{"libvirt-clients", "virsh, to look at it"},
	{"qemu-system-x86", "the guests"},
	{"qemu-utils", "their disks"},
	{"iproute2", "looking at networks"},
	{"nftables", "kube-proxy"},
	{"kmod", "kernel modules, where they are not loaded"},
	{"e2fsprogs", "file systems of test guests"},
	{"xfsprogs", "file systems of volumes: xfs can grow on every machine, ext4 wants CAP_SYS_RESOURCE"},
	{"busybox-static", "the tiny test guest"},
	{"syslinux", "booting it from a disk"},
	{"mtools", "filling that disk"},
	{"dosfstools", "formatting that disk"},
	{"mmdebstrap", "the Debian test guest"},
	{"udhcpc", "a DHCP client of guests, which tests hold the shim's server against"},
	{"isc-dhcp-client", "another one"},
	{"genisoimage", "isoinfo, which tests ask about seeds"},
	{"openssh-client", "logging in to a guest"},
	{"jq", "reading what the API server answers, in the demo"},
	{"procps", "finding processes in tests"},
	{"tmux", "a terminal that a test types into"},
	{"gcc", "building runc and the tiny guest's Linux"},
	{"libc6-dev", "building them"},
	{"flex", "building Linux"},
	{"bison", "building Linux"},
	{"bc", "building Linux"},
	{"libelf-dev", "building Linux"},
	{"xz-utils", "unpacking it"},
	{"libseccomp-dev", "building runc"},
	{"pkg-config", "building runc"},
}

// policyPath is asked by Debian's maintainer scripts before they start a daemon.
const policyPath = "/usr/sbin/policy-rc.d"

// Packages installs what a lab lacks.
func (c *Cache) Packages() error { return c.install(debianPackages) }

// Chromium installs the browser that a test drives: it is as large as all others together, so that a lab does without.
func (c *Cache) Chromium() error {
	return c.install([]debianPackage{{"chromium", "a browser that a test types into"}})
}

// install installs what is missing, and starts no daemon by that.
func (c *Cache) install(packages []debianPackage) error {
	installed := map[string]bool{}
	// The command fails when it does not know one of them; the others are listed all the same.
	out, _ := exec.Command("dpkg-query", "-W", "-f", "${binary:Package} ${Status}\n").Output()
	for line := range strings.Lines(string(out)) {
		name, status, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, _, _ = strings.Cut(name, ":")
		installed[name] = installed[name] || status == "install ok installed"
	}
	var missing []string
	for _, p := range packages {
		if !installed[p.name] {
			c.Say("install Debian package %s: %s", p.name, p.reason)
			missing = append(missing, p.name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("no apt-get here; the lab needs Debian 12 or later, or these packages: %s", strings.Join(missing, " "))
	}
	policy, err := os.OpenFile(policyPath, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	switch {
	case err == nil:
		defer os.Remove(policyPath)
		_, err = policy.WriteString("#!/bin/sh\nexit 101\n")
		if err := errors.Join(err, policy.Close()); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist): // the machine may have a policy of its own
		return err
	}
	env := []string{"DEBIAN_FRONTEND=noninteractive"}
	return c.Step("install Debian packages", func() error {
		if err := run("/", env, "apt-get", "update", "-qq"); err != nil {
			return err
		}
		return run("/", env, append([]string{"apt-get", "install", "-y", "-qq", "--no-install-recommends"}, missing...)...)
	})
}
