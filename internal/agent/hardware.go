package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// hardware is what the VM keeps for life. At its first start on this node that is decided and recorded, before libvirt
// hears of it.
func (a *Agent) hardware(uid string) (domain.Hardware, error) {
	facts, known, err := a.host.Facts()
	if !known {
		return domain.Hardware{}, fault.ByTime(v1alpha1.ReasonStarting, errors.New("libvirt is asked which machine types this host has"))
	}
	if err != nil {
		return domain.Hardware{}, err
	}
	recorded, err := a.store.Hardware(uid, store.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35})
	if err != nil {
		return domain.Hardware{}, err
	}
	h := domain.Hardware(recorded)
	return h, provides(a.Node, facts, h)
}

// provides tells why a host cannot give a guest the hardware that its VM was first started with.
func provides(node string, facts libvirtd.HostFacts, h domain.Hardware) error {
	switch {
	case h.Layout > domain.NewestLayout:
		return fault.ByUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			"the VM's devices are in layout %d, and Berth on node %s knows those up to %d: upgrade Berth", h.Layout, node, domain.NewestLayout))
	case !slices.Contains(facts.MachineTypes, h.Machine):
		return fault.ByUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			"the VM has QEMU's machine type %q, which QEMU %s on node %s does not have: install a QEMU that has it", h.Machine, facts.QEMUVersion, node))
	}
	return nil
}
