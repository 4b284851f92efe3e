package virtualmachine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/store"
)

// one is a world in which the berth is on the first node, whose image is there. No container has started yet.
func one(t *testing.T, changes ...func(*v1alpha1.VirtualMachine)) (*world, *node) {
	t.Helper()
	w := newWorld(t, v1alpha1.RestartAlways, false)
	for _, change := range changes {
		change(w.cluster.vm)
	}
	n := w.nodes[0]
	n.image = plan.ImageReady
	w.operate(n.name)
	w.operate(n.name)
	return w, n
}

// running is one whose guest runs.
func running(t *testing.T, changes ...func(*v1alpha1.VirtualMachine)) (*world, *node) {
	t.Helper()
	w, n := one(t, changes...)
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	return w, n
}

// expect looks for a reason in a condition.
func (n *node) expect(t *testing.T, kind string, reason v1alpha1.Reason) {
	t.Helper()
	c := meta.FindStatusCondition(n.world.cluster.vm.Status.Conditions, kind)
	if c == nil || c.Reason != string(reason) {
		t.Fatalf("%s is %+v, want reason %s", kind, c, reason)
	}
}

// qemu is the guest's only one.
func (n *node) qemu(t *testing.T) hosttest.QEMU {
	t.Helper()
	all := n.host.QEMUs(string(vmUID))
	if len(all) != 1 {
		t.Fatalf("there are %d QEMUs", len(all))
	}
	return all[0]
}

func TestStart(t *testing.T) {
	_, n := one(t)
	n.image = plan.ImageMissing
	n.sync()
	if n.image != plan.ImagePulling || len(n.host.QEMUs(string(vmUID))) > 0 {
		t.Fatal("the image that is missing is not pulled first")
	}
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonPullingImage)

	n.image = plan.ImageReady
	n.sync()
	if q := n.qemu(t); q.State != libvirtd.Paused || q.Container != "" {
		t.Errorf("before there is a container QEMU is %+v", q)
	}
	n.runContainer()
	n.sync()
	if q := n.qemu(t); q.State != libvirtd.Running || q.Container != n.shim.ContainerID() || q.OOMScore != hosttest.OOMScore {
		t.Errorf("in the container QEMU is %+v", q)
	}
	if taps := n.host.Taps(string(n.here().UID)); !slices.Equal(taps, []string{berth.TapName(vmUID, "default")}) {
		t.Errorf("the pod has the taps %v", taps)
	}
	if seed := string(n.host.Seed(string(vmUID))); !strings.Contains(seed, "ssh-ed25519 AAAA") {
		t.Error("cloud-init does not get the authorized key")
	}
	if !n.shim.Attached || !n.shim.Running {
		t.Errorf("the shim is %+v", n.shim.Shim)
	}
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonDisksReady)
	if diff := cmp.Diff([]string{"PullingImage", "Started"}, n.events); diff != "" {
		t.Errorf("Events (-want +got):\n%s", diff)
	}
	if status := n.world.cluster.vm.Status.Disks; len(status) != 1 || status[0].ImageDigest != digest || status[0].Size.Value() != 1<<30 {
		t.Errorf("disks are %+v", status)
	}
}

// TestAPullEndsWithItsVM: what nobody waits for any more is not downloaded.
func TestAPullEndsWithItsVM(t *testing.T) {
	for name, leave := range map[string]func(*world, *node){
		"deleted": func(w *world, _ *node) { w.cluster.vm.DeletionTimestamp = &metav1.Time{Time: time.Unix(1e9, 0)} },
		"stopped": func(w *world, _ *node) { w.cluster.vm.Spec.State = v1alpha1.StateStopped },
	} {
		t.Run(name, func(t *testing.T) {
			w, n := one(t)
			n.image = plan.ImageMissing
			n.sync()
			if n.image != plan.ImagePulling || len(n.retained) != 1 || n.retained[0].Reference != w.cluster.vm.Spec.Disks[0].Image {
				t.Fatalf("it retains %v", n.retained)
			}
			leave(w, n)
			n.cutOff = true // what the API server does not say ends nothing
			n.sync()
			if len(n.retained) != 1 {
				t.Error("a pull ended on no word of the API server")
			}
			n.cutOff = false
			n.sync()
			if len(n.retained) != 0 {
				t.Errorf("it retains %v", n.retained)
			}
		})
	}
}

