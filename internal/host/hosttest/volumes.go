package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/volume"
)

const volumesDir = "/run/berth/volumes/"

// Volumes are what is attached of claims, as a volume.Volumes has it. No file is on any.
type Volumes struct{ h *Host }

// mount is what kubelet put at a path of a container.
type mount struct {
	of    string // what two mounts of one volume have in common
	block bool
}

// attachment is a volume that a guest has.
type attachment struct {
	volume.Attached
	of string
}

// MountVolume puts a volume at a path of all containers of a pod: a file system or a device, of which of is the name.
func (h *Host) MountVolume(podUID, at, of string, block bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.pod(podUID)
	if p.volumes == nil {
		p.volumes = map[string]mount{}
	}
	p.volumes[at] = mount{of, block}
}

// HasGroup tells whether QEMUs of a group may use KVM.
func (h *Host) HasGroup(group int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.granted[group]
}

func checkDisk(uid, disk string) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	if !validName.MatchString(disk) {
		return fmt.Errorf("%q is no name of a disk", disk)
	}
	return nil
}

// mountedAt returns what a process finds at a path, if it is of that kind.
func (h *Host) mountedAt(pid int, v volume.Volume) (mount, error) {
	p := h.processes[pid]
	if p == nil || p.container == "" {
		return mount{}, fault.NewTransient(v1alpha1.ReasonVolumeMissing, fmt.Errorf("opening the mount namespace of process %d: %w", pid, fs.ErrNotExist))
	}
	m, ok := h.pods[h.containers[p.container].pod].volumes[v.Path]
	if !ok || m.block != v.Block {
		return mount{}, fault.NewUser(v1alpha1.ReasonVolumeMissing, fmt.Errorf("the berth has no such volume at %s", v.Path))
	}
	return m, nil
}

// Attach is as volume.Volumes'.
func (v *Volumes) Attach(_ context.Context, g volume.Guest, shim int, vol volume.Volume) error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	if err := checkDisk(g.UID, vol.Disk); err != nil {
		return err
	}
	m, err := v.h.mountedAt(shim, vol)
	if err != nil {
		return fmt.Errorf("attaching volume %s: %w", vol.Disk, err)
	}
	had := v.h.attached[g.UID][vol.Disk]
	same := had != nil && had.of == m.of && had.Claim == vol.Claim && had.Block == vol.Block && had.ReadOnly == vol.ReadOnly
	if had != nil && !same {
		if err := v.h.detach(g.UID, vol.Disk); err != nil {
			return fmt.Errorf("attaching volume %s: %w", vol.Disk, err)
		}
	}
	for uid, all := range v.h.attached {
		for disk, a := range all {
			together := a.Block == vol.Block && (a.Shared && vol.Shared || a.ReadOnly && vol.ReadOnly)
			if a.of == m.of && (uid != g.UID || disk != vol.Disk) && !together {
				return fault.NewTransient(v1alpha1.ReasonVolumeInUse, fmt.Errorf("VirtualMachine %s has the same volume as its disk %s", uid, disk))
			}
		}
	}
	a := &attachment{Attached: volume.Attached{Volume: vol, File: path.Join(volumesDir, g.UID, vol.Disk, "disk.img")}, of: m.of}
	if vol.Block {
		a.File = path.Join(volumesDir, g.UID, vol.Disk+".raw")
	}
	if same {
		a.Attached = had.Attached
		a.Volume = vol
	}
	if v.h.attached[g.UID] == nil {
		v.h.attached[g.UID] = map[string]*attachment{}
	}
	v.h.attached[g.UID][vol.Disk] = a
	return nil
}

// Attached is as volume.Volumes'.
func (v *Volumes) Attached(uid string) (all []volume.Attached, err error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	for _, a := range v.h.attached[uid] {
		all = append(all, a.Attached)
	}
	slices.SortFunc(all, func(a, b volume.Attached) int { return strings.Compare(a.Disk, b.Disk) })
	return all, nil
}

// RecordMade is as volume.Volumes'. From then on QEMU finds the disk.
func (v *Volumes) RecordMade(uid, disk string, m volume.Made) error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	a, err := v.h.attachment(uid, disk)
	if err != nil {
		return err
	}
	a.Made, a.Size, a.Target, a.Capacity, a.Seed = true, m.Size, m.Target, m.Capacity, m.Seed
	return nil
}

func (h *Host) attachment(uid, disk string) (*attachment, error) {
	if err := checkDisk(uid, disk); err != nil {
		return nil, err
	}
	a := h.attached[uid][disk]
	if a == nil {
		return nil, fmt.Errorf("disk %s of guest %s is not attached: %w", disk, uid, fs.ErrNotExist)
	}
	return a, nil
}

// OpenForWorker is as volume.Volumes', but that the directory is /dev/null.
func (v *Volumes) OpenForWorker(_ context.Context, uid, disk string) (dir *os.File, name string, err error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	a, err := v.h.attachment(uid, disk)
	if err != nil {
		return nil, "", err
	}
	dir, err = os.Open(os.DevNull)
	return dir, path.Base(a.File), err
}

// Detach is as volume.Volumes'.
func (v *Volumes) Detach(_ context.Context, uid string) error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	if err := checkUID(uid); err != nil {
		return err
	}
	for disk := range v.h.attached[uid] {
		if err := v.h.detach(uid, disk); err != nil {
			return fmt.Errorf("detaching the volumes of guest %s: %w", uid, err)
		}
	}
	delete(v.h.attached, uid)
	return nil
}

// detach takes one volume away. That of a device goes also while a QEMU has it open, which no host forgives.
func (h *Host) detach(uid, disk string) error {
	a := h.attached[uid][disk]
	if h.uses(uid, a.File) {
		if !a.Block {
			return fault.NewTransient(v1alpha1.ReasonVolumeInUse, errors.New("disk "+disk+" is used by a process"))
		}
		h.breach("device %s of guest %s was detached while its QEMU had it open", disk, uid)
	}
	delete(h.attached[uid], disk)
	return nil
}

// List is as volume.Volumes'.
func (v *Volumes) List() (uids []string, err error) {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	for uid := range v.h.attached {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return uids, nil
}

// Grant is as volume.Volumes'.
func (v *Volumes) Grant(_ context.Context, group int) error {
	v.h.mu.Lock()
	defer v.h.mu.Unlock()
	v.h.granted[group] = true
	return nil
}
