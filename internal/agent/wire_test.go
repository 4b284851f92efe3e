package agent

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/plan"
)

func vmWith(networks ...string) *v1alpha1.VirtualMachine {
	vm := &v1alpha1.VirtualMachine{}
	for _, name := range networks {
		vm.Spec.Networks = append(vm.Spec.Networks, v1alpha1.Network{Name: name, Pod: &v1alpha1.PodNetwork{}})
	}
	return vm
}

func TestWhatAShimLacks(t *testing.T) {
	takes := func(kinds ...shimproto.Kind) shimproto.State { return shimproto.State{Minor: 1, Kinds: kinds} }
	for name, c := range map[string]struct {
		vm   *v1alpha1.VirtualMachine
		says shimproto.State
		want []string
	}{
		"all is taken, in another order":   {vmWith("a"), takes("lease", "console"), nil},
		"a shim of 1.0 takes what it did":  {vmWith("a"), shimproto.State{}, nil},
		"more is taken than is needed":     {vmWith(), takes("console", "hologram"), nil},
		"no leases":                        {vmWith("a"), takes("console"), []string{"lease"}},
		"two networks lack one thing":      {vmWith("a", "b"), takes("console"), []string{"lease"}},
		"what is not needed is not lacked": {vmWith(), takes("console"), nil},
		"nothing that is needed is taken":  {vmWith("a"), takes("hologram"), []string{"console", "lease"}},
		"a VM that is gone needs nothing":  {nil, takes("hologram"), nil},
	} {
		n := &link{known: true, state: c.says}
		if diff := cmp.Diff(&plan.Shim{Lacks: c.want}, n.shimState(c.vm)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if s := (&link{}).shimState(vmWith("a")); s != nil {
		t.Errorf("a shim that has not spoken: %+v", s)
	}
}

// TestOnlyWhatAShimTakesIsHandedOver runs on a shim's end of the socket in this process: opening the lease's socket,
// which that shim does not take, would fail.
func TestOnlyWhatAShimTakesIsHandedOver(t *testing.T) {
	a, g := &Agent{Options: Options{RunDir: t.TempDir()}}, &guest{uid: "u"}
	if err := os.Mkdir(filepath.Join(a.RunDir, "consoles"), 0o700); err != nil {
		t.Fatal(err)
	}
	qemu, err := net.Listen("unix", a.consolePath("u"))
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	shim, err := shimproto.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(shimproto.AgentFD)
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(self)
	conn, err := shimproto.Take(self)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	heard, got := make(chan shimproto.State, 1), make(chan shimproto.Message, 1)
	go func() { _ = conn.Receive(func(s shimproto.State) { heard <- s }) }()
	go shim.Receive(func(m shimproto.Message, files []*os.File) {
		for _, f := range files {
			_ = f.Close()
		}
		got <- m
	}, func(error) {})
	shim.Publish(shimproto.State{Minor: 1, Kinds: []shimproto.Kind{shimproto.KindConsole}})

	g.VM, g.link = vmWith("default"), &link{container: "c", conn: conn, known: true, state: <-heard}
	if err := a.attach(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	want := shimproto.HandOver{InstanceID: "c", Devices: []shimproto.Device{{Kind: shimproto.KindConsole, Name: "console"}}}
	if diff := cmp.Diff(shimproto.Message(want), <-got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !g.link.attached {
		t.Error("the agent does not know that it has handed over")
	}
}
