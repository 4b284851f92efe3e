package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// systemdHost is a host as production has it: systemd, cgroup v2 by slices and scopes, machined, AppArmor. Its
// guests' QEMUs are processes of its own kernel, so that it must be asked for them.
type systemdHost struct {
	*lab
	name string
}

// onSystemdHost gives a test such a host, and a namespace in which it runs alone.
func onSystemdHost(t *testing.T) systemdHost {
	t.Helper()
	name := env.Need(t, "LAB_SYSTEMD_HOST", "a host with systemd and cgroup v2; make systemd-host")
	c := systemdHost{startAlone(t), name}
	c.host(name, "to be ready", func(h *v1alpha1.VirtualMachineHost) bool {
		return meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionHostReady)
	})
	return c
}

// run runs a shell script on the host.
func (c systemdHost) run(script string, args ...any) string {
	c.Helper()
	return strings.TrimSpace(c.onNode(c.name, "sh", "-c", fmt.Sprintf(script, args...)))
}

// repair runs a script on the host also when the test is over.
func (c systemdHost) repair(script string) {
	c.Helper()
	c.undo("lab", "exec", c.name, "--", "sh", "-c", script)
}

// until waits on the host until a shell script succeeds.
func (c systemdHost) until(what, script string, args ...any) {
	c.Helper()
	if out := c.run("timeout 300 sh -c 'until { "+script+"; }; do sleep 0.5; done' && echo yes || true", args...); !strings.HasSuffix(out, "yes") {
		c.Fatalf("waited in vain for %s: %s", what, out)
	}
}

// begin applies a tiny guest on the host, and waits until it is up.
func (c systemdHost) begin(name string) (*v1alpha1.VirtualMachine, *console) {
	c.Helper()
	return c.beginWith(name, "96Mi")
}

// beginWith is begin for one with so much memory.
func (c systemdHost) beginWith(name, memory string) (*v1alpha1.VirtualMachine, *console) {
	c.Helper()
	return c.beginOf(name, strings.NewReplacer("name: tiny", "name: "+name, "96Mi", memory).Replace(tiny))
}

// beginOf is begin for one of a manifest.
func (c systemdHost) beginOf(name, manifest string) (*v1alpha1.VirtualMachine, *console) {
	c.Helper()
	c.apply(manifest + "  nodeSelector: {kubernetes.io/hostname: " + c.name + "}\n  tolerations: [{key: lab, operator: Exists}]\n")
	vm := c.vm(name, "to be Ready", isReady)
	console := c.logs(name)
	console.await("tiny: up")
	return vm, console
}

// qemu is where the guest's one QEMU is: process, and cgroup of each of its threads, the kernel's for it included.
func (c systemdHost) qemu(vm *v1alpha1.VirtualMachine) string {
	c.Helper()
	return c.run(`for p in $(pgrep -f "^/usr/bin/qemu-system.*-uuid %s"); do
		echo $p
		for t in /proc/$p/task/* $(pgrep "^vhost-$p" | sed s,^,/proc/,); do cat $t/cgroup; done | sort -u
	done`, vm.UID)
}