func TestShimThatIsSlow(t *testing.T) {
	_, n := one(t)
	n.runContainer()
	n.slow, n.cache = true, n.world.cluster.copy()
	wake, err := n.agent.sync(t.Context(), vmUID)
	if q := n.qemu(t); err != nil || q.State != libvirtd.Paused || wake <= 0 || wake > time.Second {
		t.Errorf("QEMU is %s, the next look is after %v, %v", q.State, wake, err)
	}
	n.slow = false
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
}

// A container may never come: its image cannot be pulled, or its network not be made. Nor does a clock that is wrong by
// a minute matter.
func TestAContainerThatDoesNotCome(t *testing.T) {
	for name, created := range map[string]time.Duration{"right clocks": 0, "a clock that is ahead": -time.Minute, "one that is behind": time.Minute} {
		t.Run(name, func(t *testing.T) {
			w, n := one(t)
			n.here().CreationTimestamp.Time = w.now.Add(created)
			n.accept()
			n.sync()
			n.qemu(t)
			w.calm()
			if all := n.host.QEMUs(string(vmUID)); len(all) > 0 || n.starts != 1 {
				t.Errorf("after a while there is %+v, from %d starts", all, n.starts)
			}
			n.startAgent()
			n.silent = false
			w.calm()
			if n.starts != 1 {
				t.Errorf("the next agent starts it again, in all %d times", n.starts)
			}
			n.runContainer()
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
		})
	}
}

func TestEnds(t *testing.T) {
	uid := string(vmUID)
	for name, tt := range map[string]struct {
		happens func(*node)
		reason  v1alpha1.Reason
		code    int32
	}{
		"the guest powers off": {func(n *node) { n.host.PowerOff(uid) }, v1alpha1.ReasonPoweredOff, 0},
		"its kernel panics":    {func(n *node) { n.host.Panic(uid) }, v1alpha1.ReasonGuestPanicked, 134},
		"its kernel panics, and the agent is killed after it has ended QEMU": {func(n *node) {
			n.host.TerminateQEMU(uid)
			n.host.NoticeExit(uid)
			n.startAgent()
			n.silent = false
		}, v1alpha1.ReasonGuestPanicked, 134},
		"QEMU is killed": {func(n *node) {
			n.host.KillQEMU(uid)
			n.host.NoticeExit(uid)
		}, v1alpha1.ReasonQEMUFailed, 1},
		"it runs out of memory": {func(n *node) {
			n.host.OOMKill(uid)
			n.host.NoticeExit(uid)
		}, v1alpha1.ReasonOOMKilled, 137},
		"somebody destroys the domain": {func(n *node) { _ = n.host.Libvirt.Destroy(t.Context(), uid) }, v1alpha1.ReasonDestroyed, 137},
		"it is asked and powers off": {func(n *node) {
			n.terminate()
			n.sync()
			if !n.qemu(t).ShutdownAsked {
				t.Error("it is not asked to power off")
			}
			n.host.PowerOff(uid)
		}, v1alpha1.ReasonShutDown, 0},
		"it is asked and does not": {func(n *node) {
			n.terminate()
			n.sync()
			n.world.pass(31 * time.Second)
		}, v1alpha1.ReasonForcedOff, 137},
	} {
		t.Run(name, func(t *testing.T) {
			w, n := running(t)
			had := n.shim
			tt.happens(n)
			for range 4 { // what ends a guest on libvirt's word alone has to be seen twice
				n.sync()
				n.host.NoticeExit(uid)
				w.pass(time.Second)
			}
			state := n.here().Status.ContainerStatuses[0].State.Terminated
			if !had.ended || state == nil || state.ExitCode != tt.code || !strings.HasPrefix(state.Message, string(tt.reason)) {
				t.Errorf("the container ended with %+v, want %s and code %d", state, tt.reason, tt.code)
			}
			exit := w.cluster.vm.Status.LastExit
			if exit == nil || exit.Reason != tt.reason || exit.ExitCode != tt.code {
				t.Errorf("lastExit is %+v", exit)
			}
			if n.host.Consoles.Exists(uid) || n.host.Seed(uid) != nil || len(n.host.QEMUs(uid)) > 0 {
				t.Error("a QEMU, a console or a seed is left")
			}
			if breaches := n.host.Breaches(); len(breaches) > 0 {
				t.Error(breaches)
			}
			n.runContainer()
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
		})
	}
}

