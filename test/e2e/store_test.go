package e2e

import (
	"fmt"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/test/brokendisk"
)

// TestStoreFull fills the node's disk before a guest is made, and again while it writes.
func TestStoreFull(t *testing.T) {
	node := nodes(t)[1]
	l := startOn(t, node)
	sh := func(script string) { l.Helper(); l.undo("lab", "exec", node, "--", "sh", "-ec", script) }
	agent := victim{l, "berth-agent", node}
	t.Cleanup(func() {
		sh("umount -l /var/lib/berth")
		agent.revive()
	})
	sh("cp /var/lib/berth/id /run/store-id; mount -t tmpfs -o size=64m,mode=755 tmpfs /var/lib/berth; mv /run/store-id /var/lib/berth/id")
	agent.revive()
	fill := func() { l.Helper(); sh("dd if=/dev/zero of=/var/lib/berth/filler bs=1M 2>/dev/null || true") }
	free := func() { l.Helper(); sh("rm /var/lib/berth/filler") }

	t.Log("before its disk is made")
	fill()
	l.apply(disked + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n")
	vm := l.vm("disked", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionDisksReady, "False", v1alpha1.ReasonStoreFull)
	})
	l.event("disked", v1alpha1.ReasonStoreFull)
	free()
	l.vm("disked", "to be Ready", isReady)
	console := l.logs("disked")
	console.await("tiny: up")

	t.Log("while it writes")
	fill()
	l.say("disked", "write 8")
	l.vm("disked", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, "False", v1alpha1.ReasonDiskIOError)
	})
	free()
	console.await("tiny: wrote 8")
	l.vm("disked", "to run on", runs)
	l.kubectl("", "delete", "vm", "disked")
	nothingLeftOn(l, node, string(vm.UID)) // the other node is disturbed, too
}

// TestStoreFails has the node's disk fail before a guest is made, and again while it writes.
func TestStoreFails(t *testing.T) {
	node := nodes(t)[1]
	l := startOn(t, node)
	const store = "/var/lib/berth"
	sh := func(script string) { l.Helper(); l.undo("lab", "exec", node, "--", "sh", "-ec", script) }
	agent := victim{l, "berth-agent", node}
	t.Cleanup(func() {
		sh("rm -r " + store + ".real")
		agent.revive()
	})
	sh("rm -rf " + store + ".real; mkdir " + store + ".real; cp " + store + "/id " + store + ".real; test -e /dev/fuse || mknod /dev/fuse c 10 229")
	disk := l.sabotage(node, breakDisk, store)

	t.Log("before the agent begins")
	disk.order(brokendisk.Break)
	agent.revive()
	l.host(node, "to tell of it", func(h *v1alpha1.VirtualMachineHost) bool {
		return condition.Reason(h.Status.Conditions, v1alpha1.ConditionHostReady) == v1alpha1.ReasonStoreFailed
	})
	disk.order(brokendisk.Repair)
	l.host(node, "to be ready", hostReady)

	t.Log("before its disk is made")
	disk.order(brokendisk.Break)
	l.apply(disked + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n")
	vm := l.vm("disked", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionDisksReady, "False", v1alpha1.ReasonStoreFailed)
	})
	l.event("disked", v1alpha1.ReasonStoreFailed)
	disk.order(brokendisk.Repair)
	l.vm("disked", "to be Ready", isReady)
	console := l.logs("disked")
	console.await("tiny: up")

	t.Log("while it writes")
	one, qemu := watchOne(string(vm.UID)), fmt.Sprint(qemus(string(vm.UID)))
	disk.order(brokendisk.Break)
	l.say("disked", "write 8")
	// The agent may tell first that it cannot read the store, and the guest is to have met the error, too.
	l.onNode(node, "sh", "-ec", "until virsh domstate --reason "+l.ns+"_disked | grep -q I/O; do sleep 0.1; done")
	l.vm("disked", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, "False", v1alpha1.ReasonDiskIOError) || has(vm, v1alpha1.ConditionRunning, "Unknown", v1alpha1.ReasonStoreFailed)
	})
	disk.order(brokendisk.Repair)
	console.await("tiny: wrote 8")
	l.vm("disked", "to run on", runs)
	if now, several := fmt.Sprint(qemus(string(vm.UID))), one(); now != qemu || several != "" {
		t.Errorf("QEMU was %s and is %s; several: %s", qemu, now, several)
	}
	l.kubectl("", "delete", "vm", "disked")
	nothingLeftOn(l, node, string(vm.UID)) // the other node is disturbed, too
}
