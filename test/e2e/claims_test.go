package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// guestWith is a tiny guest that can be reached into, with disks.
func guestWith(name string, disks ...string) string {
	return "---" + strings.Replace(reached, "name: tiny", "name: "+name, 1) + "  disks:\n  - " + strings.Join(disks, "\n  - ") + "\n"
}

// claimed is a disk on the claim of its name; more are other fields.
func claimed(name, more string) string {
	return fmt.Sprintf("{name: %s, persistentVolumeClaim: {claimName: %[1]s}%s}", name, more)
}

func on(node string) string { return "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n" }

// disk in a guest is what its serial number says. A word is kept 64 MiB into it, past what a guest boots from.
const disk = `disk() { for d in /sys/block/vd*; do if [ "$(cat $d/serial)" = "$1" ]; then echo ${d##*/}; fi; done; }; word=131072; `

// keep has a guest write a word to disks.
func (l *lab) keep(vm, word string, disks ...string) {
	l.Helper()
	for _, name := range disks {
		l.sh(vm, disk+fmt.Sprintf("echo %s | dd of=/dev/$(disk %s) bs=512 seek=$word conv=sync,fsync 2>/dev/null", word, name))
	}
}

// kept waits until a guest, which may have to boot yet, reads a word from disks. It reads what the others wrote, too.
func (l *lab) kept(vm, word string, disks ...string) {
	l.Helper()
	for _, name := range disks {
		last := ""
		env.Eventually(l, "guest "+vm+" to be reached", func() bool {
			ran := l.exec(vm, nil, "sh", "-ec", disk+fmt.Sprintf(
				"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/$(disk %s) bs=512 skip=$word count=1 2>/dev/null | tr -d '\\0'", name))
			last = strings.TrimSpace(ran.out)
			return ran.code == 0
		})
		if last != word {
			l.Fatalf("disk %s of %s has %q, not %q", name, vm, last, word)
		}
	}
}

// sees waits until a disk has so many MiB, in the guest, at least.
func (l *lab) sees(vm, name string, mib int) {
	l.Helper()
	env.Eventually(l, fmt.Sprintf("disk %s of %s to have %d MiB", name, vm, mib), func() bool {
		ran := l.exec(vm, nil, "sh", "-ec", disk+"cat /sys/block/$(disk "+name+")/size")
		sectors, err := strconv.Atoi(strings.TrimSpace(ran.out))
		return err == nil && sectors>>11 >= mib
	})
}

// twoClaims are one of each mode, which one node at a time may have.
var twoClaims = claimOf("files", "Filesystem", "ReadWriteOnce", "300Mi") + claimOf("device", "Block", "ReadWriteOnce", "100Mi")

// stops: a guest is stopped and no node has its volumes. Kubelet's second look at a volume that was in use comes after two
// minutes; the first is to do.
func (l *lab) stops(vm string, volumes []string) {
	l.Helper()
	l.patch(vm, `{"state":"Stopped"}`)
	l.vm(vm, "to be Stopped", phase(v1alpha1.PhaseStopped))
	l.pod(vm, "to be gone", isGone)
	gone := time.Now()
	l.unused(volumes...)
	if late := time.Since(gone); late > time.Minute {
		l.Errorf("its volumes were in use for %v after its berth", late)
	}
}