// container is the guest's present one.
func (c systemdHost) container(vm *v1alpha1.VirtualMachine) string {
	c.Helper()
	pod := c.pod(vm.Name, "to run", func(p *corev1.Pod) bool {
		return p != nil && p.UID == vm.Status.Berth.PodUID && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	return strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
}

// placed tells whether all of QEMU is in the scope of the guest's present container, and what is where it should not be.
func (c systemdHost) placed(vm *v1alpha1.VirtualMachine) string {
	c.Helper()
	scope := regexp.MustCompile(`^\d+\n0::/kubepods\.slice/(kubepods-\w+\.slice/)?kubepods-(\w+-)?pod` +
		strings.ReplaceAll(string(vm.Status.Berth.PodUID), "-", "_") + `\.slice/cri-containerd-` + c.container(vm) + `\.scope$`)
	seen := c.qemu(vm)
	if !scope.MatchString(seen) {
		c.Errorf("the QEMU of %s, or a part of it, is not in its container's scope: %s", vm.Name, seen)
	}
	return seen
}

// unmoved: the guest has the QEMU that it had, where it was, and its container never ended.
func (c systemdHost) unmoved(vm *v1alpha1.VirtualMachine, was string) {
	c.Helper()
	if now := c.qemu(vm); now != was {
		c.Errorf("QEMU is now %s, was %s", now, was)
	}
	if now := c.vm(vm.Name, "to be Ready", isReady); now.Status.Restarts != vm.Status.Restarts || now.Status.Berth.PodUID != vm.Status.Berth.PodUID {
		c.Errorf("%s was restarted", vm.Name)
	}
}

// nothingLeft: nor has the host anything of a guest that is gone, cgroups of its berth included.
func (c systemdHost) nothingLeft(vm *v1alpha1.VirtualMachine) {
	c.Helper()
	c.until("the slice of the berth to go", `test -z "$(find /sys/fs/cgroup -name "*pod%s*")"`, strings.ReplaceAll(string(vm.Status.Berth.PodUID), "-", "_"))
	nothingLeftOn(c.lab, c.name, string(vm.UID))
	if scopes := c.run("systemctl list-units --plain --no-legend 'machine-qemu*' && machinectl list --no-legend"); scopes != "" {
		c.Errorf("machined has left: %s", scopes)
	}
}

// watchOne watches that a guest has one QEMU at most on the host. What it returns ends that, and names those that were
// there at once, "" if there never were.
func (c systemdHost) watchOne(uid string) (end func() string) {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	c.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "lab", "exec", c.name, "--", "sh", "-c",
		`while echo $(pgrep -f "^/usr/bin/qemu-system.*-uuid `+uid+`"); do sleep 0.3; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	several, seen, done := "", 0, make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); seen++ {
			if strings.Contains(lines.Text(), " ") {
				several = lines.Text()
			}
		}
	}()
	return func() string {
		cancel()
		<-done
		_ = cmd.Wait()
		if seen == 0 {
			return "nobody has looked"
		}
		return several
	}
}

// problem waits until the host reports a problem, or does not any more.
func (c systemdHost) problem(name string, there bool) {
	c.Helper()
	c.host(c.name, fmt.Sprintf("to have the problem %s: %t", name, there), func(h *v1alpha1.VirtualMachineHost) bool {
		return there == slices.ContainsFunc(h.Status.Problems, func(p v1alpha1.HostProblem) bool { return p.Name == name })
	})
}

// TestSystemdHostPlacement: QEMU with all its threads is in the scope of its container, whatever libvirt may do with cgroups.
func TestSystemdHostPlacement(t *testing.T) {
	c := onSystemdHost(t)
	t.Log(c.run("uname -r; systemctl --version | head -n 1; libvirtd --version; cat /sys/module/apparmor/parameters/enabled; stat -fc %%T /sys/fs/cgroup"))
	c.problem("CgroupControllers", false)
	c.problem("ShutdownGracePeriod", false)
	c.problem("CgroupV1", false)
	first, console := c.begin("first")
	was := c.placed(first)
	if label := c.run("cat /proc/%s/attr/current", strings.Fields(was)[0]); !strings.HasPrefix(label, "libvirt-"+string(first.UID)) {
		t.Errorf("QEMU is confined as %q, not by its profile of AppArmor", label)
	}

	t.Log("with the controllers that libvirt takes by default")
	const change = "sed -i 's/^#*\\(cgroup_controllers = .*blkio. ]\\)$/%s/' /etc/libvirt/qemu.conf; systemctl restart libvirtd"
	t.Cleanup(func() { c.repair(fmt.Sprintf(change, `\1`)) })
	c.say("first", "count")
	c.run(change, `#\1`)
	c.problem("CgroupControllers", true)
	second, _ := c.begin("second")
	c.placed(second)
	c.unmoved(first, was)
	counted(c.lab, console.String())
	for _, vm := range []*v1alpha1.VirtualMachine{first, second} {
		c.kubectl("", "delete", "vm", vm.Name)
		c.nothingLeft(vm)
	}
}

// TestSystemdHostFence: no QEMU outlives its container, with an agent or without.
func TestSystemdHostFence(t *testing.T) {
	c := onSystemdHost(t)
	vm, _ := c.begin("tiny")
	one := c.watchOne(string(vm.UID))
	kill := func(vm *v1alpha1.VirtualMachine) {
		pid := strings.Fields(c.qemu(vm))[0]
		c.run(`for p in $(pgrep -f ^/berth-shim); do if grep -q %s /proc/$p/cgroup; then kill -KILL $p; fi; done`, strings.ReplaceAll(string(vm.Status.Berth.PodUID), "-", "_"))
		c.until("QEMU to end with its shim", "! test -e /proc/%s", pid)
	}
	t.Log("the shim is killed")
	kill(vm)
	again := c.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts == 1 })
	if !exited(again, v1alpha1.ReasonShimLost, 137) || again.Status.Berth.PodUID != vm.Status.Berth.PodUID {
		t.Errorf("last exit is %+v, want ShimLost and 137, in the same berth", again.Status.LastExit)
	}
	c.placed(again)

	t.Log("the shim is killed, and the agent can do nothing")
	t.Cleanup(func() { c.repair("pkill -CONT -f ^/berth-agent") })
	c.run("pkill -STOP -f ^/berth-agent")
	kill(again)
	c.run("pkill -CONT -f ^/berth-agent")
	again = c.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts == 2 })
	c.placed(again)

	t.Log("the berth is deleted by force")
	pid := strings.Fields(c.qemu(again))[0]
	c.kubectl("", "delete", "pod", "tiny", "--force", "--grace-period=0", "--wait=false")
	c.until("QEMU to end with its berth", "! test -e /proc/%s", pid)
	next := c.vm("tiny", "to be Ready in another berth", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Berth.PodUID != again.Status.Berth.PodUID
	})
	c.placed(next)
	c.kubectl("", "delete", "vm", "tiny")
	if several := one(); several != "" {
		t.Errorf("there were several QEMUs at once: %s", several)
	}
	c.nothingLeft(again)
	c.nothingLeft(next)
}

