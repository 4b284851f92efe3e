package virtualmachine

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/store"
)

// facts are those of the guest's domain.
func (n *node) facts(t *testing.T) domain.Facts {
	t.Helper()
	d, err := n.host.Libvirt.Domain(t.Context(), string(vmUID))
	if err != nil || !d.Exists {
		t.Fatalf("%+v, %v", d, err)
	}
	f, err := domain.ParseFacts(d.XML)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// portsOf notes which ports of the berth's localhost are kept from the guest.
type portsOf struct {
	Network
	reserved []uint16
}

func (p *portsOf) Connect(ctx context.Context, ns *os.File, c podnet.Config) (podnet.PodInterface, error) {
	p.reserved = c.ReservedPorts
	return p.Network.Connect(ctx, ns, c)
}

func TestWhatAShimIsHanded(t *testing.T) {
	display := func(vm *v1alpha1.VirtualMachine) { vm.Spec.Display = &v1alpha1.Display{Type: v1alpha1.DisplayVGA} }
	all := []shimproto.Kind{"console", "dhcp", "guest", "exit"}
	for name, tt := range map[string]struct {
		change func(*v1alpha1.VirtualMachine)
		want   []shimproto.Kind
		ports  []uint16
	}{
		"of a guest":                 {func(*v1alpha1.VirtualMachine) {}, all, nil},
		"of one with a display":      {display, append(all[:4:4], "display"), []uint16{5900}},
		"of one without a network":   {func(vm *v1alpha1.VirtualMachine) { vm.Spec.Networks = []v1alpha1.Network{} }, []shimproto.Kind{"console", "guest", "exit"}, nil},
		"of one without guest tools": {func(vm *v1alpha1.VirtualMachine) { vm.Spec.GuestTools = v1alpha1.GuestToolsNone }, all, nil},
		"of one that boots by a kernel": {func(vm *v1alpha1.VirtualMachine) {
			vm.Spec.Kernel = &v1alpha1.Kernel{Image: "registry/kernel:1", KernelPath: "/vmlinuz"}
		}, all, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, n := one(t, tt.change)
			n.host.AddImage(store.Content{Digest: digest, Kernel: "/vmlinuz"}, 1)
			network := &portsOf{Network: n.agent.Host.Network}
			n.agent.Host.Network = network
			n.runContainer()
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
			if diff := cmp.Diff(tt.want, n.shim.has); diff != "" {
				t.Errorf("the shim was handed (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.ports, network.reserved); diff != "" {
				t.Errorf("ports of the shim's (-want +got):\n%s", diff)
			}
			n.startAgent()
			n.silent = false
			n.sync() // the shim of this test takes no second guest
			n.host.PowerOff(string(vmUID))
			n.sync()
			if n.host.Consoles.Exists(string(vmUID)) {
				t.Error("a socket is left")
			}
			n.runContainer()
			n.sync()
			if diff := cmp.Diff(tt.want, n.shim.has); diff != "" {
				t.Errorf("at its next start the shim was handed (-want +got):\n%s", diff)
			}
			if b := n.host.Breaches(); len(b) > 0 {
				t.Error(b)
			}
		})
	}
}

// TestFirstStarts: who never had cloud-init data is not given any behind its back, and every guest that is offered the
// program has its disk.
func TestFirstStarts(t *testing.T) {
	uid := string(vmUID)
	bare := func(vm *v1alpha1.VirtualMachine) { vm.Spec.SSHAuthorizedKeys = nil }
	none := func(vm *v1alpha1.VirtualMachine) { bare(vm); vm.Spec.GuestTools = v1alpha1.GuestToolsNone }
	offered := func(vm *v1alpha1.VirtualMachine) { bare(vm); vm.Spec.GuestTools = v1alpha1.GuestToolsOffered }
	for name, tt := range map[string]struct {
		first, then func(*v1alpha1.VirtualMachine)
		seed, tools [2]bool
	}{
		"always offered":        {bare, bare, [2]bool{true, true}, [2]bool{true, true}},
		"offered later":         {none, offered, [2]bool{false, false}, [2]bool{false, true}},
		"not any more":          {bare, none, [2]bool{true, false}, [2]bool{true, false}},
		"cloud-init asked for":  {none, func(vm *v1alpha1.VirtualMachine) { vm.Spec.SSHAuthorizedKeys = []string{"ssh-ed25519 BBBB"} }, [2]bool{false, true}, [2]bool{false, false}},
		"cloud-init let go":     {func(*v1alpha1.VirtualMachine) {}, bare, [2]bool{true, true}, [2]bool{true, true}},
		"user data, no program": {func(vm *v1alpha1.VirtualMachine) { vm.Spec.GuestTools = v1alpha1.GuestToolsNone }, none, [2]bool{true, false}, [2]bool{false, false}},
	} {
		t.Run(name, func(t *testing.T) {
			w, n := running(t, tt.first)
			for i, change := range []func(*v1alpha1.VirtualMachine){nil, tt.then} {
				if change != nil {
					change(w.cluster.vm)
					w.cluster.vm.Generation++
					n.sync()
					n.host.PowerOff(uid)
					n.sync()
					n.runContainer()
					n.sync()
					n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
				}
				d, err := n.host.Libvirt.Domain(t.Context(), uid)
				f, hasSeed := n.facts(t), strings.Contains(d.XML, "/seeds/")
				if err != nil || hasSeed != tt.seed[i] || f.Tools != tt.tools[i] {
					t.Errorf("start %d: a seed: %t, tools: %t", i+1, hasSeed, f.Tools)
				}
				if got := strings.Contains(string(n.host.Seed(uid)), seed.StartTools); got != (tt.seed[i] && tt.tools[i]) {
					t.Errorf("start %d: its cloud-init starts the program: %t", i+1, got)
				}
			}
		})
	}
}

// TestAChangeOfGuestToolsWaits: it needs no new berth.
func TestAChangeOfGuestToolsWaits(t *testing.T) {
	w, n := running(t)
	w.cluster.vm.Spec.GuestTools = v1alpha1.GuestToolsNone
	n.sync()
	want := []v1alpha1.PendingChange{{Path: "guestTools", From: "Offered", To: "None", Effect: v1alpha1.EffectRestart}}
	if diff := cmp.Diff(want, w.cluster.vm.Status.PendingChanges); diff != "" {
		t.Errorf("pending changes (-want +got):\n%s", diff)
	}
	if f := n.facts(t); !f.Tools {
		t.Error("a guest that runs lost its disk")
	}
	w.cluster.vm.Spec.GuestTools = ""
	n.sync()
	if pending := w.cluster.vm.Status.PendingChanges; len(pending) > 0 {
		t.Errorf("after it was changed back %v is pending", pending)
	}
}

// TestNoGuestHasAPortThatNobodyReads: what it writes there would wait for ever.
func TestNoGuestHasAPortThatNobodyReads(t *testing.T) {
	for _, port := range []shimproto.Kind{shimproto.KindGuest, shimproto.KindExit} {
		_, n := one(t)
		n.sync()
		n.runContainer()
		n.shim.refuses = port
		n.sync()
		if all := n.host.QEMUs(string(vmUID)); len(all) > 0 || n.shim.Attached {
			t.Errorf("with a shim that does not take %s there is %+v", port, all)
		}
		n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonShimOutdated)
	}
}

