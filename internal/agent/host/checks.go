package host

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// check is one thing that may be misconfigured on a host.
type check struct {
	name    string
	unknown error  // why it cannot be read now. What was reported of it stays.
	message string // what is wrong and how to fix it, "" if all is well
}

// when is a message if something is so, else "".
func when(is bool, message string, args ...any) string {
	if !is {
		return ""
	}
	return fmt.Sprintf(message, args...)
}

// problems lists what is wrong, in the order of the checks.
func problems(checks []check, old []v1alpha1.HostProblem) []v1alpha1.HostProblem {
	var list []v1alpha1.HostProblem
	for _, c := range checks {
		switch {
		case c.unknown != nil:
			if i := slices.IndexFunc(old, func(p v1alpha1.HostProblem) bool { return p.Name == c.name }); i >= 0 {
				list = append(list, old[i])
			}
		case c.message != "":
			list = append(list, v1alpha1.HostProblem{Name: c.name, Message: c.message})
		}
	}
	return list
}

// checks tells how the host is configured, as far as it can be seen from here. An absent kubelet is unknown, too: it restarts,
// or is inside of another process.
func (r *Reconciler) checks(seen *snapshot, cpus int32) []check {
	const maxNamed = 5 // foreign domains
	running, config, kubeletErr := seen.foreignRunning, seen.kubelet, seen.kubeletErr
	// The threads of a guest as large as the host: one for each vCPU, 64 for each of four disks, 256 besides.
	leastPIDs := int64(cpus) + 4*64 + 256
	factsErr := seen.factsErr
	if !seen.factsKnown {
		factsErr = errors.New("libvirt has not told yet")
	}
	list := append([]check{
		{name: "CgroupControllers", unknown: seen.qemuConf.err, message: when(!limitsControllers(seen.qemuConf.text),
			`libvirt loses a guest's CPU controls when it moves into its berth: set cgroup_controllers = [ "devices", "memory", "blkio" ] in /etc/libvirt/qemu.conf and restart libvirtd; other domains of this host then keep all limits but those of CPU`)},
	}, checkConfinement(seen.qemuConf, seen.facts, factsErr)...)
	return append(list,
		check{name: "ShutdownGracePeriod", unknown: kubeletErr, message: cmp.Or(
			when(config.ShutdownGrace == 0,
				"kubelet does not wait for pods when this host shuts down, so guests lose their power: set shutdownGracePeriod to the longest grace period of a guest and some more (3m), and shutdownGracePeriodCriticalPods (30s), in kubelet's configuration"),
			when(config.ShutdownGraceCritical == 0,
				"kubelet leaves critical pods no time when this host shuts down, so Berth's agent may end before its guests have powered off: set shutdownGracePeriodCriticalPods (30s) in kubelet's configuration"),
		)},
		check{name: "SingleProcessOOMKill", unknown: kubeletErr, message: when(config.SingleProcessOOMKill,
			"a berth out of memory may lose its shim and keep QEMU, or the reverse: set singleProcessOOMKill to false in kubelet's configuration")},
		check{name: "PodPidsLimit", unknown: kubeletErr, message: when(config.PodPIDs > 0 && config.PodPIDs < leastPIDs,
			"kubelet lets a pod have %d processes and threads, and QEMU ends when it gets none: set podPidsLimit to %d or more in kubelet's configuration", config.PodPIDs, leastPIDs)},
		check{name: "ForeignDomains", unknown: seen.foreignErr, message: when(len(running) > 0,
			"%d running domains of this host are not Berth's (%s): Kubernetes counts their memory and CPUs as free: move them, or reserve for them by systemReserved in kubelet's configuration",
			len(running), strings.Join(running[:min(len(running), maxNamed)], ", "))},
		r.checkCPU(seen.cpuinfo),
		check{name: "CgroupV1", message: when(!r.UnifiedCgroups,
			"cgroup v1 is supported for development only: boot this host with systemd.unified_cgroup_hierarchy=1")},
		check{name: "SELinux", unknown: seen.selinux.err, message: when(strings.TrimSpace(seen.selinux.text) == "1",
			"SELinux is enforcing, which Berth does not support: it has no policy, so guests may be denied their disks; run guests on hosts without SELinux")},
		checkVolumes(seen.volumesErr),
	)
}

// limitsControllers reads from a qemu.conf whether libvirt leaves the cpu controllers alone.
func limitsControllers(conf string) bool {
	_, rest, found := strings.Cut("\n"+conf, "\ncgroup_controllers")
	list, _, _ := strings.Cut(rest, "]")
	return found && !strings.Contains(list, `"cpu"`) && !strings.Contains(list, `"cpuset"`) && !strings.Contains(list, `"cpuacct"`)
}

// checkConfinement says what of libvirt's confinement QEMU goes without on this host. Its own user it has always.
func checkConfinement(conf file, facts libvirtd.HostFacts, factsErr error) []check {
	return []check{
		{name: "SeccompSandbox", unknown: conf.err, message: when(setting(conf.text, "seccomp_sandbox") == "0", // without the line libvirt has QEMU use it
			"QEMU runs without its seccomp sandbox, so a guest that breaks out of it has all system calls: remove seccomp_sandbox = 0 from /etc/libvirt/qemu.conf, restart libvirtd, and restart the guests")},
		{name: "SecurityDriver", unknown: cmp.Or(conf.err, factsErr), message: cmp.Or(
			when(setting(conf.text, "security_default_confined") == "0",
				"libvirt leaves QEMU unconfined by AppArmor and SELinux: remove security_default_confined = 0 from /etc/libvirt/qemu.conf, restart libvirtd, and restart the guests"),
			when(!slices.Contains(facts.SecurityModels, "apparmor") && !slices.Contains(facts.SecurityModels, "selinux"),
				"libvirt confines QEMU neither by AppArmor nor by SELinux (its security models are %s), so only users and seccomp hold a guest that breaks out of it: boot this host with AppArmor, install its profiles for libvirt, remove security_driver from /etc/libvirt/qemu.conf, and restart libvirtd", strings.Join(facts.SecurityModels, ", ")),
		)},
	}
}

// unconfined says what of a host's confinement is missing, or cannot be seen, "" if all is there.
func unconfined(checks []check) string {
	var missing []string
	for _, c := range checks {
		switch {
		case c.unknown != nil:
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

// checkCPU says what the host's CPUs are to guests.
func (r *Reconciler) checkCPU(cpuinfo file) check {
	if r.Acceleration == v1alpha1.AccelerationEmulation {
		return check{name: "Emulation", message: "guests are emulated, many times slower than by KVM: on machines with a usable /dev/kvm set agent.acceleration to KVM"}
	}
	_, flags, _ := strings.Cut("\n"+cpuinfo.text, "\nflags")
	flags, _, _ = strings.Cut(flags, "\n")
	return check{name: "NestedVirtualization", unknown: cpuinfo.err, message: when(slices.Contains(strings.Fields(flags), "hypervisor"),
		"this host is a virtual machine itself: guests are slower here, and all of them stop with it; use bare metal for production")}
}

// checkVolumes tells why guests get no volumes of claims here.
func checkVolumes(err error) check {
	name := string(v1alpha1.ReasonMountsNotShared)
	if fault.ClassOf(err) == fault.User {
		return check{name: name, message: "guests with claims do not start here: " + err.Error()}
	}
	return check{name: name, unknown: err}
}
