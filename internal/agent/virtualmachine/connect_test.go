package virtualmachine

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/store"
)

// guardedMACs notes which MACs the taps' guards let through.
type guardedMACs struct {
	Network
	seen []string
}

func (g *guardedMACs) Connect(ctx context.Context, ns *os.File, c podnet.Config) (podnet.PodInterface, error) {
	for _, i := range c.Interfaces {
		g.seen = append(g.seen, i.MAC.String())
	}
	return g.Network.Connect(ctx, ns, c)
}

// TestAGuestKeepsItsMAC: the domain, the tap's guard and DHCP have the same one.
func TestAGuestKeepsItsMAC(t *testing.T) {
	want := berth.MAC(vmUID, 0).String()
	_, n := one(t)
	guarded := &guardedMACs{Network: n.agent.Host.Network}
	n.agent.Host.Network = guarded
	n.runContainer()
	n.sync()
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
	d, err := n.host.Libvirt.Domain(t.Context(), string(vmUID))
	if err != nil || !strings.Contains(d.XML, `<mac address="`+want+`">`) {
		t.Errorf("the domain does not have MAC %s: %v\n%s", want, err, d.XML)
	}
	if len(guarded.seen) != 1 || guarded.seen[0] != want {
		t.Errorf("the tap's guard lets through %v, want %s", guarded.seen, want)
	}
	if mac := net.HardwareAddr(n.shim.lease.MAC[:]); mac.String() != want {
		t.Errorf("DHCP serves %s, want %s", mac, want)
	}
}

// TestAVMOfALayoutThatIsGone gets no other hardware: it does not start, and says why.
func TestAVMOfALayoutThatIsGone(t *testing.T) {
	w, n := one(t)
	uid := string(vmUID)
	if _, err := n.host.Store.EnsureGuest(store.Identity{Namespace: "default", Name: "web", UID: uid}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.host.Store.Hardware(uid, store.Hardware{Layout: 1, Machine: "pc-q35-7.2"}); err != nil {
		t.Fatal(err)
	}
	n.runContainer()
	n.silent = false
	for range 3 {
		n.sync()
	}
	n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonHardwareUnknown)
	if all := n.host.QEMUs(uid); len(all) > 0 {
		t.Errorf("it has QEMUs: %+v", all)
	}
	if got := condition.Find(w.cluster.vm.Status.Conditions, v1alpha1.ConditionRunning).Message; !strings.Contains(got, "layout 1") {
		t.Errorf("it says %q", got)
	}
}
