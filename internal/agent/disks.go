package agent

import (
	"fmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/store"
)

// claim gives the guest its directory and its user.
func (a *Agent) claim(g *guest) (user int, err error) {
	return a.store.Claim(store.Identity{Namespace: g.VM.Namespace, Name: g.VM.Name, UID: string(g.uid)})
}

func (a *Agent) makeDisks(g *guest) error {
	user, err := a.claim(g)
	if err != nil {
		return fmt.Errorf("making the guest's directory: %w", err)
	}
	made, err := a.store.Disks(string(g.uid))
	if err != nil {
		return fmt.Errorf("reading disks: %w", err)
	}
	exists := map[string]store.GuestDisk{}
	for _, d := range made {
		exists[d.Name] = d
	}
	if g.VM.Spec.Kernel != nil {
		if err := a.store.Keep(string(g.uid), g.images[plan.Kernel]); err != nil {
			return fmt.Errorf("keeping the kernel: %w", err)
		}
	}
	for _, d := range g.VM.Spec.Disks {
		if had, is := exists[d.Name]; is && !had.Ephemeral {
			if err := fits(d, had); err != nil {
				return err
			}
			continue
		}
		o := store.Overlay{Name: d.Name, Record: store.Record{Image: d.Image, Ephemeral: d.Ephemeral}, Base: g.images[d.Name], User: user}
		if d.Size != nil {
			o.Size = d.Size.Value()
		}
		make := a.store.Overlay
		if d.Ephemeral || exists[d.Name].Ephemeral { // one that is to be kept from now on is made as such, or it would go like the other
			make = a.store.RecreateOverlay
		}
		if _, err := make(string(g.uid), o); err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// fits: a disk that exists is what the spec asks for. The API server sees to it once the status names the disk; before
// that a spec may change at any moment.
func fits(want v1alpha1.Disk, had store.GuestDisk) error {
	if (had.Image == "" || had.Image == want.Image) && !want.Ephemeral && (want.Size == nil || want.Size.Value() == had.VirtualSize) {
		return nil
	}
	return fault.ByUser(v1alpha1.ReasonDiskMismatch, fmt.Errorf(
		"disk %s was made from %s with a size of %d bytes, before the spec changed: give it back that image and size and ephemeral: false, or add a disk with another name",
		want.Name, had.Image, had.VirtualSize))
}
