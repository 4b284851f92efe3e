package e2e

import (
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
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
	sh("mount -t tmpfs -o size=64m,mode=755 tmpfs /var/lib/berth")
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
		return has(vm, v1alpha1.ConditionRunning, "False", v1alpha1.ReasonDiskBlocked)
	})
	free()
	console.await("tiny: wrote 8")
	l.vm("disked", "to run on", runs)
	l.kubectl("", "delete", "vm", "disked")
	nothingLeft(l, string(vm.UID))
}
