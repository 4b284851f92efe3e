package virtualmachine

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
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

// TestAGuestKeepsItsMAC: the domain, the tap's guard and DHCP have the same one, and a VM from before MACs came from its UID
// alone has the one that it was first started with, on whichever layout.
func TestAGuestKeepsItsMAC(t *testing.T) {
	before := berth.NetworkMAC(vmUID, "default").String()
	for name, tc := range map[string]struct {
		recorded *store.Hardware
		want     string
	}{
		"a new VM":             {nil, berth.MAC(vmUID, 0).String()},
		"a VM of the layout 1": {&store.Hardware{Layout: 1, Machine: "pc-q35-7.2"}, before},
		"a VM of the layout 0": {&store.Hardware{Layout: 0, Machine: "pc-q35-7.2"}, before},
	} {
		t.Run(name, func(t *testing.T) {
			_, n := one(t)
			if tc.recorded != nil {
				if _, err := n.host.Store.EnsureGuest(store.Identity{Namespace: "default", Name: "web", UID: string(vmUID)}); err != nil {
					t.Fatal(err)
				}
				if _, err := n.host.Store.Hardware(string(vmUID), *tc.recorded); err != nil {
					t.Fatal(err)
				}
			}
			guarded := &guardedMACs{Network: n.agent.Host.Network}
			n.agent.Host.Network = guarded
			n.runContainer()
			n.sync()
			n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
			d, err := n.host.Libvirt.Domain(t.Context(), string(vmUID))
			if err != nil || !strings.Contains(d.XML, `<mac address="`+tc.want+`">`) {
				t.Errorf("the domain does not have MAC %s: %v\n%s", tc.want, err, d.XML)
			}
			if len(guarded.seen) != 1 || guarded.seen[0] != tc.want {
				t.Errorf("the tap's guard lets through %v, want %s", guarded.seen, tc.want)
			}
			if mac := net.HardwareAddr(n.shim.lease.MAC[:]); mac.String() != tc.want {
				t.Errorf("DHCP serves %s, want %s", mac, tc.want)
			}
		})
	}
}