// What cannot be read is in the way of a start, and of nothing else.
func TestWhatCannotBeRead(t *testing.T) {
	for _, what := range unreadables {
		t.Run(what, func(t *testing.T) {
			w, n := running(t, func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Ephemeral = true })
			n.unreadable[what] = true
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
			n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonInternalError)
			if disks := w.cluster.vm.Status.Disks; len(disks) != 1 {
				t.Errorf("the status names the disks %v", disks)
			}
			n.host.PowerOff(string(vmUID))
			n.sync()
			if !n.shim.ended {
				t.Error("the shim of a guest that has ended waits")
			}
			n.runContainer()
			n.sync()
			if all := n.host.QEMUs(string(vmUID)); len(all) > 0 {
				t.Errorf("it is started: %+v", all)
			}
			n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonInternalError)
			n.unreadable = map[string]bool{}
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)

			n.unreadable[what] = true
			w.cluster.vm.DeletionTimestamp = &n.here().CreationTimestamp
			w.deleteBerth()
			w.pass(31 * time.Second)
			for range 2 {
				n.sync()
				n.host.NoticeExit(string(vmUID))
			}
			if all := n.host.QEMUs(string(vmUID)); len(all) > 0 || w.cluster.vm.Status.ReleasedBerth != n.here().UID {
				t.Errorf("of a deleted one there are %+v, and the status is %+v", all, w.cluster.vm.Status)
			}
			if has, err := n.host.Store.Has(string(vmUID)); err != nil || has != (what == "directory") {
				t.Errorf("its directory is there: %t, %v", has, err)
			}
		})
	}
}

// A store may come late, or never: a kept disk is not made again for that, and is named on.
func TestDiskThatIsMissing(t *testing.T) {
	w, n := running(t)
	uid := string(vmUID)
	n.host.PowerOff(uid)
	n.sync()
	if !n.lose() {
		t.Fatal("it has no directory")
	}
	n.runContainer()
	for range 2 {
		n.sync()
		n.startAgent() // it knows what the status knows
		n.silent = false
	}
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonDiskMissing)
	if has, _ := n.host.Store.Has(uid); has || len(n.host.QEMUs(uid)) > 0 || len(w.cluster.vm.Status.Disks) != 1 {
		t.Errorf("it is made again: %t; there are %v; the status names %v", has, n.host.QEMUs(uid), w.cluster.vm.Status.Disks)
	}
	n.find()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
}

// To start without the data of a disk that is missing takes another name of it.
func TestDiskThatIsGivenUp(t *testing.T) {
	w, n := running(t)
	n.host.PowerOff(string(vmUID))
	n.sync()
	n.lose()
	w.cluster.vm.Spec.Disks[0].Name = "root2"
	w.cluster.pod = nil
	w.cluster.vm.Status.ReleasedBerth = w.cluster.vm.Status.Berth.PodUID
	w.operate(n.name)
	w.operate(n.name)
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	if disks := w.cluster.vm.Status.Disks; len(disks) != 1 || disks[0].Name != "root2" {
		t.Errorf("the status names %v", disks)
	}
}

