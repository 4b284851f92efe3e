package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestKilled kills agents and operators, each for guests of its own, and at once if it is not for long: with its agent
// killed again and again for longer than its grace period, a guest that is stopped is rightly forced off.
func TestKilled(t *testing.T) {
	t.Run("agent", agentKilled)
	t.Run("operator", operatorKilled)
}

func atOnceIfShort(t *testing.T) {
	if *depth == 0 {
		t.Parallel()
	}
}

// agentKilled kills agents again and again, at any moment, while guests count. No guest may notice.
func agentKilled(t *testing.T) {
	atOnceIfShort(t)
	l := startAlone(t)
	kills, seed := deep(10, 200, 1000), time.Now().UnixNano()
	t.Logf("%d kills, seed %d", kills, seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	nodes := nodes(t)

	const guests = 5
	vms, consoles, uids, pids := [guests]*v1alpha1.VirtualMachine{}, [guests]*console{}, [guests]string{}, [guests]string{}
	name := func(i int) string { return fmt.Sprintf("guest-%d", i) }
	for i := range guests {
		l.apply(strings.Replace(tiny, "name: tiny", "name: "+name(i), 1) + "  nodeSelector: {kubernetes.io/hostname: " + nodes[i%len(nodes)] + "}\n")
	}
	for i := range guests {
		vms[i] = l.vm(name(i), "to be Ready", isReady)
		consoles[i] = l.logs(name(i))
		consoles[i].await("tiny: up")
		l.say(name(i), "count")
		uids[i] = string(vms[i].UID)
		pids[i] = fmt.Sprint(qemus(uids[i]))
	}
	one := watchOne(uids[:]...)
	starts := func() string {
		return l.kubectl("", "get", "events", "--field-selector", "involvedObject.kind=VirtualMachine,reason="+string(v1alpha1.ReasonStarted), "-o", "name")
	}
	started := starts()
	for i := range kills {
		node := nodes[i%len(nodes)]
		l.onNode(node, "sh", "-c", "until pkill -KILL -f ^/berth-agent; do sleep 0.05; done")
		victim{l, "berth-agent", node}.revive()
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond) // at any moment of its life
	}
	l.system("rollout", "status", "daemonset/berth-agent", "--timeout=1m")
	for i := range guests {
		vm := l.vm(name(i), "to be Ready", isReady)
		pod := l.pod(name(i), "to be there", func(p *corev1.Pod) bool { return p != nil })
		if pod.Status.ContainerStatuses[0].RestartCount != 0 || vm.Status.Berth.PodUID != vms[i].Status.Berth.PodUID {
			t.Errorf("%s was restarted", name(i))
		}
		if now := fmt.Sprint(qemus(uids[i])); now != pids[i] {
			t.Errorf("%s has QEMU %s, had %s", name(i), now, pids[i])
		}
		counted(l, consoles[i].String())
	}
	if several := one(); several != "" {
		t.Errorf("there were several QEMUs at once: %s", several)
	}
	if told := l.kubectl("", "get", "events", "--field-selector", "reason="+string(v1alpha1.ReasonLibvirtUnreachable), "-o", "name"); told != "" {
		t.Errorf("an agent that had just begun called libvirtd unreachable: %s", told)
	}
	if told := starts(); told != started {
		t.Errorf("agents that had just begun told of starts: %s; before %s", told, started)
	}
}

// operatorKilled kills the leading operator each time before a guest is to do something, so that another one leads.
func operatorKilled(t *testing.T) {
	atOnceIfShort(t)
	for round := range deep(1, 6, 20) {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			l := startAlone(t)
			v := victim{l, "berth-operator", ""}
			c := l.begin(few(journeysOf(l.ns)))
			for _, j := range c.list {
				v.killLeader()
				c.act(j)
			}
			c.finish()
			l.system("rollout", "status", "deployment/berth-operator", "--timeout=1m")
		})
	}
}

// killLeader kills the operator that leads, and waits until another one does.
func (v victim) killLeader() {
	v.Helper()
	was := ""
	env.Eventually(v, "an operator to lead", func() bool { was = v.leader(); return was != "" })
	pod := await(v.Context(), v.lab, &corev1.PodList{}, "berth-system", was, "the leader's pod", func(p *corev1.Pod) bool { return p != nil })
	processes("/"+v.name, func(pid string, _ []byte) {
		group, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		if id, err := strconv.Atoi(pid); err == nil && strings.Contains(string(group), string(pod.UID)) {
			_ = syscall.Kill(id, syscall.SIGKILL)
		}
	})
	if err := client.IgnoreNotFound(v.Delete(v.Context(), pod, client.GracePeriodSeconds(1))); err != nil {
		v.Fatalf("deleting %s: %v", was, err)
	}
	v.yieldLease()
	env.Eventually(v, "another operator to lead", func() bool { is := v.leader(); return is != "" && is != was })
}

// leader is the name of the pod that leads, "" while none does.
func (v victim) leader() string {
	v.Helper()
	var lease coordinationv1.Lease
	if err := v.Get(v.Context(), client.ObjectKey{Namespace: "berth-system", Name: v.name}, &lease); err != nil || lease.Spec.HolderIdentity == nil {
		return ""
	}
	return *lease.Spec.HolderIdentity
}