// TestSystemdHostRestarts: neither systemd nor a restart, stop or upgrade of libvirt moves, stops or loses a guest; and one
// that powers off comes back in the same berth.
func TestSystemdHostRestarts(t *testing.T) {
	c := onSystemdHost(t)
	vm, console := c.begin("tiny")
	was := c.placed(vm)
	c.say("tiny", "count")
	console.await("count 10")

	t.Log("systemd reads its units anew, and itself")
	c.run("systemctl daemon-reload; systemctl daemon-reexec; systemctl daemon-reload")
	c.unmoved(vm, was)

	t.Log("libvirt is restarted")
	c.run("systemctl restart libvirtd")
	c.unmoved(vm, was)

	t.Log("libvirt is upgraded: away for a while, its helpers too")
	const sockets = "libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket virtlogd.socket virtlogd-admin.socket"
	const start = "systemctl start " + sockets + " && systemctl start libvirtd"
	t.Cleanup(func() { c.repair(start) })
	c.run("systemctl stop libvirtd virtlogd " + sockets)
	c.vm("tiny", "to be unknown", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, metav1.ConditionUnknown, v1alpha1.ReasonLibvirtUnreachable)
	})
	c.run("systemctl daemon-reload")
	c.run(start)
	c.unmoved(vm, was)
	counted(c.lab, console.String())

	t.Log("the guest powers off")
	before := c.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	c.say("tiny", "poweroff")
	again := c.vm("tiny", "to be Ready again", restartedAfter(v1alpha1.ReasonPoweredOff, 0))
	after := c.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if after.UID != before.UID || after.Status.PodIP != before.Status.PodIP {
		t.Errorf("the berth or its address changed: %s %s, was %s %s", after.UID, after.Status.PodIP, before.UID, before.Status.PodIP)
	}
	c.placed(again)
	c.logs("tiny").await("tiny: up")
	c.kubectl("", "delete", "vm", "tiny")
	c.nothingLeft(again)
}

// virtqemud has libvirtd stand in for virtqemud, which Debian does not ship: under its name, behind its socket, and
// nobody behind the other.
const virtqemud = `
systemctl stop libvirtd libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
mkdir -p /run/libvirt/parts
cp /usr/sbin/libvirtd /run/virtqemud
echo 'unix_sock_dir = "/run/libvirt/parts"' >/run/virtqemud.conf
printf '[Service]\nType=notify\nKillMode=process\nExecStart=/run/virtqemud --config /run/virtqemud.conf\n' >/run/systemd/system/virtqemud.service
systemctl daemon-reload
systemctl start virtqemud
ln -sf parts/libvirt-sock /run/libvirt/virtqemud-sock`

const libvirtd = `
systemctl stop virtqemud
rm -rf /run/virtqemud* /run/libvirt/virtqemud-sock /run/libvirt/parts /run/systemd/system/virtqemud.service
systemctl daemon-reload
systemctl start libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket libvirtd`

// TestSystemdHostParts: a short life where libvirt comes in parts, of which virtqemud is the one that counts.
func TestSystemdHostParts(t *testing.T) {
	c := onSystemdHost(t)
	t.Cleanup(func() { c.repair(libvirtd) })
	c.run(virtqemud)
	vm, console := c.begin("tiny")
	was := c.placed(vm)
	c.say("tiny", "count")
	console.await("count 10")
	c.run("systemctl restart virtqemud")
	c.unmoved(vm, was)
	counted(c.lab, console.String())
	c.say("tiny", "poweroff")
	again := c.vm("tiny", "to be Ready again", restartedAfter(v1alpha1.ReasonPoweredOff, 0))
	c.placed(again)
	c.kubectl("", "delete", "vm", "tiny")
	c.run(libvirtd)
	c.nothingLeft(again)
}

