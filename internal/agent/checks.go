package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/kubelet"
)

// check is one thing that may be misconfigured on a host: what is wrong and how to mend it, "" if all is well.
type check struct {
	name  string
	wrong string
	// unknown: it cannot be seen now. What was known of it stands.
	unknown bool
}

// problems lists what is wrong, in the order of the checks.
func problems(checks []check, had []v1alpha1.HostProblem) []v1alpha1.HostProblem {
	var list []v1alpha1.HostProblem
	for _, c := range checks {
		switch {
		case c.unknown:
			for _, old := range had {
				if old.Name == c.name {
					list = append(list, old)
				}
			}
		case c.wrong != "":
			list = append(list, v1alpha1.HostProblem{Name: c.name, Message: c.wrong})
		}
	}
	return list
}

// checks looks at how the host is configured, as far as it can be seen from here.
func (a *Agent) checks(ctx context.Context, s *v1alpha1.VirtualMachineHostStatus) []check {
	root, rootErr := a.libvirt.Root()
	list := []check{a.checkControllers(root, rootErr)}
	config, err := kubelet.Read()
	list = append(list, checkKubelet(config, err, s.CPUs)...)
	list = append(list, a.checkDomains(ctx))
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	list = append(list, checkCPU(string(cpuinfo), err, a.Acceleration))
	enforce, err := os.ReadFile(filepath.Join(root, "sys/fs/selinux/enforce"))
	return append(list, checkCgroups(a.cgroups.Unified()), checkSELinux(string(enforce), errors.Join(rootErr, ignoreAbsent(err))))
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func (a *Agent) checkControllers(root string, err error) check {
	c := check{name: "CgroupControllers", unknown: err != nil}
	if c.unknown {
		return c
	}
	raw, err := os.ReadFile(filepath.Join(root, "etc/libvirt/qemu.conf"))
	c.unknown = ignoreAbsent(err) != nil
	if !limitsControllers(string(raw)) {
		c.wrong = `libvirt loses a guest's CPU controls when it moves into its berth: set cgroup_controllers = [ "devices", "memory", "blkio" ] in /etc/libvirt/qemu.conf and restart libvirtd; other domains of this host then keep all limits but those of CPU`
	}
	return c
}

// limitsControllers reads from a qemu.conf whether libvirt leaves the cpu controllers alone.
func limitsControllers(conf string) bool {
	_, rest, found := strings.Cut("\n"+conf, "\ncgroup_controllers")
	if !found {
		return false
	}
	list, _, _ := strings.Cut(rest, "]")
	return !strings.Contains(list, `"cpu"`) && !strings.Contains(list, `"cpuset"`) && !strings.Contains(list, `"cpuacct"`)
}

// checkKubelet reads what kubelet's configuration means for guests. Where there is no kubelet of a known kind nothing is said.
func checkKubelet(config kubelet.Config, err error, cpus int32) []check {
	unknown := err != nil && !errors.Is(err, kubelet.ErrAbsent)
	shutdown, oom, pids := check{name: "ShutdownGracePeriod", unknown: unknown}, check{name: "SingleProcessOOMKill", unknown: unknown}, check{name: "PodPidsLimit", unknown: unknown}
	if err != nil {
		// An absent kubelet is one that restarts, or one inside of another process.
		shutdown.unknown, oom.unknown, pids.unknown = true, true, true
		return []check{shutdown, oom, pids}
	}
	switch {
	case config.ShutdownGrace == 0:
		shutdown.wrong = "kubelet does not wait for pods when this host shuts down, so guests lose their power: set shutdownGracePeriod to the longest grace period of a guest and some more (3m), and shutdownGracePeriodCriticalPods (30s), in kubelet's configuration"
	case config.ShutdownGraceCritical == 0:
		shutdown.wrong = "kubelet leaves critical pods no time when this host shuts down, so Berth's agent may end before its guests have powered off: set shutdownGracePeriodCriticalPods (30s) in kubelet's configuration"
	}
	if config.SingleProcessOOMKill {
		oom.wrong = "a berth out of memory may lose its shim and keep QEMU, or the reverse: set singleProcessOOMKill to false in kubelet's configuration"
	}
	if least := leastPIDs(cpus); config.PodPIDs > 0 && config.PodPIDs < least {
		pids.wrong = fmt.Sprintf("kubelet lets a pod have %d processes and threads, and QEMU ends when it gets none: set podPidsLimit to %d or more in kubelet's configuration", config.PodPIDs, least)
	}
	return []check{shutdown, oom, pids}
}

// leastPIDs are the threads of a guest as large as the host: one for each vCPU, 64 for each of four disks, 256 besides.
func leastPIDs(cpus int32) int64 { return int64(cpus) + 4*64 + 256 }

// checkDomains looks for running domains that are not ours.
func (a *Agent) checkDomains(ctx context.Context) check {
	domains, err := a.libvirt.Domains(ctx)
	if err != nil {
		return check{name: "ForeignDomains", unknown: true}
	}
	var names []string
	for _, d := range domains {
		if d.Active && !a.isOurs(ctx, d.UUID) {
			names = append(names, d.Name)
		}
	}
	return checkForeign(bounded(names, maxListed))
}

// checkForeign says what running domains that are not ours mean for Kubernetes.
func checkForeign(names []string) check {
	c := check{name: "ForeignDomains"}
	if len(names) > 0 {
		const few = 5
		c.wrong = fmt.Sprintf("%d running domains of this host are not Berth's (%s): Kubernetes takes their memory and CPUs for free; move them, or set them aside by systemReserved in kubelet's configuration",
			len(names), strings.Join(names[:min(len(names), few)], ", "))
	}
	return c
}

// checkCPU says what the host's CPUs are to guests.
func checkCPU(cpuinfo string, err error, acceleration v1alpha1.Acceleration) check {
	c := check{name: "NestedVirtualization", unknown: err != nil}
	nested := false
	for line := range strings.Lines(cpuinfo) {
		if key, flags, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "flags" {
			nested = slices.Contains(strings.Fields(flags), "hypervisor")
			break
		}
	}
	switch {
	case acceleration == v1alpha1.AccelerationEmulation:
		c.name, c.unknown = "Emulation", false
		c.wrong = "guests are emulated, many times slower than by KVM: on machines with a usable /dev/kvm set agent.acceleration to KVM"
	case nested:
		c.wrong = "this host is a virtual machine itself: guests are slower here, and all of them stop with it; use bare metal for what matters"
	}
	return c
}

func checkCgroups(unified bool) check {
	c := check{name: "CgroupV1"}
	if !unified {
		c.wrong = "this host uses cgroup v1, with which Berth is not used in earnest: boot it with systemd.unified_cgroup_hierarchy=1"
	}
	return c
}

func checkSELinux(enforce string, err error) check {
	c := check{name: "SELinux", unknown: err != nil}
	if strings.TrimSpace(enforce) == "1" {
		c.wrong = "SELinux is enforcing, and Berth has no policy for it yet: guests may be refused their disks; set it to permissive"
	}
	return c
}
