package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestStorm applies and deletes many guests at once on a node that can hold a few. Those run, the others wait, nobody
// else notices, and what Berth takes for it does not grow.
func TestStorm(t *testing.T) {
	l := startAlone(t)
	guests := deep(100, 1000, 1000)
	node := nodes(t)[0]
	here := "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	l.apply(strings.Replace(tiny, "name: tiny", "name: bystander", 1) + here)
	bystander := string(l.vm("bystander", "to be Ready", isReady).UID)
	qemu := fmt.Sprint(qemus(bystander))
	before := memory(t)

	// Five of these, and not six, fit into what the node has.
	free, err := strconv.ParseInt(strings.TrimSuffix(l.kubectl("", "get", "node", node, "-o", "jsonpath={.status.allocatable.memory}"), "Ki"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	size := fmt.Sprintf("%dMi", (free>>10)/11*2-512)
	var manifests strings.Builder
	for i := range guests {
		manifests.WriteString("---" + strings.NewReplacer("name: tiny", fmt.Sprintf("name: storm-%d, labels: {storm: here}", i), "96Mi", size).Replace(tiny) + here)
	}
	l.apply(manifests.String())
	count := func(is func(*v1alpha1.VirtualMachine) bool) (n int) {
		l.Helper()
		var vms v1alpha1.VirtualMachineList
		if err := l.List(l.Context(), &vms, client.InNamespace(l.ns)); err != nil {
			t.Fatalf("listing guests: %v", err)
		}
		for i := range vms.Items {
			if is(&vms.Items[i]) {
				n++
			}
		}
		return n
	}
	env.Eventually(t, "five and the bystander to run", func() bool { return count(runs) == 6 })
	env.Eventually(t, "all others to wait for room", func() bool {
		return count(func(vm *v1alpha1.VirtualMachine) bool {
			return has(vm, v1alpha1.ConditionScheduled, "False", v1alpha1.ReasonUnschedulable)
		}) == guests-5
	})
	during := memory(t)
	l.kubectl("", "delete", "vm", "-l", "storm", "--wait=false")
	env.Eventually(t, "the bystander to be left", func() bool { return count(func(*v1alpha1.VirtualMachine) bool { return true }) == 1 })
	if now := fmt.Sprint(qemus(bystander)); now != qemu {
		t.Errorf("the bystander's QEMU is %s and was %s", now, qemu)
	}
	after := memory(t)
	t.Logf("MiB before, during, after: %v, %v, %v", before, during, after)
	for pid, was := range before {
		if now, there := after[pid]; !there || now > was+32 {
			t.Errorf("process %s takes %d MiB now, and took %d", pid, now, was)
		}
	}
}

// memory is what the processes of agents and operators have for themselves, in MiB: not the pages of their programs,
// which the kernel takes back.
func memory(t *testing.T) map[string]int {
	t.Helper()
	taken := map[string]int{}
	for _, name := range []string{"/berth-agent", "/berth-operator"} {
		processes(name, func(pid string, _ []byte) {
			status, err := os.ReadFile("/proc/" + pid + "/status")
			if err != nil {
				return
			}
			_, anonymous, _ := strings.Cut(string(status), "\nRssAnon:")
			kib := 0
			if _, err := fmt.Sscan(anonymous, &kib); err != nil {
				t.Fatalf("reading RssAnon of process %s: %v", pid, err)
			}
			taken[name[1:]+" "+pid] = kib >> 10
		})
	}
	return taken
}