// The digest of an ephemeral disk holds for life, also on a node that has never heard of its tag.
func TestAnEphemeralDiskKeepsItsDigest(t *testing.T) {
	w, n := running(t, func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks[0].Ephemeral = true })
	n.terminate()
	w.deleteBerth()
	n.host.PowerOff(string(vmUID))
	n.sync()
	to := w.nodes[1]
	for range 3 {
		w.operate(to.name)
	}
	to.sync()
	if status := w.cluster.vm.Status; status.NodeName != to.name || len(status.Disks) != 1 || status.Disks[0].ImageDigest != digest {
		t.Errorf("the status is %+v", status)
	}
	if to.pulled != digest {
		t.Errorf("it pulls %q", to.pulled)
	}
}

func TestAGuestEndsWithoutLibvirt(t *testing.T) {
	for _, listens := range []bool{true, false} {
		_, n := running(t)
		if !listens {
			n.agent.Host.Processes = hanging{n.host.Processes}
		}
		n.host.SetLibvirtDown(true)
		n.terminate()
		n.sync()
		n.qemu(t) // it has its time
		n.world.pass(31 * time.Second)
		n.sync()
		if all := n.host.QEMUs(string(vmUID)); len(all) > 0 {
			t.Errorf("QEMU listens to SIGTERM: %t; after its time there is %+v", listens, all)
		}
	}
}

// hanging are QEMUs that do not listen to SIGTERM.
type hanging struct{ *hosttest.Processes }

func (hanging) Terminate(process.Process, time.Duration) error { return os.ErrDeadlineExceeded }

func TestPause(t *testing.T) {
	w, n := running(t)
	w.cluster.vm.Spec.State = v1alpha1.StatePaused
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonPaused)
	if q := n.qemu(t); q.State != libvirtd.Paused {
		t.Errorf("QEMU is %s", q.State)
	}
	w.cluster.vm.Spec.State = v1alpha1.StateRunning
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)

	n.events = nil
	if err := n.host.Libvirt.Suspend(t.Context(), string(vmUID)); err != nil {
		t.Fatal(err)
	}
	n.sync()
	if q := n.qemu(t); q.State != libvirtd.Running || !slices.Equal(n.events, []string{string(v1alpha1.ReasonPausedExternally)}) {
		t.Errorf("after virsh suspend QEMU is %s, with Events %v", q.State, n.events)
	}
}

func TestDelete(t *testing.T) {
	w, n := running(t)
	log := berth.DomainName(w.cluster.vm.Namespace, w.cluster.vm.Name)
	if !n.host.HasLog(log) {
		t.Fatalf("libvirt keeps no log of %s", log)
	}
	w.cluster.vm.DeletionTimestamp = &n.here().CreationTimestamp
	w.deleteBerth()
	n.sync()
	n.host.PowerOff(string(vmUID))
	n.sync()
	if n.host.HasLog(log) {
		t.Errorf("libvirt's log of %s outlives its disks", log)
	}
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonDisksRemoved)
	if has, err := n.host.Store.Has(string(vmUID)); has || err != nil {
		t.Errorf("it has a directory: %t, %v", has, err)
	}
	if released := w.cluster.vm.Status.ReleasedBerth; released != n.here().UID {
		t.Errorf("released is %q", released)
	}
}

func TestGuestRunsOnWithoutTheAPIServer(t *testing.T) {
	w, n := running(t)
	n.cutOff = true
	n.host.PowerOff(string(vmUID))
	n.sync()
	if !n.shim.ended {
		t.Error("the shim waits for the API server")
	}
	n.runContainer()
	n.sync()
	if q := n.qemu(t); q.State != libvirtd.Running {
		t.Errorf("QEMU is %s", q.State)
	}
	n.cutOff = false
	n.sync()
	if exit := w.cluster.vm.Status.LastExit; exit == nil || exit.Reason != v1alpha1.ReasonPoweredOff {
		t.Errorf("lastExit is %+v", exit)
	}
}

