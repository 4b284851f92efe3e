package host

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/kubelet"
)

// check is one thing that may be misconfigured on a host: what is wrong and how to fix it, "" if all is well.
type check struct {
	name    string
	message string
	// unknown: it cannot be read now. What was reported of it stays.
	unknown bool
}

// problems lists what is wrong, in the order of the checks.
func problems(checks []check, old []v1alpha1.HostProblem) []v1alpha1.HostProblem {
	var list []v1alpha1.HostProblem
	for _, c := range checks {
		switch {
		case c.unknown:
			if i := slices.IndexFunc(old, func(p v1alpha1.HostProblem) bool { return p.Name == c.name }); i >= 0 {
				list = append(list, old[i])
			}
		case c.message != "":
			list = append(list, v1alpha1.HostProblem{Name: c.name, Message: c.message})
		}
	}
	return list
}

// checks tells how the host is configured, as far as it can be seen from here.
func (r *Reconciler) checks(seen *snapshot, cpus int32) []check {
	list := []check{checkControllers(seen.qemuConf.text, seen.qemuConf.err)}
	list = append(list, checkConfinement(seen.qemuConf, seen.facts, seen.factsKnown && seen.factsErr == nil)...)
	list = append(list, checkKubelet(seen.kubelet, seen.kubeletErr, cpus)...)
	return append(list,
		checkForeignDomains(seen.foreignRunning, seen.foreignErr), checkCPU(seen.cpuinfo.text, seen.cpuinfo.err, r.Acceleration),
		checkCgroups(r.UnifiedCgroups), checkSELinux(seen.selinux.text, seen.selinux.err), checkVolumes(seen.volumesErr))
}

func checkControllers(conf string, err error) check {
	c := check{name: "CgroupControllers", unknown: err != nil}
	if !limitsControllers(conf) {
		c.message = `libvirt loses a guest's CPU controls when it moves into its berth: set cgroup_controllers = [ "devices", "memory", "blkio" ] in /etc/libvirt/qemu.conf and restart libvirtd; other domains of this host then keep all limits but those of CPU`
	}
	return c
}

// limitsControllers reads from a qemu.conf whether libvirt leaves the cpu controllers alone.
func limitsControllers(conf string) bool {
	_, rest, found := strings.Cut("\n"+conf, "\ncgroup_controllers")
	list, _, _ := strings.Cut(rest, "]")
	return found && !strings.Contains(list, `"cpu"`) && !strings.Contains(list, `"cpuset"`) && !strings.Contains(list, `"cpuacct"`)
}

// checkKubelet reads what kubelet's configuration means for guests. An absent kubelet is unknown, too: it restarts, or is
// inside of another process.
func checkKubelet(config kubelet.Config, err error, cpus int32) []check {
	shutdown, oom, pids := check{name: "ShutdownGracePeriod", unknown: err != nil}, check{name: "SingleProcessOOMKill", unknown: err != nil}, check{name: "PodPidsLimit", unknown: err != nil}
	switch {
	case config.ShutdownGrace == 0:
		shutdown.message = "kubelet does not wait for pods when this host shuts down, so guests lose their power: set shutdownGracePeriod to the longest grace period of a guest and some more (3m), and shutdownGracePeriodCriticalPods (30s), in kubelet's configuration"
	case config.ShutdownGraceCritical == 0:
		shutdown.message = "kubelet leaves critical pods no time when this host shuts down, so Berth's agent may end before its guests have powered off: set shutdownGracePeriodCriticalPods (30s) in kubelet's configuration"
	}
	if config.SingleProcessOOMKill {
		oom.message = "a berth out of memory may lose its shim and keep QEMU, or the reverse: set singleProcessOOMKill to false in kubelet's configuration"
	}
	if least := leastPIDs(cpus); config.PodPIDs > 0 && config.PodPIDs < least {
		pids.message = fmt.Sprintf("kubelet lets a pod have %d processes and threads, and QEMU ends when it gets none: set podPidsLimit to %d or more in kubelet's configuration", config.PodPIDs, least)
	}
	return []check{shutdown, oom, pids}
}

// leastPIDs are the threads of a guest as large as the host: one for each vCPU, 64 for each of four disks, 256 besides.
func leastPIDs(cpus int32) int64 { return int64(cpus) + 4*64 + 256 }

// checkForeignDomains says what running domains that are not Berth's mean for Kubernetes.
func checkForeignDomains(running []string, err error) check {
	c := check{name: "ForeignDomains", unknown: err != nil}
	if len(running) > 0 {
		const maxNamed = 5
		c.message = fmt.Sprintf("%d running domains of this host are not Berth's (%s): Kubernetes counts their memory and CPUs as free: move them, or reserve for them by systemReserved in kubelet's configuration",
			len(running), strings.Join(running[:min(len(running), maxNamed)], ", "))
	}
	return c
}

// checkCPU says what the host's CPUs are to guests.
func checkCPU(cpuinfo string, err error, acceleration v1alpha1.Acceleration) check {
	c := check{name: "NestedVirtualization", unknown: err != nil}
	_, flags, _ := strings.Cut("\n"+cpuinfo, "\nflags")
	flags, _, _ = strings.Cut(flags, "\n")
	switch {
	case acceleration == v1alpha1.AccelerationEmulation:
		c.name, c.unknown = "Emulation", false
		c.message = "guests are emulated, many times slower than by KVM: on machines with a usable /dev/kvm set agent.acceleration to KVM"
	case slices.Contains(strings.Fields(flags), "hypervisor"):
		c.message = "this host is a virtual machine itself: guests are slower here, and all of them stop with it; use bare metal for production"
	}
	return c
}

func checkCgroups(unified bool) check {
	c := check{name: "CgroupV1"}
	if !unified {
		c.message = "cgroup v1 is supported for development only: boot this host with systemd.unified_cgroup_hierarchy=1"
	}
	return c
}

func checkSELinux(enforce string, err error) check {
	c := check{name: "SELinux", unknown: err != nil}
	if strings.TrimSpace(enforce) == "1" {
		c.message = "SELinux is enforcing, which Berth does not support: it has no policy, so guests may be denied their disks; run guests on hosts without SELinux"
	}
	return c
}

// checkVolumes tells why guests get no volumes of claims here.
func checkVolumes(err error) check {
	c := check{name: string(v1alpha1.ReasonMountsNotShared)}
	switch {
	case err == nil:
	case fault.ClassOf(err) == fault.User:
		c.message = "guests with claims do not start here: " + err.Error()
	default:
		c.unknown = true
	}
	return c
}
