package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/namespace"
)

// namespace returns libvirtd's mount namespace. While nobody knows libvirtd it is the one that it had: what is attached
// of a guest can be seen, and detached, without it.
func (v *Volumes) namespace(ctx context.Context) (*os.File, error) {
	v.nsMu.Lock()
	defer v.nsMu.Unlock()
	var ns *os.File
	pid, err := v.libvirtd(ctx)
	if err == nil {
		ns, err = openNamespace(pid)
		err = fault.NewTransient(v1alpha1.ReasonLibvirtUnreachable, fault.Doing(err, "opening the mount namespace of libvirtd"))
	}
	switch {
	case err != nil && v.ns != nil:
		return v.ns, nil
	case err != nil:
		return nil, err
	case v.ns != nil && sameFile(v.ns, ns):
		return v.ns, ns.Close()
	}
	v.ns = ns // the one before is closed when the last who works in it is done
	return ns, nil
}

func openNamespace(pid int) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
}

func sameFile(a, b *os.File) bool {
	is, err := a.Stat()
	if err != nil {
		return false
	}
	other, err := b.Stat()
	return err == nil && os.SameFile(is, other)
}

// inside is locked in the namespace that libvirtd has now.
func (v *Volumes) inside(ctx context.Context, work func() error) error {
	host, err := v.namespace(ctx)
	if err != nil {
		return err
	}
	return v.locked(ctx, host, work)
}

// locked does work in a mount namespace with all that is on the tmpfs for itself. It waits for it, whatever happens: work
// touches no volume.
func (v *Volumes) locked(ctx context.Context, host *os.File, work func() error) error {
	_, err := namespace.In(context.WithoutCancel(ctx), host, unix.CLONE_NEWNS, func() (struct{}, error) {
		v.mu.Lock()
		defer v.mu.Unlock()
		return struct{}{}, work()
	})
	return err
}

// waiting does work in a mount namespace that may wait for a volume's server: until ctx ends, and without the lock.
func waiting[T any](ctx context.Context, ns *os.File, work func() (T, error)) (T, error) {
	value, err := namespace.In(ctx, ns, unix.CLONE_NEWNS, work)
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
		err = fault.NewTransient(v1alpha1.ReasonVolumeMissing, fmt.Errorf("waiting for the volume, whose server may not answer: %w", err))
	}
	return value, err
}

// found is a volume as it was found in a berth. It is closed also if nobody waits for it any more.
type found struct {
	identity
	*os.File // a mount of a file system that is nowhere yet; nil, which Close takes as well, of a device
}

// look looks for a volume in the mount namespace of the berth's shim, and clones the mount of a file system. Looking up
// the root of a mount of a network file system may ask its server (d_weak_revalidate of the kernel), even for a
// descriptor that opens nothing.
func look(ctx context.Context, host *os.File, shim int, vol Volume) (*found, error) {
	theirs, err := openNamespace(shim)
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonVolumeMissing, fmt.Errorf("opening the mount namespace of the berth: %w", err))
	}
	defer theirs.Close()
	if sameFile(host, theirs) {
		return nil, fault.NewUser(v1alpha1.ReasonVolumeMissing, errors.New("the berth has the mount namespace of the host, want one of its own"))
	}
	return waiting(ctx, theirs, func() (*found, error) {
		fd, err := unix.Openat2(unix.AT_FDCWD, vol.Path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_NO_SYMLINKS,
		})
		if err != nil {
			return nil, missing(vol, err.Error())
		}
		defer unix.Close(fd)
		return lookAt(fd, vol)
	})
}

func lookAt(fd int, vol Volume) (*found, error) {
	var stat unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &stat); err != nil {
		return nil, missing(vol, err.Error())
	}
	switch kind := stat.Mode & unix.S_IFMT; {
	case vol.Block && kind == unix.S_IFBLK:
		return &found{identity: identity{Major: stat.Rdev_major, Minor: stat.Rdev_minor}}, nil
	case vol.Block || kind != unix.S_IFDIR:
		return nil, missing(vol, "something else")
	case stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0: // of the container's own file system, or another volume's
		return nil, missing(vol, "a directory in which nothing is mounted")
	}
	clone, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH) // without what is mounted below
	if err != nil {
		return nil, fmt.Errorf("cloning the mount at %s: %w", vol.Path, err)
	}
	f := &found{identity{Major: stat.Dev_major, Minor: stat.Dev_minor, Inode: stat.Ino}, os.NewFile(uintptr(clone), vol.Path)}
	if err := restrict(clone, vol.ReadOnly); err != nil {
		return nil, errors.Join(fmt.Errorf("restricting the mount at %s: %w", vol.Path, err), f.Close())
	}
	return f, nil
}

func missing(vol Volume, what string) error {
	want := "a mount"
	if vol.Block {
		want = "a block device"
	}
	return fault.NewUser(v1alpha1.ReasonVolumeMissing, fmt.Errorf(
		"the berth has at %s %s, want %s: see what changes the pod (kubectl get mutatingwebhookconfigurations), and restart the VirtualMachine",
		vol.Path, what, want))
}

// restrict takes from a mount what a disk needs nothing of, and ties it to no other: what is mounted below it in the
// berth never comes after it. Where the kernel can (5.14), no link on it leads anywhere: another pod that has the claim
// could replace the disk by one after it was looked at.
func restrict(mount int, readOnly bool) error {
	attr := unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW,
		Propagation: unix.MS_PRIVATE,
	}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	err := unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
	if errors.Is(err, unix.EINVAL) {
		attr.Attr_set &^= unix.MOUNT_ATTR_NOSYMFOLLOW
		err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &attr)
	}
	return err
}