func TestButtons(t *testing.T) {
	_, n := running(t)
	n.shim.Resets, n.shim.NMIs = 2, 1
	n.sync()
	n.sync()
	d, err := n.host.Libvirt.Domain(t.Context(), string(vmUID))
	if err != nil || d.Resets.Count != 1 || n.qemu(t).NMIs != 1 || n.shim.ResetsDone != 2 || n.shim.NMIsDone != 1 {
		t.Errorf("%d resets, %d NMIs, %v, and the shim was told of %d and %d", d.Resets.Count, n.qemu(t).NMIs, err, n.shim.ResetsDone, n.shim.NMIsDone)
	}
	n.shim.NMIs++
	n.host.SetLibvirtDown(true)
	n.sync()
	n.host.SetLibvirtDown(false)
	if n.shim.NMIsDone != 1 {
		t.Error("what libvirt did not do was confirmed")
	}
	n.startAgent()
	n.silent = false
	n.sync()
	if n.qemu(t).NMIs != 2 || n.shim.NMIsDone != 2 {
		t.Errorf("the next agent: %d NMIs, and the shim was told of %d", n.qemu(t).NMIs, n.shim.NMIsDone)
	}
}

// TestExitCode: the container ends with what the guest left, once its shim has read that.
func TestExitCode(t *testing.T) {
	w, n := running(t)
	w.pass(time.Minute) // what a start that goes well says is not waited for
	n.shim.Draining = true
	had := n.shim
	n.host.PowerOff(string(vmUID))
	n.sync()
	if had.ended || w.cluster.vm.Status.LastExit != nil {
		t.Error("the guest's end is told before its shim has read how")
	}
	had.ExitText, had.Draining = "3", false
	n.sync()
	state := n.here().Status.ContainerStatuses[0].State.Terminated
	if state == nil || state.ExitCode != 3 || state.Message != string(v1alpha1.ReasonPoweredOff) {
		t.Errorf("the container ended with %+v", state)
	}
	if exit := w.cluster.vm.Status.LastExit; exit == nil || exit.Reason != v1alpha1.ReasonPoweredOff || exit.ExitCode != 3 {
		t.Errorf("lastExit is %+v", exit)
	}
	n.startAgent() // the next one has it from kubelet
	n.sync()
	if exit := w.cluster.vm.Status.LastExit; exit.Reason != v1alpha1.ReasonPoweredOff || exit.ExitCode != 3 {
		t.Errorf("then lastExit is %+v", exit)
	}
}

// TestTheGuestAgentStartsTheProgram runs the same command as cloud-init does, and no refusal of it is seen.
func TestTheGuestAgentStartsTheProgram(t *testing.T) {
	w, n := running(t)
	commands := make(chan string, 16)
	n.host.ConnectAgent(string(vmUID), func(command string) (string, error) {
		if strings.Contains(command, "guest-exec") {
			commands <- command
			return `{"error":{"class":"CommandNotFound","desc":"Command guest-exec has been disabled"}}`, nil
		}
		return `{"return":{"version":"7.2.0"}}`, nil
	})
	answered := make(chan types.UID, 1)
	n.enqueue = func(uid types.UID) { answered <- uid }
	n.startAgent()
	n.silent = false
	now := w.now
	n.agent.Now = func() time.Time { return now } // the guest agent is asked on goroutines of their own
	n.sync()
	<-answered
	n.sync()
	if len(commands) > 0 {
		t.Error("it is asked at once")
	}
	now = now.Add(20 * time.Second)
	n.agent.Now = func() time.Time { return now }
	n.sync()
	command := <-commands
	if !strings.Contains(command, `"/bin/sh"`) || !strings.Contains(command, "LABEL=BERTH") {
		t.Errorf("it is asked to run %s", command)
	}
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	n.expect(t, v1alpha1.ConditionGuestAgentConnected, v1alpha1.ReasonGuestAgentConnected)
	if len(commands) > 0 {
		t.Errorf("after its refusal it was asked %d times", len(commands))
	}
}
