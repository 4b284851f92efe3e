package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/test/env"
)

// TestUninstall takes Berth's chart, its CRDs and a namespace away under running guests, in the wrong order, and installs
// Berth again.
func TestUninstall(t *testing.T) {
	l := startAlone(t)
	other := &lab{t, l.WithWatch, l.ns + "-other"}
	l.kubectl("", "create", "namespace", other.ns)
	t.Cleanup(l.reinstall)
	l.apply(tiny)
	other.apply(tiny)
	vm, lost := l.vm("tiny", "to be Ready", isReady), other.vm("tiny", "to be Ready", isReady)
	l.logs("tiny").await("tiny: up")
	l.say("tiny", "count")
	qemu := fmt.Sprint(qemus(string(vm.UID)))
	counts := func() int { return strings.Count(l.kubectl("", "logs", "tiny"), "count ") }

	t.Log("the chart goes: guests run on")
	l.undo("helm", "uninstall", "berth", "-n", "berth-system", "--wait", "--timeout=2m")
	before := counts()
	env.Eventually(t, "the guest to count on", func() bool { return counts() >= before+20 })
	t.Log("a namespace goes without Berth: it waits for it")
	l.kubectl("", "delete", "namespace", other.ns, "--wait=false")

	t.Log("Berth is back: nobody noticed, and what waited goes")
	l.reinstall()
	await(t.Context(), l, &corev1.NamespaceList{}, "", other.ns, "the namespace to go", isGone[corev1.Namespace])
	nothingLeft(l, string(lost.UID))
	l.vm("tiny", "to be Ready", isReady)
	if now := fmt.Sprint(qemus(string(vm.UID))); now != qemu {
		t.Errorf("QEMU is %s and was %s", now, qemu)
	}
	counted(l, l.kubectl("", "logs", "tiny"))

	t.Log("the CRDs go, and with them all guests")
	l.kubectl("", "delete", "crd", "virtualmachines.berth.dev", "virtualmachineimages.berth.dev", "virtualmachinecommits.berth.dev", "virtualmachinehosts.berth.dev", "--timeout=2m")
	l.pod("tiny", "to be gone", isGone)
	nothingLeft(l, string(vm.UID))

	t.Log("Berth is back")
	l.reinstall()
	l.apply(tiny)
	l.vm("tiny", "to be Ready", isReady)
}

// reinstall installs Berth as the tree is now, whatever a test has made of it.
func (l *lab) reinstall() {
	l.Helper()
	l.undo("env", "BERTH_CACHE="+filepath.Dir(os.Getenv("LAB_DIR")), "lab", "-root", env.Root(), "up")
}
