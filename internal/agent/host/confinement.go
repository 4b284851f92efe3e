package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// checkConfinement says what of libvirt's confinement QEMU goes without on this host. Its own user it has always.
func checkConfinement(conf file, facts libvirtd.HostFacts, known bool) []check {
	seccomp := check{name: "SeccompSandbox", unknown: conf.err != nil}
	if setting(conf.text, "seccomp_sandbox") == "0" { // without the line libvirt has QEMU use it
		seccomp.message = "QEMU runs without its seccomp sandbox, so a guest that breaks out of it has all system calls: remove seccomp_sandbox = 0 from /etc/libvirt/qemu.conf, restart libvirtd, and restart the guests"
	}
	driver := check{name: "SecurityDriver", unknown: conf.err != nil || !known}
	switch {
	case setting(conf.text, "security_default_confined") == "0":
		driver.message = "libvirt leaves QEMU unconfined by AppArmor and SELinux: remove security_default_confined = 0 from /etc/libvirt/qemu.conf, restart libvirtd, and restart the guests"
	case !slices.Contains(facts.SecurityModels, "apparmor") && !slices.Contains(facts.SecurityModels, "selinux"):
		driver.message = fmt.Sprintf("libvirt confines QEMU neither by AppArmor nor by SELinux (its security models are %s), so only users and seccomp hold a guest that breaks out of it: boot this host with AppArmor, install its profiles for libvirt, remove security_driver from /etc/libvirt/qemu.conf, and restart libvirtd",
			strings.Join(facts.SecurityModels, ", "))
	}
	return []check{seccomp, driver}
}

// unconfined says what of a host's confinement is missing, or cannot be seen, "" if all is there.
func unconfined(checks []check) string {
	var missing []string
	for _, c := range checks {
		switch {
		case c.unknown:
			missing = append(missing, c.name+" cannot be read from /etc/libvirt/qemu.conf and libvirt's capabilities")
		case c.message != "":
			missing = append(missing, c.message)
		}
	}
	return strings.Join(missing, "; ")
}

// setting is the value of a number in one of libvirt's configuration files, "" if it is not set.
func setting(conf, key string) string {
	for line := range strings.Lines(conf) {
		name, value, is := strings.Cut(line, "=")
		if is && strings.TrimSpace(name) == key {
			value, _, _ = strings.Cut(value, "#")
			return strings.TrimSpace(value)
		}
	}
	return ""
}
