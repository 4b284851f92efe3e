package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// hostileGuest is one that somebody broke into, and its berth.
type hostileGuest struct {
	*lab
	vm                *v1alpha1.VirtualMachine
	berth             *corev1.Pod
	console, keyboard *console
	qemu, shim, agent string // processes
}

// TestHostileGuest has a guest do to its berth and its node what somebody can who broke into it. No frame but honest ones
// leaves the berth, and guest, shim and agent are as they were: it costs them next to nothing.
func TestHostileGuest(t *testing.T) {
	l := start(t)
	l.apply(strings.NewReplacer("name: tiny", "name: hostile", "$KERNEL", "$HOSTILE", "96Mi", "192Mi").Replace(tiny))
	g := hostileGuest{lab: l, vm: l.vm("hostile", "to be Ready", isReady)}
	g.console = l.logs("hostile")
	g.console.await("tiny: address 10.0.2.2")
	g.keyboard = l.attach("hostile")
	g.berth = l.pod("hostile", "to be there", exists)
	g.qemu, g.shim, g.agent = qemus(string(g.vm.UID))[0], l.processOf("berth-shim", g.berth), l.agentOf(g.vm)
	before, writes := look(t, g.agent), l.writesTo("hostile")

	t.Log("frames of every kind")
	g.sendFrames()
	t.Log("a flood of DHCP")
	g.order("dhcp", 30000)
	g.console.await("lease of 10.0.2.2 obtained from 10.0.2.1") // it is served as ever
	t.Log("a flood of the console")
	g.floodConsole(512)
	t.Log("a guest agent that lies, and tells the truth at last")
	g.lie()
	t.Log("a guest agent's channel that opens and closes")
	g.flapChannel(5000)

	after, peak := look(t, g.agent), statusKiB(t, g.shim, "VmHWM")
	t.Logf("the agent before: %+v; after: %+v; the shim's memory: %d KiB at most; its VirtualMachine was written %d times", before, after, peak, writes())
	if peak > 8<<10 { // the design's goal
		t.Errorf("the shim took %d KiB", peak)
	}
	if after.memory > before.memory+64<<10 { // it works for others at the same time
		t.Errorf("the agent takes %d KiB, and took %d", after.memory, before.memory)
	}
	if n := writes(); n > 6 { // two each for what was told as names and for the truth
		t.Errorf("its VirtualMachine was written %d times", n)
	}
	g.isUnharmed()
	g.isNotQuoted()
}

// order has the guest do something, and waits until it is done.
func (g hostileGuest) order(verb string, argument any) {
	g.Helper()
	g.keyboard.say(fmt.Sprintf("hostile %s %v", verb, argument))
	g.console.await("hostile: " + verb + " ")
	if _, failure, failed := strings.Cut(g.console.String(), "hostile: "+verb+" failed"); failed {
		g.Fatalf("the guest could not do %s%.500s", verb, failure)
	}
}

// sendFrames: of all kinds nothing but the two honest ones leaves the berth.
func (g hostileGuest) sendFrames() {
	g.Helper()
	berth, node := g.watchFrames(g.shim, g.berth.Status.PodIP), g.watchFrames(g.qemu, "")
	g.order("frames", g.otherNode(g.vm))
	for _, w := range []*witness{berth, node} {
		w.await("honest") // the last
		w.sawOnly("honest", "honest in VLAN 0")
	}
}

// floodConsole: every byte comes to the log, whatever a terminal would make of it.
func (g hostileGuest) floodConsole(kib int) {
	g.Helper()
	g.order("console", kib)
	_, flood, _ := strings.Cut(g.console.String(), fmt.Sprintf("hostile console %d", kib))
	if len(flood) < kib<<10 || strings.Contains(flood, "of console dropped]") {
		g.Errorf("the log has %d bytes of %d KiB, the last %q", len(flood), kib, flood[max(0, len(flood)-200):])
	}
}

// flapChannel: the agent does not spend its time on it.
func (g hostileGuest) flapChannel(times int) {
	g.Helper()
	began, before := time.Now(), look(g.T, g.agent)
	g.order("channel", times)
	spent, took := look(g.T, g.agent).cpu-before.cpu, time.Since(began)
	g.Logf("the agent spent %v of CPU in %v", spent, took)
	if spent > took/2 { // for all of its guests
		g.Errorf("the agent spent %v of CPU in %v", spent, took)
	}
}

// lie: what is no answer is none, and the next answer counts.
func (g hostileGuest) lie() {
	g.Helper()
	g.keyboard.say("hostile agent")
	vm := g.lab.vm("hostile", "to have what an honest guest agent tells", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && vm.Status.Guest != nil && vm.Status.Guest.GuestAgentVersion == "1.0-honest"
	})
	g.console.await("hostile: agent done")
	if told := *vm.Status.Guest; told != (v1alpha1.GuestInfo{GuestAgentVersion: "1.0-honest", Hostname: "tiny", OS: "Tiny"}) {
		g.Errorf("the guest is %+v", told)
	}
}

func (g hostileGuest) isUnharmed() {
	g.Helper()
	g.lab.vm("hostile", "to be Ready still", isReady)
	if now := g.pod("hostile", "to be there", exists); now.UID != g.berth.UID || now.Status.ContainerStatuses[0].RestartCount != 0 {
		g.Errorf("the berth is %s and was restarted %d times; it was %s", now.UID, now.Status.ContainerStatuses[0].RestartCount, g.berth.UID)
	}
	if now := qemus(string(g.vm.UID)); len(now) != 1 || now[0] != g.qemu {
		g.Errorf("its QEMU is %v and was %s", now, g.qemu)
	}
}

// isNotQuoted: nothing that a terminal obeys is anywhere but in the console's log.
func (g hostileGuest) isNotQuoted() {
	g.Helper()
	var objects any
	if err := json.Unmarshal([]byte(g.kubectl("", "get", "vm,pods,events", "-o", "json")), &objects); err != nil {
		g.Fatal(err)
	}
	texts := append(textsOf(objects), g.kubectl("", "--namespace=berth-system", "logs", "--selector=app.kubernetes.io/name=berth-agent", "--tail=-1", "--since=10m"))
	for _, text := range texts {
		if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && (unicode.IsControl(r) || r == '\u202e') }); i >= 0 {
			g.Errorf("a terminal would obey %q", text[max(0, i-200):min(len(text), i+50)])
		}
	}
}

// textsOf are all strings of a JSON document.
func textsOf(document any) (all []string) {
	switch d := document.(type) {
	case string:
		return []string{d}
	case []any:
		for _, one := range d {
			all = append(all, textsOf(one)...)
		}
	case map[string]any:
		for _, one := range d {
			all = append(all, textsOf(one)...)
		}
	}
	return all
}