// TestAnEndThatWasAskedForIsToldSo, also by an agent that has not seen it.
func TestAnEndThatWasAskedForIsToldSo(t *testing.T) {
	w, n := running(t)
	w.deleteBerth()
	n.terminate()
	n.sync()
	n.host.PowerOff(string(vmUID))
	n.cutOff = true
	n.sync()
	if !n.shim.ended {
		t.Fatal("the shim has not ended")
	}
	n.cutOff = false
	n.startAgent()
	for range 3 {
		n.sync()
		w.pass(time.Second)
	}
	if exit := w.cluster.vm.Status.LastExit; exit == nil || exit.Reason != v1alpha1.ReasonShutDown {
		t.Errorf("lastExit is %+v", exit)
	}
}

func TestKernelBoot(t *testing.T) {
	content := store.Content{Digest: digest, Kernel: "/vmlinuz", Initrd: "/initrd"}
	w, n := one(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks, vm.Spec.SSHAuthorizedKeys = nil, nil
		vm.Spec.Kernel = &v1alpha1.Kernel{Image: "registry/kernel:1", KernelPath: "/vmlinuz", InitrdPath: "/initrd", CommandLine: "console=ttyS0"}
	})
	image := n.host.AddImage(content, 0)
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	d, err := n.host.Libvirt.Domain(t.Context(), string(vmUID))
	if err != nil || !strings.Contains(d.XML, image.KernelPath()) || !strings.Contains(d.XML, image.InitrdPath()) || !strings.Contains(d.XML, "console=ttyS0") {
		t.Errorf("%v, the domain is\n%s", err, d.XML)
	}
	if !n.shim.directKernel {
		t.Error("the shim was not told that there is no disk with the guest program")
	}
	if k := w.cluster.vm.Status.Kernel; k == nil || *k != (v1alpha1.KernelStatus{Image: "registry/kernel:1", ImageDigest: digest}) {
		t.Errorf("the status has the kernel %+v", k)
	}
	if err := n.host.Store.RemoveImage(content); err == nil {
		t.Error("the kernel of a guest can be removed")
	}
	w.check()
}

// TestAKernelThatDoesNotFit: QEMU reads it into memory of its own before it is in the berth, so no berth pays for it.
func TestAKernelThatDoesNotFit(t *testing.T) {
	_, n := one(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks, vm.Spec.SSHAuthorizedKeys = nil, nil
		vm.Spec.Kernel = &v1alpha1.Kernel{Image: "registry/kernel:1", KernelPath: "/vmlinuz"}
	})
	n.host.AddImage(store.Content{Digest: digest, Kernel: "/vmlinuz"}, 128<<20+1)
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonImageTooLarge)
	if n.starts != 0 {
		t.Error("QEMU was started with it")
	}
}

func TestUserDataFromASecret(t *testing.T) {
	_, n := one(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.CloudInit = &v1alpha1.CloudInit{UserDataSecretRef: &v1alpha1.SecretKeyReference{Name: "web", Key: "userdata"}}
	})
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonSecretMissing)
	if q := n.qemu(t); q.State != libvirtd.Paused {
		t.Errorf("without its user data the guest is %s", q.State)
	}
	n.host.WriteFile(n.shim.ContainerID(), berth.UserDataPath, []byte("#cloud-config\nhostname: secret"))
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	if seed := string(n.host.Seed(string(vmUID))); !strings.Contains(seed, "hostname: secret") {
		t.Error("cloud-init does not get the Secret's user data")
	}
}

// TestNetworkDataFromASecret: it is another than the user data's.
func TestNetworkDataFromASecret(t *testing.T) {
	_, n := one(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.CloudInit = &v1alpha1.CloudInit{NetworkDataSecretRef: &v1alpha1.SecretKeyReference{Name: "web", Key: "networkdata"}}
	})
	n.runContainer()
	n.host.WriteFile(n.shim.ContainerID(), berth.NetworkPath, []byte("version: 2 # secret"))
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	if seed := string(n.host.Seed(string(vmUID))); !strings.Contains(seed, "version: 2 # secret") {
		t.Error("cloud-init does not get the Secret's network configuration")
	}
}

