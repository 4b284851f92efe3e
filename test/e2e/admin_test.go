package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/test/env"
)

// TestAdministrator has an administrator use virsh on a guest of Berth's, and run a domain of their own beside it.
func TestAdministrator(t *testing.T) {
	l := start(t)
	node := nodes(t)[0]
	virsh := func(args ...string) string {
		l.Helper()
		return strings.TrimSpace(l.onNode(node, append([]string{"virsh", "-q"}, args...)...))
	}
	domain := func(verb, name, uuid string) {
		l.Helper()
		xml := fmt.Sprintf("<domain type='qemu'><name>%s</name><uuid>%s</uuid><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os></domain>", name, uuid)
		l.onNode(node, "sh", "-c", fmt.Sprintf(`f=$(mktemp); echo "%s" >$f; virsh -q %s $f; rm $f`, xml, verb))
	}
	gone := func(name string) {
		l.undo("lab", "exec", node, "--", "sh", "-c", "virsh destroy "+name+"; virsh undefine "+name+"; true")
	}
	foreign, thief := "foreign-"+l.ns, "thief-"+l.ns
	t.Cleanup(func() { gone(foreign); gone(thief) })
	domain("create", foreign, "be57be57-1111-4000-8000-000000000001")
	id := virsh("domid", foreign)

	l.apply(tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n")
	uid := string(l.vm("tiny", "to be Ready", isReady).UID)
	ours := berth.DomainName(l.ns, "tiny")

	t.Log("virsh destroy")
	virsh("destroy", ours)
	l.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Restarts == 1 && vm.Status.LastExit != nil && vm.Status.LastExit.Reason == v1alpha1.ReasonDestroyed
	})
	l.event("tiny", v1alpha1.ReasonDestroyed)

	t.Log("virsh suspend")
	virsh("suspend", ours)
	l.event("tiny", v1alpha1.ReasonPausedExternally)
	env.Eventually(t, "the guest to run on", func() bool { return virsh("domstate", ours) == "running" })

	t.Log("a domain with the guest's UUID")
	l.patch("tiny", `{"state":"Stopped"}`)
	l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped))
	domain("define", thief, uid)
	l.patch("tiny", `{"state":"Running"}`)
	l.vm("tiny", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, "Unknown", v1alpha1.ReasonDomainNameTaken)
	})
	if state := virsh("domstate", thief); state != "shut off" {
		t.Errorf("the stranger's domain was touched: it is %s", state)
	}
	gone(thief)
	l.vm("tiny", "to be Ready again", isReady)

	if now := virsh("domid", foreign); now != id {
		t.Errorf("the foreign domain was touched: its ID is %s and was %s", now, id)
	}
}
