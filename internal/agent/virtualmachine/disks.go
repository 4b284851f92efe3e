package virtualmachine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

// disk is a disk as QEMU gets it: from a volume, or from what is made on the node's storage.
func (r *Reconciler) disk(uid string, want machine.Disk, made []store.GuestDisk) (domain.Disk, error) {
	d := domain.Disk{
		Name: want.Name, Serial: want.Serial, CDROM: want.CDROM, Bus: want.Bus, Cache: want.Cache,
		Ephemeral: want.Ephemeral, IOThread: want.IOThread, Limits: want.Limits,
	}
	if want.Claim != nil {
		v, err := r.attachedVolume(uid, want.Name)
		if err != nil {
			return d, err
		}
		d.Path, d.Volume = v.File, &domain.Volume{Block: v.Block, ReadOnly: v.ReadOnly, Shared: v.Shared}
		d.Direct = v.Block || r.Host.Store.TakesDirectIO(v.File)
		return d, nil
	}
	i := slices.IndexFunc(made, func(d store.GuestDisk) bool { return d.Name == want.Name })
	switch {
	case i >= 0 && want.CDROM:
		d.Path, d.Format = made[i].Path, domain.Format(made[i].Base.Format)
	case want.CDROM: // the drive is empty
	case i < 0:
		return d, fmt.Errorf("disk %s of the spec is missing in the VM's directory on node %s", want.Name, r.Node)
	default:
		d.Path, d.Direct = made[i].Path, r.Host.Store.TakesDirectIO(made[i].Path)
		if base := made[i].Base; base.Digest != "" {
			d.Backing = []domain.Backing{{Path: base.DiskPath(), Format: domain.Format(base.Format)}}
		}
	}
	return d, nil
}

// madeDisk is a disk of the node's storage as QEMU gets it.
func (r *Reconciler) madeDisk(uid string, want machine.Disk) (domain.Disk, error) {
	made, err := r.Host.Store.Disks(uid)
	if err != nil {
		return domain.Disk{}, fmt.Errorf("reading disks: %w", err)
	}
	return r.disk(uid, want, made)
}

// plugDisk gives a disk to the guest, once it is proven that no other QEMU of this guest lives, which could have it.
func (r *Reconciler) plugDisk(ctx context.Context, g *target, o *observed, s plan.PlugDisk) error {
	if err := r.prove(g, o); err != nil {
		return err
	}
	d, err := r.madeDisk(string(g.uid), s.Disk)
	if err != nil {
		return err
	}
	xml, err := domain.DiskXML(d, s.At)
	if err != nil {
		return err
	}
	return r.Host.Libvirt.AttachDisk(ctx, string(g.uid), xml)
}

// changeMedium puts into a CD-ROM what the VM's directory has for it, or takes out what is in it.
func (r *Reconciler) changeMedium(ctx context.Context, g *target, s plan.ChangeMedium) error {
	d, err := r.madeDisk(string(g.uid), machine.Disk{Name: s.Disk.Name, Bus: s.Disk.Bus, CDROM: true, Ephemeral: true})
	if err != nil {
		return err
	}
	xml, err := domain.MediumXML(d, s.Disk)
	if err != nil {
		return err
	}
	err = r.Host.Libvirt.ChangeMedium(ctx, string(g.uid), xml, s.Force)
	if errors.Is(err, libvirtd.ErrMediumHeld) && !s.Force { // it was asked; what it does about that, the next look shows
		return nil
	}
	if err == nil && s.Force {
		r.Events.Eventf(g.VM, nil, corev1.EventTypeWarning, string(v1alpha1.ReasonMediumForced), "ChangeMedium",
			"The guest held what was in CD-ROM %s, which was taken from it", s.Disk.Name)
	}
	return err
}

// setRecord has the domain tell with what spec its guest runs now.
func (r *Reconciler) setRecord(ctx context.Context, uid string, facts *domain.Facts, record string) error {
	xml, err := facts.MetadataXML(record)
	if err != nil {
		return err
	}
	return r.Host.Libvirt.SetMetadata(ctx, uid, xml)
}

// group is whose files QEMU may use besides its user's: the volumes', or else those of /dev/kvm; nobody's if nobody may
// open that.
func (r *Reconciler) group(m *machine.Machine, user int) uint32 {
	return cmp.Or(uint32(m.Group), r.Host.Libvirt.KVMGroup(), uint32(user)) //nolint:gosec // a gid and a uid
}

func (r *Reconciler) attachVolumes(ctx context.Context, m *machine.Machine, from Container, disks []machine.Disk) error {
	user, err := r.user(m)
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
	user, err := r.user(m)
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
