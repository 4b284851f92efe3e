package virtualmachine

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

// group is whose files QEMU may use besides its user's: the volumes', or else those of /dev/kvm.
func (r *Reconciler) group(m *machine.Machine, user int) uint32 {
	switch kvm := r.Host.Libvirt.KVMGroup(); {
	case m.Group != 0:
		return uint32(m.Group) //nolint:gosec // a gid
	case kvm != 0:
		return kvm
	default: // nobody may open /dev/kvm
		return uint32(user) //nolint:gosec // a uid
	}
}

func (r *Reconciler) attachVolumes(ctx context.Context, m *machine.Machine, from Container, disks []machine.Disk) error {
	user, err := r.user(identityOf(m))
	if err != nil {
		return err
	}
	guest := volume.Guest{UID: string(m.UID), User: user, Group: int(r.group(m, user))}
	for _, d := range disks {
		err := r.Host.Volumes.Attach(ctx, guest, from.PID(), volume.Volume{
			Disk: d.Name, Path: berth.DiskPath(d.Name), Claim: string(d.Claim.UID), Block: d.Claim.Block, ReadOnly: d.Claim.ReadOnly, Shared: d.Claim.Shared,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// makeVolumes has workers make disks in the container's cgroup, so that the berth pays for them, and they end with it.
func (r *Reconciler) makeVolumes(m *machine.Machine, in Container, disks []machine.Disk) error {
	user, err := r.user(identityOf(m))
	if err != nil {
		return err
	}
	for _, d := range disks {
		request := worker.Request{Block: d.Claim.Block, ReadOnly: d.Claim.ReadOnly, Known: d.Claim.Used, Size: d.Size, Capacity: d.Claim.Capacity}
		as := sandbox.Job{
			User: user, Group: int(r.group(m, user)), Place: func(pid int) error { return r.Host.Cgroups.Place(in.Cgroup(), pid) },
		}
		if d.Image.Reference != "" && !d.Claim.Used {
			image, err := r.Host.Store.Image(contentOf(d.Image))
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
			file, err := os.Open(image.DiskPath())
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
			as.Files = []*os.File{file}
			request.Seed = &worker.Seed{Digest: image.Digest, Format: image.Format, Size: image.VirtualSize}
		}
		r.Host.Volumes.Start(m.UID, d.Name, request, as)
	}
	return nil
}

// growDisk tells QEMU of a disk that has grown, and remembers that.
func (r *Reconciler) growDisk(ctx context.Context, uid string, s plan.GrowDisk) error {
	if s.Path != "" {
		return r.Host.Libvirt.ResizeDisk(ctx, uid, s.Path, s.Size)
	}
	v, err := r.attachedVolume(uid, s.Disk)
	if err != nil {
		return err
	}
	if err := r.Host.Libvirt.ResizeDisk(ctx, uid, v.File, s.Size); err != nil {
		return err
	}
	return r.Host.Volumes.Grown(uid, v, s.Size)
}

func (r *Reconciler) attachedVolume(uid, disk string) (volume.Attached, error) {
	attached, err := r.Host.Volumes.Attached(uid)
	if err != nil {
		return volume.Attached{}, fmt.Errorf("reading volumes: %w", err)
	}
	i := slices.IndexFunc(attached, func(v volume.Attached) bool { return v.Disk == disk })
	if i < 0 {
		return volume.Attached{}, fmt.Errorf("the volume of disk %s is not attached on node %s", disk, r.Node)
	}
	return attached[i], nil
}