// TestSystemdHostOutOfMemory: the kernel ends all of a container at once, and it is told why.
func TestSystemdHostOutOfMemory(t *testing.T) {
	c := onSystemdHost(t)
	vm, _ := c.beginWith("tiny", "256Mi") // what it eats must be more than the kernel can take back elsewhere
	c.placed(vm)
	c.run(`cd /sys/fs/cgroup/kubepods.slice/*/*/cri-containerd-%s.scope
		echo $(($(cat memory.current) + (16 << 20))) >memory.max`, c.container(vm))
	c.say("tiny", "eat 150")
	again := c.vm("tiny", "to be Ready again", restartedAfter(v1alpha1.ReasonOOMKilled, 137))
	c.placed(again)
	c.kubectl("", "delete", "vm", "tiny")
	c.nothingLeft(again)
}

// TestSystemdHostClock: no guest, and nobody who cares for it, minds a clock that jumps.
func TestSystemdHostClock(t *testing.T) {
	c := onSystemdHost(t)
	vm, console := c.begin("tiny")
	was := c.placed(vm)
	c.say("tiny", "count")
	away := "+"
	jump := func() {
		c.run(`date -s "@$(($(date +%%s) %s 86400))"`, away)
		away = map[string]string{"+": "-", "-": "+"}[away]
	}
	t.Cleanup(func() {
		if away == "-" {
			jump()
		}
	})
	for _, way := range []string{"a day ahead", "and back"} {
		t.Log(way)
		jump()
		console.awaitTimes("count ", strings.Count(console.String(), "count ")+100)
		c.unmoved(vm, was)
	}
	counted(c.lab, console.String())
	c.kubectl("", "delete", "vm", "tiny")
	c.nothingLeft(vm)
}

// TestSystemdHostSessions: commands with their codes, a copy there and back, and the screen, as on any host.
func TestSystemdHostSessions(t *testing.T) {
	c := onSystemdHost(t)
	c.beginOf("tiny", reached+withScreen)
	vm := c.vm("tiny", "to have its guest program answer", hasTools)
	was := c.placed(vm)
	for _, code := range []int{0, 3, 137} {
		if got := c.exec("tiny", nil, "sh", "-c", fmt.Sprintf("echo out; exit %d", code)); got.out != "out\n" || got.code != code {
			t.Errorf("exit %d: %+v", code, got)
		}
	}
	if got := c.exec("tiny", nil, "guest", "no-such-command"); got.code != 127 {
		t.Errorf("a command that is missing: %+v", got)
	}
	here, content := filepath.Join(t.TempDir(), "file"), bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if err := os.WriteFile(here, content, 0o640); err != nil {
		t.Fatal(err)
	}
	c.kubectl("", "cp", here, "tiny:/tmp/file")
	c.kubectl("", "cp", "tiny:/tmp/file", here+"-back")
	if back, err := os.ReadFile(here + "-back"); err != nil || !bytes.Equal(back, content) {
		t.Errorf("the file came back with %d bytes, %v", len(back), err)
	}
	address, _ := c.portForward("tiny", "5900")
	if s := c.textScreen("tiny"); !s.isOn(c.viewer(address).picture()) {
		t.Errorf("its screen does not show\n%s", s)
	}
	c.unmoved(vm, was)
	c.kubectl("", "delete", "vm", "tiny")
	c.nothingLeft(vm)
}

// TestSystemdHostReboot: when the host goes down, the guest is asked to power off, and is back once the host is.
func TestSystemdHostReboot(t *testing.T) {
	c := onSystemdHost(t)
	first, console := c.begin("tiny")
	boot := c.run("cat /proc/sys/kernel/random/boot_id")
	c.run("systemctl reboot --no-block")
	down := c.vm("tiny", "to be powered off", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.LastExit != nil })
	if !exited(down, v1alpha1.ReasonShutDown, 0) {
		t.Errorf("the guest ended with %+v", down.Status.LastExit)
	}
	if text := console.String(); !strings.Contains(text, "Power down") {
		t.Errorf("its kernel did not say goodbye: %s", text[max(0, len(text)-500):])
	}
	c.host(c.name, "to have booted again", func(h *v1alpha1.VirtualMachineHost) bool {
		return h.Status.BootID != boot && meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionHostReady)
	})
	again := c.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Berth.PodUID != first.Status.Berth.PodUID
	})
	c.placed(again)
	c.logs("tiny").await("tiny: up")
	c.kubectl("", "delete", "vm", "tiny")
	c.nothingLeft(first)
	c.nothingLeft(again)
}