// TestIgnitionFromASecret: QEMU reads it when it starts, so it starts once the Secret is there.
func TestIgnitionFromASecret(t *testing.T) {
	_, n := one(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.SSHAuthorizedKeys = nil
		vm.Spec.Ignition = &v1alpha1.Ignition{SecretRef: &v1alpha1.SecretKeyReference{Name: "core", Key: "userdata"}}
	})
	n.sync() // its container has not come
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonSecretMissing)
	if n.starts != 0 {
		t.Error("QEMU was started without it")
	}
	const config = `{"ignition": {"version": "3.4.0"}}`
	n.host.WriteFile(n.shim.ContainerID(), berth.IgnitionPath, []byte(config))
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	if got := string(n.host.Ignition(string(vmUID))); got != config {
		t.Errorf("the guest gets %q", got)
	}
}

func TestWhatDoesNotStart(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*v1alpha1.VirtualMachine)
		before func(*node)
		reason v1alpha1.Reason
	}{
		"a berth whose image was changed": {before: func(n *node) {
			n.world.cluster.vm.Status.Berth.Image = "berth-shim:1"
		}, reason: v1alpha1.ReasonBerthMutated},
		"one that another runtime runs": {before: func(n *node) {
			n.host.AddPod(string(n.here().UID), runtime.Pod{Type: "io.containerd.kata.v2"})
		}, reason: v1alpha1.ReasonBerthMutated},
		"one that the spec has outgrown": {before: func(n *node) {
			n.world.cluster.vm.Spec.Memory.Size.Add(n.world.cluster.vm.Spec.Memory.Size)
		}, reason: v1alpha1.ReasonBerthOutdated},
		"one that the status does not name": {before: func(n *node) {
			n.world.cluster.vm.Status.Berth.PodUID = "another"
		}, reason: v1alpha1.ReasonNotRunning},
		"a disk that is smaller than its image": {change: func(vm *v1alpha1.VirtualMachine) {
			size := vm.Spec.Memory.Size.DeepCopy()
			vm.Spec.Disks[0].Size = &size
		}, reason: v1alpha1.ReasonStarting},
	} {
		t.Run(name, func(t *testing.T) {
			change := func(vm *v1alpha1.VirtualMachine) {}
			if tt.change != nil {
				change = tt.change
			}
			_, n := one(t, change)
			if tt.before != nil {
				tt.before(n)
			}
			n.runContainer()
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, tt.reason)
			if all := n.host.QEMUs(string(vmUID)); len(all) > 0 {
				t.Errorf("there is a QEMU: %+v", all)
			}
		})
	}
}

func TestADomainOfOurUUIDThatIsNotOurs(t *testing.T) {
	_, n := one(t)
	foreign := `<domain type='qemu'><name>foreign</name><uuid>` + string(vmUID) + `</uuid><os><type arch='x86_64' machine='q35'>hvm</type></os></domain>`
	if err := n.host.Libvirt.CreatePaused(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonDomainNameTaken)
	if q := n.qemu(t); q.Container != "" || q.State != libvirtd.Paused {
		t.Errorf("it was touched: %+v", q)
	}
}

func TestAGuestThatResets(t *testing.T) {
	w, n := running(t)
	for range 5 {
		w.now = w.now.Add(time.Second)
		n.host.Reset(string(vmUID), w.now)
	}
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonGuestResetLoop)
	if s := w.cluster.vm.Status; s.Resets != 5 || s.LastReset == nil || !s.LastReset.Time.Equal(w.now.Truncate(time.Second)) {
		t.Errorf("%d resets, the last at %v, want 5 and %v", s.Resets, s.LastReset, w.now)
	}
	if !n.shim.ResetTold.Equal(w.now) {
		t.Errorf("the shim was told of a reset at %v, want %v", n.shim.ResetTold, w.now)
	}
	w.now = w.now.Add(11 * time.Minute)
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
}

