package e2e

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestDiskLost takes a guest's directory out of its node's store, and puts it back; then it wipes the header of its disk
// while it runs. A disk is never made a second time, and what cannot be read is deleted like any other.
func TestDiskLost(t *testing.T) {
	l := start(t)
	node := nodes(t)[0]
	pinned := "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	l.apply(disked + pinned)
	l.apply(tiny + pinned)
	uid := string(l.vm("disked", "to be Ready", isReady).UID)
	l.logs("disked").await("tiny: up")
	l.vm("tiny", "to be Ready", isReady)
	untouched := l.goesOn("tiny")
	const store = "/var/lib/berth"
	dir, away := store+"/vms/"+uid, store+"/lost-"+uid // on the same file system: a disk is linked to its image
	disk := dir + "/root.qcow2"
	inode := func() string { return strings.TrimSpace(l.onNode(node, "stat", "-c", "%i", disk)) }
	before := inode()

	t.Log("the directory is gone while the guest is stopped")
	l.patch("disked", `{"state":"Stopped"}`)
	l.vm("disked", "to be Stopped", phase(v1alpha1.PhaseStopped))
	l.onNode(node, "mv", dir, away)
	t.Cleanup(func() { l.undo("lab", "exec", node, "--", "rm", "-rf", away) })
	l.patch("disked", `{"state":"Running"}`)
	l.vm("disked", "to say that its disk is missing", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionDisksReady, metav1.ConditionFalse, v1alpha1.ReasonDiskMissing) && len(vm.Status.Disks) == 1
	})
	l.event("disked", v1alpha1.ReasonDiskMissing)
	if made := l.onNode(node, "sh", "-c", "ls "+dir+" 2>/dev/null; true"); made != "" || len(qemus(uid)) > 0 {
		t.Errorf("without its disk there are QEMUs %v, and in its directory %q", qemus(uid), made)
	}
	l.onNode(node, "mv", away, dir)
	l.vm("disked", "to be Ready once it is back", isReady)
	if now := inode(); now != before {
		t.Errorf("its disk is inode %s, and was %s", now, before)
	}
	l.logs("disked").await("tiny: up")
	untouched("the loss of the other's disk")

	t.Log("the header of the disk is gone while the guest runs")
	runsOn := fmt.Sprint(qemus(uid))
	l.onNode(node, "dd", "if=/dev/zero", "of="+disk, "bs=4096", "count=1", "conv=notrunc")
	l.patch("disked", `{"terminationGracePeriodSeconds":19}`) // has it looked at
	l.vm("disked", "to say that its disk cannot be read, and run", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionDisksReady, metav1.ConditionUnknown, v1alpha1.ReasonImageNotDisk) && runs(vm) && len(vm.Status.Disks) == 1
	})
	if now := fmt.Sprint(qemus(uid)); now != runsOn {
		t.Errorf("its QEMU was %s and is %s", runsOn, now)
	}
	l.kubectl("", "delete", "vm", "disked")
	nothingLeft(l, uid)
	untouched("the end of the other")
}
