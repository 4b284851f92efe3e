package plan

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// disk is one of the guest's disks on this node, nil if there is none of that name.
func (h *Have) disk(name string) *machine.Disk {
	return find(h.Disks, func(d machine.Disk) bool { return d.Name == name })
}

// find is the first of a list that it is, nil if none is.
func find[T any](list []T, is func(T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return &list[i]
	}
	return nil
}

// unusableDisks is why the guest cannot be started with the disks that are there; nil if it can.
func unusableDisks(w Want, h Have) error {
	for _, had := range absentDisks(w, h) {
		if !had.Ephemeral {
			return fault.NewUser(v1alpha1.ReasonDiskMissing, fmt.Errorf(
				"disk %[1]s was made on node %[2]s and is not in its store any more: mount the file system that had it there, or restore %[1]s.qcow2. To start without its data, give the disk another name in spec.disks",
				had.Name, w.VM.Status.NodeName))
		}
	}
	return diskMismatch(w, h)
}

// absentDisks are those of the spec that the status names and this node does not have: kept ones that are missing, and
// ephemeral ones that were made elsewhere, whose digests stay theirs.
func absentDisks(w Want, h Have) (list []v1alpha1.DiskStatus) {
	for _, had := range w.VM.Status.Disks {
		wanted := slices.ContainsFunc(w.Machine.Disks, func(d machine.Disk) bool {
			return d.Name == had.Name && d.Image.Reference == had.Image && d.Claim == nil
		})
		if wanted && h.disk(had.Name) == nil {
			list = append(list, had)
		}
	}
	return list
}

// diskMismatch is why a disk that is kept is not the one that the spec asks for. The API server sees to it that it is
// once the status names the disk; before that a spec may change at any moment.
func diskMismatch(w Want, h Have) error {
	for _, want := range w.Machine.Disks {
		if had := h.disk(want.Name); had != nil && want.Claim == nil && !fits(want, had) {
			return fault.NewUser(v1alpha1.ReasonDiskMismatch, fmt.Errorf(
				"disk %s was made from %s with a size of %d bytes, before the spec changed: give it back that image and ephemeral: false and at least that size, or add a disk with another name",
				want.Name, had.Image.Reference, had.Size))
		}
	}
	return nil
}

// fits: the disk that is there can be the one that is wanted. It may grow, and what is made anew is no matter.
func fits(want machine.Disk, had *machine.Disk) bool {
	return had.Ephemeral ||
		(had.Image.Reference == "" || had.Image.Reference == want.Image.Reference) && !want.Ephemeral && (want.Size == 0 || want.Size >= had.Size)
}

// makeDisk is the step that makes a disk on the node's storage before the guest gets it; none if what is there will do.
func makeDisk(d machine.Disk, h Have) []Step {
	has := h.disk(d.Name)
	if d.CDROM && has == nil && d.Image.Reference == "" || has != nil && !has.Ephemeral {
		return nil
	}
	// One that is to be kept from now on is made anew once more, or it would go like the other.
	return []Step{MakeDisk{Disk: withDigest(d, h), Anew: d.Ephemeral || has != nil}}
}

// unwanted are disks on the node's storage that nobody will want again, and no guest has: the spec says so, or they are
// made anew at each start and the spec has them no more.
func unwanted(w Want, h Have) (list []Step) {
	if w.VM == nil || h.StartUnknown != nil || h.guest() && h.Facts.Identity == nil {
		return nil
	}
	for _, d := range h.Disks {
		removed := d.Ephemeral || slices.Contains(w.VM.Spec.RemoveDisks, d.Name)
		if removed && !w.has(d.Name) && h.live(d.Name) == nil {
			list = append(list, DeleteDisk{d.Name})
		}
	}
	return list
}

// has: the spec has a disk of that name.
func (w *Want) has(disk string) bool {
	return slices.ContainsFunc(w.Machine.Disks, func(d machine.Disk) bool { return d.Name == disk })
}

// growth are the disks on the node's storage that are to be larger than they are.
func growth(w Want, h Have) (list []Step) {
	for _, d := range w.Machine.Disks {
		if has := h.disk(d.Name); has != nil && d.Claim == nil && !d.CDROM && d.Size > has.Size && (!d.Ephemeral || h.live(d.Name) != nil) {
			list = append(list, GrowDisk{d.Name, has.Path, d.Size})
		}
	}
	return list
}

// disksMade: all that the guest is to have are there. Of a CD-ROM the drive does.
func disksMade(w Want, h Have) bool {
	on := volumeStatus(w, h)
	return !slices.ContainsFunc(w.Machine.Disks, func(d machine.Disk) bool {
		return !d.CDROM && h.disk(d.Name) == nil && !slices.ContainsFunc(on, func(s v1alpha1.DiskStatus) bool { return s.Name == d.Name })
	})
}

// kernelStatus is what a status tells of the kernel's image, once its digest is known.
func kernelStatus(w Want, h Have) *v1alpha1.KernelStatus {
	if w.Machine.Kernel == nil {
		return nil
	}
	i := w.Machine.Kernel.Image
	if has := h.Images[machine.ForKernel]; i.Digest == "" && has.State == ImageReady {
		i.Digest = has.Digest
	}
	if i.Digest == "" {
		return nil
	}
	return &v1alpha1.KernelStatus{Image: i.Reference, ImageDigest: i.Digest}
}

// diskStatus is what a status tells of the disks, by name. One that is absent stays in it: else it would be made again as
// if it had never been, or from what a tag means by then.
func diskStatus(w Want, h Have) (list []v1alpha1.DiskStatus) {
	if !w.deleting() {
		list = absentDisks(w, h)
	}
	list = append(list, volumeStatus(w, h)...)
	for _, d := range h.Disks {
		list = append(list, v1alpha1.DiskStatus{
			Name: d.Name, Image: d.Image.Reference, ImageDigest: d.Image.Digest, Ephemeral: d.Ephemeral,
			Size:     resource.NewQuantity(d.Size, resource.BinarySI),
			Detached: !w.has(d.Name) && h.live(d.Name) == nil,
		})
	}
	slices.SortFunc(list, func(a, b v1alpha1.DiskStatus) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// ownedDisks is the agent's part of what a status tells of disks.
func ownedDisks(s *v1alpha1.VirtualMachineStatus) (list []v1alpha1.DiskStatus) {
	for _, d := range s.Disks {
		if d = ownedOf(d); d != (v1alpha1.DiskStatus{Name: d.Name}) {
			list = append(list, d)
		}
	}
	return list
}
