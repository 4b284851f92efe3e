package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func exists(p *corev1.Pod) bool { return p != nil }

// processOf is the ID of the process of a program in a pod.
func (l *lab) processOf(program string, pod *corev1.Pod) (pid string) {
	l.Helper()
	processes("/"+program, func(id string, _ []byte) {
		if group, _ := os.ReadFile("/proc/" + id + "/cgroup"); strings.Contains(string(group), string(pod.UID)) {
			pid = id
		}
	})
	if pid == "" {
		l.Fatalf("there is no %s in pod %s", program, pod.Name)
	}
	return pid
}

// agentOf is the process of the agent that cares for a guest.
func (l *lab) agentOf(vm *v1alpha1.VirtualMachine) string {
	l.Helper()
	var pods corev1.PodList
	if err := l.List(l.Context(), &pods, client.InNamespace("berth-system"), client.MatchingLabels{"app.kubernetes.io/name": "berth-agent"}); err != nil {
		l.Fatal(err)
	}
	for i := range pods.Items {
		if pods.Items[i].Spec.NodeName == vm.Status.NodeName {
			return l.processOf("berth-agent", &pods.Items[i])
		}
	}
	l.Fatalf("node %s has no agent", vm.Status.NodeName)
	return ""
}

func (l *lab) addressOf(node string) string {
	l.Helper()
	return l.kubectl("", "get", "node", node, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
}

// otherNode is the address of a node that a guest is not on.
func (l *lab) otherNode(vm *v1alpha1.VirtualMachine) string {
	l.Helper()
	for _, node := range nodes(l) {
		if node != vm.Status.NodeName {
			return l.addressOf(node)
		}
	}
	l.Fatal("there is no other node")
	return ""
}

// cost is what a process takes.
type cost struct {
	memory int // KiB of its own
	cpu    time.Duration
}

func look(t *testing.T, pid string) cost {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	const tick = time.Second / 100 // USER_HZ, of proc(5)
	_, rest, _ := strings.Cut(string(stat), ") ")
	ticks := 0
	for _, field := range strings.Fields(rest)[11:13] { // utime, stime
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return cost{memory: statusKiB(t, pid, "RssAnon"), cpu: time.Duration(ticks) * tick}
}

// statusKiB is a line of a process's status, in KiB.
func statusKiB(t *testing.T, pid, line string) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\n"+line+":")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("reading %s of process %s: %v", line, pid, err)
	}
	return kib
}

// writesTo counts how often a VirtualMachine is written from now on.
func (l *lab) writesTo(name string) (count func() int64) {
	l.Helper()
	w, err := l.Watch(l.Context(), &v1alpha1.VirtualMachineList{}, &client.ListOptions{
		Namespace: l.ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", name),
	})
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(w.Stop)
	var writes atomic.Int64
	go func() {
		for e := range w.ResultChan() {
			if e.Type == watch.Modified {
				writes.Add(1)
			}
		}
	}()
	return writes.Load
}