func TestGuestAgent(t *testing.T) {
	w, n := running(t)
	answers := map[string]string{
		"guest-info": `{"return":{"version":"7.2.0"}}`, "guest-get-host-name": `{"return":{"host-name":"web-1"}}`,
		"guest-get-osinfo": `{"return":{"pretty-name":"Debian 12"}}`,
	}
	n.host.ConnectAgent(string(vmUID), func(command string) (string, error) {
		for name, answer := range answers {
			if strings.Contains(command, `"`+name+`"`) {
				return answer, nil
			}
		}
		return `{"error":{"class":"CommandNotFound"}}`, nil
	})
	answered := make(chan types.UID, 1)
	n.enqueue = func(uid types.UID) { answered <- uid }
	n.startAgent()
	n.silent = false
	now := w.now
	n.agent.Now = func() time.Time { return now } // the guest agent is asked on a goroutine of its own
	n.sync()
	if uid := <-answered; uid != vmUID {
		t.Errorf("%s is to be looked at", uid)
	}
	n.sync()
	n.expect(t, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ReasonGuestAgentConnected)
	want := &v1alpha1.GuestInfo{Hostname: "web-1", OS: "Debian 12", GuestAgentVersion: "7.2.0"}
	if diff := cmp.Diff(want, w.cluster.vm.Status.Guest); diff != "" {
		t.Errorf("guest (-want +got):\n%s", diff)
	}
}

// A guest agent is asked, and told to power off, by the pseudo-terminal that its QEMU has for it, and libvirtd is not.
func TestGuestAgentAtItsTerminal(t *testing.T) {
	w, n := running(t)
	now := w.now
	answered := make(chan types.UID, 1)
	n.enqueue = func(uid types.UID) { answered <- uid }
	n.startAgent()
	n.silent = false
	n.agent.Now = func() time.Time { return now } // the guest agent is asked on a goroutine of its own
	poweredOff, qemu, terminal := make(chan struct{}, 1), n.qemu(t).PID, n.facts(t).AgentPTY
	n.agent.Host.OpenGuestAgent = func(_ context.Context, pid, pts int) (GuestAgent, error) {
		if pid != qemu || pts != terminal {
			return nil, fmt.Errorf("terminal %d of process %d, want %d of %d", pts, pid, terminal, qemu)
		}
		return agentAtTerminal{poweredOff}, nil
	}
	n.host.ConnectAgent(string(vmUID), func(string) (string, error) { return "", errors.New("another was asked") })
	n.sync()
	<-answered
	n.sync()
	want := &v1alpha1.GuestInfo{GuestAgentVersion: "at its terminal"}
	if diff := cmp.Diff(want, w.cluster.vm.Status.Guest); diff != "" {
		t.Errorf("guest (-want +got):\n%s", diff)
	}
	n.terminate()
	n.sync()
	<-poweredOff
}

type agentAtTerminal struct{ poweredOff chan<- struct{} }

func (agentAtTerminal) AgentCommand(context.Context, string) (string, error) {
	return `{"return":{"version":"at its terminal"}}`, nil
}

func (a agentAtTerminal) PowerDown(context.Context) error { a.poweredOff <- struct{}{}; return nil }
func (agentAtTerminal) Close() error                      { return nil }

// A guest whose agent comes and goes is asked again a moment later, and until then its status stays as it is.
func TestAGuestAgentThatComesAgain(t *testing.T) {
	w, n := running(t)
	now := w.now
	answered := make(chan types.UID, 1)
	n.enqueue = func(uid types.UID) { answered <- uid }
	n.startAgent()
	n.silent = false
	n.agent.Now = func() time.Time { return now } // the guest agent is asked on a goroutine of its own
	connect := func() {
		n.host.ConnectAgent(string(vmUID), func(string) (string, error) { return `{"return":{"version":"1"}}`, nil })
	}
	connect()
	n.sync()
	<-answered
	n.sync()
	n.expect(t, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ReasonGuestAgentConnected)

	n.host.DisconnectAgent(string(vmUID))
	n.sync()
	n.expect(t, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ReasonGuestAgentNotConnected)
	written := w.cluster.vm.Status.DeepCopy()
	for range 3 {
		connect()
		wake, err := n.agent.sync(t.Context(), vmUID)
		if err != nil || wake <= 0 || wake > firstReconnectPause {
			t.Errorf("the next look is after %v, %v", wake, err)
		}
		if diff := cmp.Diff(written, &w.cluster.vm.Status); diff != "" {
			t.Errorf("the status is another for it (-want +got):\n%s", diff)
		}
		n.host.DisconnectAgent(string(vmUID))
		n.sync()
	}
	connect()
	now = now.Add(firstReconnectPause)
	n.sync()
	<-answered
	n.sync()
	n.expect(t, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ReasonGuestAgentConnected)
}

