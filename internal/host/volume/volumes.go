package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Volumes are what is attached of guests' claims: below one directory in libvirtd's mount namespace, a directory for
// each guest, which only its QEMU may pass. There is a file system as a mount, <disk>/, a block device as a node,
// <disk>.raw, and beside it what is recorded of it, <disk>.json. All but the mounts is on a tmpfs: a boot of the host
// leaves nothing. It may be used from many goroutines, for one guest from one at a time.
type Volumes struct {
	dir      string
	libvirtd func(context.Context) (pid int, err error)

	mu   sync.Mutex // over what is on the tmpfs
	nsMu sync.Mutex
	ns   *os.File // libvirtd's mount namespace, as last seen
}

// New tells of the volumes below dir, a path in the mount namespace of the process that libvirtd tells. Nothing is made
// before the first is attached.
func New(dir string, libvirtd func(context.Context) (pid int, err error)) *Volumes {
	return &Volumes{dir: dir, libvirtd: libvirtd}
}

// Guest is whose QEMU gets a volume.
type Guest struct {
	// UID is the VirtualMachine's.
	UID string
	// User and Group are QEMU's.
	User, Group int
}

// Volume is a claim as a guest's disk.
type Volume struct {
	// Disk is the disk's name.
	Disk string `json:"disk"`
	// Path is where kubelet put it in the berth.
	Path string `json:"path"`
	// Claim is the claim's UID.
	Claim string `json:"claim"`
	// Block is a device, not a file system.
	Block bool `json:"block,omitempty"`
	// ReadOnly is not written to.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Shared may be attached to several guests, if it is Shared to all of them.
	Shared bool `json:"shared,omitempty"`
}

// Made is what a worker told of a disk.
type Made struct {
	// Size is what the guest sees, Target what it could see by the volume's size, when the claim had Capacity; in bytes.
	Size     int64 `json:"size"`
	Target   int64 `json:"target"`
	Capacity int64 `json:"capacity"`
	// Seed is the digest of the image that it was seeded from, "" if it was not.
	Seed string `json:"seed,omitempty"`
}

// Attached is a volume that is there for QEMU.
type Attached struct {
	Volume
	// File is the path of the disk as libvirt sees it. That of a file system need not exist before Made.
	File string
	// Made is that a worker was done with it since it was attached; what follows is as Made has it.
	Made                   bool
	Size, Target, Capacity int64
	Seed                   string
}

// diskFile is the disk on a file system, as KubeVirt and CDI have it.
const diskFile = "disk.img"

