package host

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/kubelet"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
)

func TestChecks(t *testing.T) {
	sound := kubelet.Config{ShutdownGrace: 3 * time.Minute, ShutdownGraceCritical: 30 * time.Second}
	kubeletSays := func(change func(*kubelet.Config)) []check {
		config := sound
		change(&config)
		return checkKubelet(config, nil, 8)
	}
	confined := func(conf string, models ...string) []check {
		return checkConfinement(file{text: conf}, libvirtd.HostFacts{SecurityModels: models}, true)
	}
	const kvm, tcg = v1alpha1.AccelerationKVM, v1alpha1.AccelerationEmulation
	for name, c := range map[string]struct {
		checks []check
		want   string // the one problem
		says   string
	}{
		"a sound kubelet":                {checks: checkKubelet(sound, nil, 8)},
		"no grace at a host's shutdown":  {checks: kubeletSays(func(c *kubelet.Config) { c.ShutdownGrace = 0 }), want: "ShutdownGracePeriod", says: "set shutdownGracePeriod"},
		"none for critical pods":         {checks: kubeletSays(func(c *kubelet.Config) { c.ShutdownGraceCritical = 0 }), want: "ShutdownGracePeriod", says: "set shutdownGracePeriodCriticalPods"},
		"single processes are killed":    {checks: kubeletSays(func(c *kubelet.Config) { c.SingleProcessOOMKill = true }), want: "SingleProcessOOMKill", says: "to false"},
		"too few processes":              {checks: kubeletSays(func(c *kubelet.Config) { c.PodPIDs = 519 }), want: "PodPidsLimit", says: "to 520 or more"},
		"enough processes":               {checks: kubeletSays(func(c *kubelet.Config) { c.PodPIDs = 520 })},
		"a kubelet inside of another":    {checks: checkKubelet(kubelet.Config{}, process.ErrAbsent, 8)},
		"no foreign domains":             {checks: []check{checkForeignDomains(nil, nil)}},
		"foreign domains":                {checks: []check{checkForeignDomains([]string{"a", "b", "c", "d", "e", "f"}, nil)}, want: "ForeignDomains", says: "6 running domains of this host are not Berth's (a, b, c, d, e)"},
		"libvirt lets CPUs alone":        {checks: []check{checkControllers("# x\ncgroup_controllers = [ \"devices\",\n \"memory\" ]\n", nil)}},
		"libvirt has all controllers":    {checks: []check{checkControllers("#cgroup_controllers = [ \"devices\" ]\n", nil)}, want: "CgroupControllers", says: "restart libvirtd"},
		"libvirt has that of CPUs":       {checks: []check{checkControllers("cgroup_controllers = [ \"cpu\" ]\n", nil)}, want: "CgroupControllers"},
		"no qemu.conf can be read":       {checks: []check{checkControllers("", errors.New("no"))}},
		"QEMU is confined":               {checks: confined("# seccomp_sandbox = 0\n", "apparmor", "dac")},
		"so it is by SELinux":            {checks: confined("seccomp_sandbox = 1\nsecurity_default_confined = 1 # so be it\n", "selinux", "dac")},
		"it has no seccomp sandbox":      {checks: confined(" seccomp_sandbox=0 # faster\n", "apparmor", "dac"), want: "SeccompSandbox", says: "remove seccomp_sandbox = 0"},
		"it has no security driver":      {checks: confined("", "dac"), want: "SecurityDriver", says: "its security models are dac"},
		"nor by default":                 {checks: confined("security_default_confined = 0\n", "apparmor"), want: "SecurityDriver", says: "remove security_default_confined = 0"},
		"libvirt has not told yet":       {checks: checkConfinement(file{}, libvirtd.HostFacts{}, false)},
		"no qemu.conf to tell of it":     {checks: checkConfinement(file{err: errors.New("no")}, libvirtd.HostFacts{}, true)},
		"bare metal":                     {checks: []check{checkCPU("flags\t\t: fpu vme\n", nil, kvm)}},
		"a virtual machine":              {checks: []check{checkCPU("model : x\nflags\t\t: fpu hypervisor lahf_lm\n", nil, kvm)}, want: "NestedVirtualization", says: "a virtual machine itself"},
		"a hypervisor by another name":   {checks: []check{checkCPU("model name : hypervisor\nflags : fpu\n", nil, kvm)}},
		"emulation":                      {checks: []check{checkCPU("flags : hypervisor\n", nil, tcg)}, want: "Emulation", says: "set agent.acceleration to KVM"},
		"cgroup v2":                      {checks: []check{checkCgroups(true)}},
		"cgroup v1":                      {checks: []check{checkCgroups(false)}, want: "CgroupV1"},
		"SELinux is off":                 {checks: []check{checkSELinux("", nil)}},
		"SELinux is permissive":          {checks: []check{checkSELinux("0", nil)}},
		"SELinux is enforcing":           {checks: []check{checkSELinux("1", nil)}, want: "SELinux", says: "does not support"},
		"volumes can be attached":        {checks: []check{checkVolumes(nil)}},
		"the root mount is private":      {checks: []check{checkVolumes(fault.NewUser(v1alpha1.ReasonMountsNotShared, errors.New("run mount --make-rshared /")))}, want: "MountsNotShared", says: "run mount --make-rshared /"},
		"libvirtd does not say, so far":  {checks: []check{checkVolumes(errors.New("no"))}},
		"SELinux cannot be read, so far": {checks: []check{checkSELinux("", errors.New("no"))}},
	} {
		t.Run(name, func(t *testing.T) {
			got := problems(c.checks, nil)
			if c.want == "" {
				if len(got) > 0 {
					t.Errorf("problems: %v", got)
				}
				return
			}
			if len(got) != 1 || got[0].Name != c.want || !strings.Contains(got[0].Message, c.says) {
				t.Errorf("problems: %v, want %s: %s", got, c.want, c.says)
			}
		})
	}
}

func TestWhatCannotBeSeenStaysAsItWas(t *testing.T) {
	had := []v1alpha1.HostProblem{{Name: "a", Message: "old"}, {Name: "b", Message: "old"}, {Name: "c", Message: "old"}}
	got := problems([]check{{name: "a", unknown: true}, {name: "b"}, {name: "c", message: "new"}, {name: "d", unknown: true}}, had)
	want := []v1alpha1.HostProblem{{Name: "a", Message: "old"}, {Name: "c", Message: "new"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