// A guest decides how long its agent takes to answer; the loop does not wait for that, and asks it once at a time.
func TestAGuestAgentThatHangs(t *testing.T) {
	w, n := running(t)
	now := w.now
	n.agent.Now = func() time.Time { return now } // the guest agent is asked on a goroutine of its own
	n.host.ConnectAgent(string(vmUID), func(string) (string, error) { return "", errors.New("no answer") })
	asked := make(chan struct{}, 10)
	n.agent.Host.OpenGuestAgent = func(context.Context, int, int) (GuestAgent, error) { return hangingAgent{asked}, nil }
	n.terminate()
	for range 3 {
		n.sync() // would hang
	}
	<-asked
	if !n.qemu(t).ShutdownAsked || len(asked) > 0 {
		t.Errorf("asked by ACPI: %t; its agent was asked %d times more", n.qemu(t).ShutdownAsked, len(asked))
	}
}

// hangingAgent is a guest agent that does not answer.
type hangingAgent struct{ asked chan<- struct{} }

func (hangingAgent) AgentCommand(ctx context.Context, _ string) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

func (a hangingAgent) PowerDown(ctx context.Context) error {
	a.asked <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (hangingAgent) Close() error { return nil }

func TestResync(t *testing.T) {
	w, n := running(t)
	var enqueued []types.UID
	n.enqueue = func(uid types.UID) { enqueued = append(enqueued, uid) }
	n.startAgent()
	n.silent = false
	resync := func(by func()) int {
		enqueued = nil
		by()
		return len(enqueued)
	}
	if resync(n.agent.ResyncChanged) != 1 {
		t.Error("a new agent does not look at its guest")
	}
	n.sync()
	if resync(n.agent.ResyncChanged) != 0 {
		t.Errorf("a guest that is as it was is looked at: %v", enqueued)
	}
	if resync(n.agent.ResyncAll) != 1 {
		t.Error("a full resync leaves the guest out")
	}
	n.host.PauseOnIOError(string(vmUID))
	if resync(n.agent.ResyncChanged) != 1 {
		t.Error("a guest that was paused is not looked at")
	}
	n.sync()
	w.cluster.vm.Status.NodeName, w.cluster.pod = "node-2", nil
	n.cache = w.cluster.copy()
	if resync(n.agent.ResyncAll) != 1 {
		t.Error("what is left of a guest that moved away is not looked at")
	}
}

func TestStartupProbeThatIsNotPassed(t *testing.T) {
	w, n := running(t, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{PeriodSeconds: 10, FailureThreshold: 3}}
	})
	n.shim.RunningFor = 29 * time.Second
	n.sync()
	if n.qemu(t).ShutdownAsked {
		t.Error("a guest that has time left is asked to power off")
	}
	n.shim.RunningFor = 31 * time.Second
	n.sync()
	if !n.qemu(t).ShutdownAsked {
		t.Error("a guest that did not pass its probe is not asked to power off")
	}
	n.shim.RunningFor = 61 * time.Second
	for range 3 {
		n.sync()
		n.host.NoticeExit(string(vmUID))
	}
	if exit := w.cluster.vm.Status.LastExit; exit == nil || exit.Reason != v1alpha1.ReasonStartupProbeFailed {
		t.Errorf("lastExit is %+v", exit)
	}
}