var (
	validUID  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	validDisk = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// check refuses names that would be other paths.
func check(uid string, disks ...string) error {
	if !validUID.MatchString(uid) {
		return fmt.Errorf("%q is no UID of a VirtualMachine", uid)
	}
	for _, disk := range disks {
		if !validDisk.MatchString(disk) {
			return fmt.Errorf("%q is no name of a disk", disk)
		}
	}
	return nil
}

func (v *Volumes) guestDir(uid string) string { return filepath.Join(v.dir, uid) }

// mountPoint is where a file system is attached, node where a device is.
func (v *Volumes) mountPoint(uid, disk string) string { return filepath.Join(v.dir, uid, disk) }

func (v *Volumes) node(uid, disk string) string { return filepath.Join(v.dir, uid, disk+".raw") }

// Attach gives a volume of the berth whose shim is the process shim, held by a pidfd of the caller, to the guest's QEMU.
// It takes what stands at the volume's path to be what kubelet put there, if it is the root of a mount or a device;
// whether the berth may use that device, its cgroup tells the worker that opens it. What is attached already is looked at
// again, and replaced if it is another: no QEMU may have it. It needs CAP_SYS_ADMIN, CAP_SYS_CHROOT, CAP_SYS_PTRACE and
// CAP_MKNOD. Reasons: VolumeMissing, VolumeInUse, MountsNotShared.
func (v *Volumes) Attach(ctx context.Context, g Guest, shim int, vol Volume) error {
	if err := check(g.UID, vol.Disk); err != nil {
		return err
	}
	host, err := v.namespace(ctx)
	if err != nil {
		return err
	}
	return fault.Doing(v.attach(ctx, host, g, shim, vol), "attaching volume %s", vol.Disk)
}

func (v *Volumes) attach(ctx context.Context, host *os.File, g Guest, shim int, vol Volume) error {
	found, err := look(ctx, host, shim, vol)
	if err != nil {
		return err
	}
	defer found.Close()
	want := newRecord(vol, found.identity)
	var other bool // volume is attached by the name of this disk
	err = v.locked(ctx, host, func() error {
		have, err := v.readRecord(g.UID, vol.Disk)
		other = err == nil && !have.same(want)
		return ifThere(err)
	})
	if err == nil && other {
		err = v.detach(ctx, host, g.UID, vol.Disk)
	}
	if err != nil {
		return err
	}
	return v.locked(ctx, host, func() error { return v.put(g, want, found.File) })
}

// put is Attach in libvirtd's namespace. A file system's mount is there only if it is the one of the record, and a
// device's node likewise: so the record is written before them, and goes after them.
func (v *Volumes) put(g Guest, want record, clone *os.File) error {
	if err := v.mountDir(); err != nil {
		return err
	}
	if err := v.lock(g.UID, want); err != nil {
		return err
	}
	if err := makeGuestDir(v.guestDir(g.UID), g.User); err != nil {
		return err
	}
	have, err := v.readRecord(g.UID, want.Disk)
	if ifThere(err) != nil {
		return err
	}
	want.Made = have.Made
	if err := v.writeRecord(g.UID, want); err != nil {
		return err
	}
	if want.Block {
		return v.makeNode(g, want)
	}
	return v.mount(g.UID, want.Disk, clone)
}

// lock is the second lock on what one guest alone may write, after the Lease of the claim: two claims may be one device.
func (v *Volumes) lock(uid string, want record) error {
	uids, err := v.guests()
	if err != nil {
		return err
	}
	for _, other := range uids {
		records, err := v.records(other)
		if err != nil {
			return err
		}
		for _, r := range records {
			if other == uid && r.Disk == want.Disk || !want.conflicts(r) {
				continue
			}
			return fault.NewTransient(v1alpha1.ReasonVolumeInUse, fmt.Errorf(
				"VirtualMachine %s has the same volume as its disk %s: stop it first, or set access to Shared in both", other, r.Disk))
		}
	}
	return nil
}

// List returns the UIDs of the guests of which anything is attached, half or whole.
func (v *Volumes) List() (uids []string, err error) {
	err = v.inside(context.Background(), func() (err error) {
		uids, err = v.guests()
		return err
	})
	return uids, err
}

// Attached returns what is attached of a guest, from what is recorded and from the kernel: it touches no volume, and so
// waits for none.
func (v *Volumes) Attached(uid string) (all []Attached, err error) {
	err = v.inside(context.Background(), func() error {
		records, err := v.records(uid)
		for _, r := range records {
			there, err := v.there(uid, r)
			if err != nil {
				return err
			}
			if there {
				all = append(all, r.attached(v, uid))
			}
		}
		return err
	})
	return all, err
}

// there tells whether the volume of a record is attached.
func (v *Volumes) there(uid string, r record) (bool, error) {
	if !r.Block {
		return v.mounted(uid, r.Disk)
	}
	_, err := os.Lstat(v.node(uid, r.Disk))
	return err == nil, ifThere(err)
}

// RecordMade keeps what a worker told of a disk, until it is detached.
func (v *Volumes) RecordMade(uid, disk string, m Made) error {
	if err := check(uid, disk); err != nil {
		return err
	}
	return v.inside(context.Background(), func() error {
		r, err := v.readRecord(uid, disk)
		if err != nil {
			return err
		}
		r.Made = &m
		return v.writeRecord(uid, r)
	})
}

// OpenForWorker opens the directory that the disk of a volume is in, and returns the disk's name in it: of a file system
// its root, of a device the guest's own directory. It is that directory and no more: it has no parent, so whoever gets
// it cannot leave it. It may wait for a volume's server, until ctx ends.
func (v *Volumes) OpenForWorker(ctx context.Context, uid, disk string) (dir *os.File, name string, err error) {
	if err := check(uid, disk); err != nil {
		return nil, "", err
	}
	host, err := v.namespace(ctx)
	if err != nil {
		return nil, "", err
	}
	var file string
	err = v.locked(ctx, host, func() error {
		r, err := v.readRecord(uid, disk)
		if err != nil {
			return err
		}
		file = r.attached(v, uid).File
		if there, err := v.there(uid, r); err != nil || !there {
			return errors.Join(err, fmt.Errorf("disk %s of guest %s is not attached", disk, uid))
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	dir, err = waiting(ctx, host, func() (*os.File, error) {
		at := filepath.Dir(file)
		fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			return nil, pathError("open_tree", at, err)
		}
		return os.NewFile(uintptr(fd), at), nil
	})
	return dir, filepath.Base(file), err
}

// Detach takes all volumes from a guest, also those of which only half was attached; that there are none is no error. A
// file system that a process still uses is refused with VolumeInUse: a QEMU lives. It may wait for a volume's server
// until ctx ends, when kubelet has unmounted it already.
func (v *Volumes) Detach(ctx context.Context, uid string) error {
	if err := check(uid); err != nil {
		return err
	}
	host, err := v.namespace(ctx)
	if err != nil {
		return err
	}
	var disks []string
	err = v.locked(ctx, host, func() (err error) {
		disks, err = v.disks(uid)
		return err
	})
	if err != nil {
		return err
	}
	if err := v.detach(ctx, host, uid, disks...); err != nil {
		return fmt.Errorf("detaching the volumes of guest %s: %w", uid, err)
	}
	return v.locked(ctx, host, func() error { return ifThere(os.Remove(v.guestDir(uid))) })
}

// detach detaches some disks.
func (v *Volumes) detach(ctx context.Context, host *os.File, uid string, disks ...string) error {
	// Not under the lock, which must never wait for a server.
	_, err := waiting(ctx, host, func() (struct{}, error) {
		for _, disk := range disks {
			if err := context.Cause(ctx); err != nil {
				return struct{}{}, err // nobody waits any more, and it may be attached anew by now
			}
			if err := v.unmount(uid, disk); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	return v.locked(ctx, host, func() error {
		for _, disk := range disks {
			node, record := v.node(uid, disk), v.recordFile(uid, disk)
			// The record is the last. A mount point that is one still is refused by the kernel (EBUSY of rmdir(2)); nothing is
			// ever removed below it.
			for _, path := range []string{v.mountPoint(uid, disk), node + newSuffix, node, record + newSuffix, record} {
				if err := ifThere(os.Remove(path)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// guests are those that have a directory.
func (v *Volumes) guests() ([]string, error) {
	uids, err := names(v.dir)
	return slices.DeleteFunc(uids, func(name string) bool { return !validUID.MatchString(name) }), err
}

// disks are the names of all that a guest's directory has anything of.
func (v *Volumes) disks(uid string) ([]string, error) {
	disks, err := names(v.guestDir(uid))
	for i, name := range disks {
		disks[i], _, _ = strings.Cut(name, ".")
	}
	slices.Sort(disks)
	return slices.Compact(disks), err
}

// names are those in a directory, if it is there.
func names(dir string) (all []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, ifThere(err)
}

// ifThere passes over the error that something is not there.
func ifThere(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