// TestClaims: what a guest writes to a claim it finds again, whatever becomes of it.
func TestClaims(t *testing.T) {
	l := start(t)
	disks := []string{"files", "device"}
	guest := guestWith("tiny", claimed("files", ""), claimed("device", ""))
	l.apply(twoClaims + guest)
	vm := l.vm("tiny", "to be Ready", isReady)
	volumes := l.volumes()
	console := l.logs("tiny")
	l.kept("tiny", "", disks...)
	l.keep("tiny", "first", disks...)
	for name, size := range map[string]string{"files": "500Mi", "device": "200Mi"} {
		l.kubectl("", "patch", "pvc", name, "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"`+size+`"}}}}`)
	}

	t.Log("reboot")
	l.say("tiny", "reboot")
	console.awaitTimes("tiny: up", 2)
	l.kept("tiny", "first", disks...)

	t.Log("restart in place")
	killQEMU(l, vm)
	l.vm("tiny", "to be restarted", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts == 1 })
	l.kept("tiny", "first", disks...)
	if now := l.vm("tiny", "to be Ready", isReady); now.Status.Berth.PodUID != vm.Status.Berth.PodUID {
		t.Error("it has another berth")
	}

	t.Log("the claims have grown meanwhile")
	l.grow("files", "500Mi")
	l.grow("device", "200Mi")
	l.sees("tiny", "files", 350)
	l.sees("tiny", "device", 200)

	t.Log("stop, growth, and start")
	l.stops("tiny", volumes)
	l.kubectl("", "patch", "pvc", "device", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"300Mi"}}}}`)
	l.patch("tiny", `{"state":"Running"}`)
	l.vm("tiny", "to be Ready again", isReady)
	l.kept("tiny", "first", disks...)
	l.sees("tiny", "device", 300)
	l.keep("tiny", "second", disks...)

	t.Log("another VirtualMachine of its name")
	l.kubectl("", "delete", "vm", "tiny")
	l.unused(volumes...)
	nothingLeft(l, string(vm.UID))
	l.apply(guest)
	l.vm("tiny", "to be Ready", isReady)
	l.kept("tiny", "second", disks...)
}

// TestClaimSeeded: a blank claim gets its image, and one with data keeps that. A guest boots from it.
func TestClaimSeeded(t *testing.T) {
	l := start(t)
	roots := []string{"files", "device"}
	l.apply(twoClaims + guestWith("seeds", claimed("files", ", image: $TINY"), claimed("device", ", image: $TINY")))
	l.vm("seeds", "to be Ready", isReady)
	l.kept("seeds", "", roots...)
	l.keep("seeds", "kept", roots...)
	l.kubectl("", "delete", "vm", "seeds")
	boots := ""
	for _, name := range roots {
		boots += "---" + strings.NewReplacer("name: disked", "name: from-"+name, "{name: root, image: $TINY, size: 1Gi}", claimed(name, ", image: $TINY")).Replace(disked)
	}
	l.apply(boots)
	for _, name := range roots {
		l.vm("from-"+name, "to be Ready", isReady)
		l.logs("from-" + name).await("tiny: up")
	}
	l.kubectl("", "delete", "vm", "--all")
	l.apply(guestWith("looks", claimed("files", ""), claimed("device", "")))
	l.vm("looks", "to be Ready", isReady)
	l.kept("looks", "kept", roots...)
}

// TestClaimForeign: a claim with another's disk.img, as KubeVirt leaves it.
func TestClaimForeign(t *testing.T) {
	l := start(t)
	const kubevirt = "107"
	l.apply(claimOf("files", "Filesystem", "ReadWriteOnce", "300Mi") + holder("kubevirt", nodes(t)[0], kubevirt, []string{"files"}, nil))
	l.kubectl("", "wait", "pod/kubevirt", "--for=condition=Ready", "--timeout=2m")
	l.sh("kubevirt", "cd /disks/files; echo kept | dd of=disk.img bs=512 seek=131072; truncate -s 80M disk.img; chmod 660 disk.img")
	l.kubectl("", "delete", "pod", "kubevirt")
	l.apply(guestWith("tiny", claimed("files", "")))
	l.vm("tiny", "to be Ready", isReady)
	l.kept("tiny", "kept", "files")
	l.keep("tiny", "more", "files")
}

// TestClaimsOutliveBerth kills agent and libvirtd under a guest with claims. It does not notice, and its volumes are given back.
func TestClaimsOutliveBerth(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	disks := []string{"files", "device"}
	l.apply(twoClaims + guestWith("tiny", claimed("files", ""), claimed("device", "")) + on(node))
	vm := l.vm("tiny", "to be Ready", isReady)
	l.kept("tiny", "", disks...)
	qemu := fmt.Sprint(qemus(string(vm.UID)))
	l.onNode(node, "pkill", "-KILL", "-f", "^/berth-agent")
	victim{l, "berth-agent", node}.revive()
	l.onNode(node, "sh", "-ec", "pkill -KILL -x libvirtd; until virsh version >/dev/null 2>&1; do sleep 0.1; done")
	l.system("rollout", "status", "daemonset/berth-agent", "--timeout=1m")
	l.vm("tiny", "to be Ready", isReady)
	l.keep("tiny", "kept", disks...)
	if now := fmt.Sprint(qemus(string(vm.UID))); now != qemu {
		t.Errorf("QEMU was %s and is %s", qemu, now)
	}
	l.stops("tiny", l.volumes())
	l.patch("tiny", `{"state":"Running"}`)
	l.vm("tiny", "to be Ready again", isReady)
	l.kept("tiny", "kept", disks...)
}

// TestClaimHasOneWriter applies ten guests on one claim at once, which is for several nodes. One of them runs, and the
// others wait and say for whom, until it is gone.
func TestClaimHasOneWriter(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"Filesystem", "Block"} {
		t.Run(mode, func(t *testing.T) {
			l := start(t)
			const guests, turns = 10, 3
			manifest, names := claimOf("shared", mode, "ReadWriteMany", "300Mi"), [guests]string{}
			for i := range guests {
				names[i] = fmt.Sprintf("guest-%d", i)
				manifest += "---" + strings.Replace(tiny, "name: tiny", "name: "+names[i], 1) + "  disks: [" + claimed("shared", "") + "]\n"
			}
			l.apply(manifest)
			var uids []string
			for _, name := range names {
				uids = append(uids, string(l.vm(name, "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil }).UID))
			}
			one := watchOneOf(uids...)
			left := names[:]
			for range turns {
				who := l.runsAlone(left)
				l.kubectl("", "delete", "vm", who)
				left = slices.DeleteFunc(left, func(name string) bool { return name == who })
			}
			if several := one(); several != "" {
				t.Errorf("there were several QEMUs at once: %s", several)
			}
		})
	}
}

// runsAlone waits until one of some guests runs and all others wait for its claim.
func (l *lab) runsAlone(names []string) (who string) {
	l.Helper()
	env.Eventually(l, "one of the guests to be Ready", func() bool {
		var all v1alpha1.VirtualMachineList
		if err := l.List(l.Context(), &all, client.InNamespace(l.ns)); err != nil {
			return false
		}
		for i := range all.Items {
			if isReady(&all.Items[i]) {
				who = all.Items[i].Name
			}
		}
		return who != ""
	})
	for _, name := range names {
		if name == who {
			continue
		}
		l.vm(name, "to wait for "+who, func(vm *v1alpha1.VirtualMachine) bool {
			c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionScheduled)
			return has(vm, v1alpha1.ConditionScheduled, "False", v1alpha1.ReasonClaimInUse) && strings.Contains(c.Message, who)
		})
	}
	return who
}

// TestClaimShared: two guests that say so write to one claim, on two nodes.
func TestClaimShared(t *testing.T) {
	l := start(t)
	manifest := claimOf("shared", "Block", "ReadWriteMany", "100Mi")
	for _, node := range nodes(t)[:2] {
		manifest += guestWith(node, claimed("shared", ", access: Shared")) + on(node)
	}
	l.apply(manifest)
	one, two := nodes(t)[0], nodes(t)[1]
	for _, name := range []string{one, two} {
		l.vm(name, "to be Ready", isReady)
		l.kept(name, "", "shared")
	}
	l.keep(one, "one", "shared")
	l.kept(two, "one", "shared")
	l.keep(two, "two", "shared")
	l.kept(one, "two", "shared")
}

// volumeGroup is who owns the files of claims in berths: whoever has them, too, keeps them.
const volumeGroup = "1879113728"

// TestBadClaims: each claim that cannot be used has its reason, and is used once it can be.
func TestBadClaims(t *testing.T) {
	t.Parallel()
	onFiles := strings.TrimPrefix(guestWith("tiny", claimed("files", "")), "---")
	files := claimOf("files", "Filesystem", "ReadWriteOnce", "300Mi")
	holds := func(script string) func(l *lab) {
		return func(l *lab) {
			l.Helper()
			l.apply(files + holder("holder", nodes(l)[0], volumeGroup, []string{"files"}, nil))
			l.kubectl("", "wait", "pod/holder", "--for=condition=Ready", "--timeout=2m")
			l.sh("holder", "cd /disks/files; "+script)
		}
	}
	mends := func(script string) func(l *lab) {
		return func(l *lab) { l.Helper(); l.sh("holder", "cd /disks/files; "+script) }
	}
	run(t, []bad{
		{
			name: "a claim that is missing", manifest: onFiles,
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonClaimMissing, says: "files",
			repair: func(l *lab) { l.Helper(); l.apply(files) },
		},
		{
			name: "sharing what only one node may have", manifest: strings.TrimPrefix(guestWith("tiny", claimed("files", ", access: Shared")), "---"),
			before:    func(l *lab) { l.Helper(); l.apply(files) },
			condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonClaimAccess, says: "ReadWriteMany",
			repair: patched(`{"disks":[{"name":"files","persistentVolumeClaim":{"claimName":"files"}}]}`),
		},
		{
			name: "a disk.img that leads elsewhere", manifest: onFiles + on(nodes(t)[0]), before: holds("ln -s /etc/passwd disk.img"),
			condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonVolumeUnsafe, says: "disk.img", repair: mends("rm disk.img"),
		},
		{
			name: "a disk.img in qcow2", manifest: onFiles + on(nodes(t)[0]), before: holds(`printf 'QFI\373' >disk.img; truncate -s 8M disk.img; chmod 660 disk.img`),
			condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonVolumeUnsafe, says: "qemu-img convert -O raw", repair: mends("rm disk.img"),
		},
		{
			name: "a disk.img that another keeps for himself", manifest: onFiles + on(nodes(t)[0]), before: holds("truncate -s 8M disk.img; chmod 600 disk.img"),
			condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonVolumeNotWritable, says: "chmod g+rw", repair: mends("chmod 660 disk.img"),
		},
		{
			name: "an image that is larger than the claim", manifest: strings.TrimPrefix(guestWith("tiny", claimed("device", ", image: $TINY")), "---"),
			before:    func(l *lab) { l.Helper(); l.apply(claimOf("device", "Block", "ReadWriteOnce", "16Mi")) },
			condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonVolumeTooSmall, says: "16",
			repair: func(l *lab) { l.Helper(); l.grow("device", "64Mi") },
		},
	})
}
