package host

import (
	"cmp"
	"errors"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/kubelet"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
)

func TestChecks(t *testing.T) {
	const kvm, tcg = v1alpha1.AccelerationKVM, v1alpha1.AccelerationEmulation
	type seen = *snapshot
	no := errors.New("no")
	conf := func(text string, models ...string) func(seen) {
		return func(s seen) {
			s.qemuConf.text, s.facts.SecurityModels = "cgroup_controllers = []\n"+text, models
		}
	}
	for name, c := range map[string]struct {
		change func(seen)
		kind   v1alpha1.Acceleration
		v1     bool
		want   string // the one problem
		says   string
	}{
		"a sound host":                  {change: func(seen) {}},
		"no grace at a host's shutdown": {change: func(s seen) { s.kubelet.ShutdownGrace = 0 }, want: "ShutdownGracePeriod", says: "set shutdownGracePeriod"},
		"none for critical pods":        {change: func(s seen) { s.kubelet.ShutdownGraceCritical = 0 }, want: "ShutdownGracePeriod", says: "set shutdownGracePeriodCriticalPods"},
		"single processes are killed":   {change: func(s seen) { s.kubelet.SingleProcessOOMKill = true }, want: "SingleProcessOOMKill", says: "to false"},
		"too few processes":             {change: func(s seen) { s.kubelet.PodPIDs = 519 }, want: "PodPidsLimit", says: "to 520 or more"},
		"enough processes":              {change: func(s seen) { s.kubelet.PodPIDs = 520 }},
		"a kubelet inside of another":   {change: func(s seen) { s.kubelet, s.kubeletErr = kubelet.Config{}, process.ErrAbsent }},
		"foreign domains":               {change: func(s seen) { s.foreignRunning = []string{"a", "b", "c", "d", "e", "f"} }, want: "ForeignDomains", says: "6 running domains of this host are not Berth's (a, b, c, d, e)"},
		"foreign domains, so far":       {change: func(s seen) { s.foreignErr = no }},
		"libvirt lets CPUs alone":       {change: func(s seen) { s.qemuConf.text = "# x\ncgroup_controllers = [ \"devices\",\n \"memory\" ]\n" }},
		"libvirt has all controllers":   {change: func(s seen) { s.qemuConf.text = "#cgroup_controllers = [ \"devices\" ]\n" }, want: "CgroupControllers", says: "restart libvirtd"},
		"libvirt has that of CPUs":      {change: func(s seen) { s.qemuConf.text = "cgroup_controllers = [ \"cpu\" ]\n" }, want: "CgroupControllers"},
		"no qemu.conf can be read":      {change: func(s seen) { s.qemuConf = file{err: no} }},
		"QEMU is confined":              {change: conf("# seccomp_sandbox = 0\n", "apparmor", "dac")},
		"so it is by SELinux":           {change: conf("seccomp_sandbox = 1\nsecurity_default_confined = 1 # so be it\n", "selinux", "dac")},
		"it has no seccomp sandbox":     {change: conf(" seccomp_sandbox=0 # faster\n", "apparmor", "dac"), want: "SeccompSandbox", says: "remove seccomp_sandbox = 0"},
		"it has no security driver":     {change: conf("", "dac"), want: "SecurityDriver", says: "its security models are dac"},
		"nor by default":                {change: conf("security_default_confined = 0\n", "apparmor"), want: "SecurityDriver", says: "remove security_default_confined = 0"},
		"libvirt has not told yet":      {change: func(s seen) { s.facts, s.factsKnown = libvirtd.HostFacts{}, false }},
		"libvirt does not tell":         {change: func(s seen) { s.facts, s.factsErr = libvirtd.HostFacts{}, no }},
		"a virtual machine":             {change: func(s seen) { s.cpuinfo.text = "model : x\nflags\t\t: fpu hypervisor lahf_lm\n" }, want: "NestedVirtualization", says: "a virtual machine itself"},
		"a hypervisor by another name":  {change: func(s seen) { s.cpuinfo.text = "model name : hypervisor\nflags : fpu\n" }},
		"emulation":                     {change: func(s seen) { s.cpuinfo.text = "flags : hypervisor\n" }, kind: tcg, want: "Emulation", says: "set agent.acceleration to KVM"},
		"cgroup v1":                     {change: func(seen) {}, v1: true, want: "CgroupV1"},
		"SELinux is permissive":         {change: func(s seen) { s.selinux.text = "0" }},
		"SELinux is enforcing":          {change: func(s seen) { s.selinux.text = "1" }, want: "SELinux", says: "does not support"},
		"the root mount is private": {change: func(s seen) {
			s.volumesErr = fault.NewUser(v1alpha1.ReasonMountsNotShared, errors.New("run mount --make-rshared /"))
		}, want: "MountsNotShared", says: "run mount --make-rshared /"},
		"libvirtd does not say, so far":  {change: func(s seen) { s.volumesErr = no }},
		"SELinux cannot be read, so far": {change: func(s seen) { s.selinux = file{"1", no} }},
	} {
		t.Run(name, func(t *testing.T) {
			s := &snapshot{
				qemuConf: file{text: "cgroup_controllers = []"}, cpuinfo: file{text: "flags\t\t: fpu vme\n"},
				facts: libvirtd.HostFacts{SecurityModels: []string{"apparmor", "dac"}}, factsKnown: true,
				kubelet: kubelet.Config{ShutdownGrace: 3 * time.Minute, ShutdownGraceCritical: 30 * time.Second},
			}
			c.change(s)
			r := &Reconciler{Options: Options{Acceleration: cmp.Or(c.kind, kvm), UnifiedCgroups: !c.v1}}
			got := problems(r.checks(s, 8), nil)
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
	got := problems([]check{{name: "a", unknown: errAway}, {name: "b"}, {name: "c", message: "new"}, {name: "d", unknown: errAway}}, had)
	want := []v1alpha1.HostProblem{{Name: "a", Message: "old"}, {Name: "c", Message: "new"}}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
