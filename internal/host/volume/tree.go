package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// dirOptions are the tmpfs's: QEMUs pass through it and cannot list it. A record takes a page: there is room for a
// thousand disks.
const dirOptions = "mode=0711,size=4m"

// Check tells why volumes cannot be attached on this host, nil if they can: the kernel is older than 5.12
// (KernelTooOld), or what is mounted and unmounted on the host would not be so in its containers (MountsNotShared).
func (v *Volumes) Check(ctx context.Context) error {
	if err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
		return fault.NewUser(v1alpha1.ReasonKernelTooOld, errors.New("the kernel has no mount_setattr(2): claims need Linux 5.12 or newer"))
	}
	return v.inside(ctx, v.checkShared)
}

// checkShared refuses a directory that lies on a mount that is not shared: a container that was given it, such as a
// restarted agent, would keep each volume mounted after it was unmounted here.
func (v *Volumes) checkShared() error {
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return fmt.Errorf("listing the mounts of the host: %w", err)
	}
	defer table.Close()
	mounts, err := mountsOver(table, v.dir)
	if err != nil || len(mounts) == 0 {
		return fmt.Errorf("listing the mounts of the host: %w", cmp.Or(err, fs.ErrNotExist))
	}
	if on := mounts[len(mounts)-1]; !on.shared {
		return fault.NewUser(v1alpha1.ReasonMountsNotShared, fmt.Errorf(
			"the mount at %s is private, want it shared, as systemd has it: run mount --make-rshared / on the node", on.at))
	}
	return nil
}

// mountDir mounts the tmpfs that everything is on, if it is not there.
func (v *Volumes) mountDir() error {
	var stat unix.Statx_t
	if err := os.MkdirAll(v.dir, 0o711); err != nil { //nolint:gosec // QEMU passes through it
		return err
	}
	if err := unix.Statx(unix.AT_FDCWD, v.dir, unix.AT_SYMLINK_NOFOLLOW, 0, &stat); err != nil {
		return pathError("statx", v.dir, err)
	}
	if stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return nil
	}
	if err := v.checkShared(); err != nil {
		return err
	}
	// With devices: /run, where it is, may have none. On a shared mount it is shared itself.
	return pathError("mount", v.dir, unix.Mount("berth-volumes", v.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, dirOptions))
}

// makeGuestDir makes a guest's directory, which no user passes but root and the one of its QEMU: this alone keeps a
// volume from other guests.
func makeGuestDir(dir string, user int) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	passes := aclEntry{aclUser, permPass, uint32(user)} //nolint:gosec // a user's number
	return writeACL(dir, acl{{Tag: aclUserObj, Perm: permAll}, passes, {Tag: aclGroupObj}, {Tag: aclMask, Perm: permPass}, {Tag: aclOther}})
}

// makeNode makes a node of our own of a device. It is always made anew, and appears as a whole.
func (v *Volumes) makeNode(g Guest, r record) error {
	path := v.node(g.UID, r.Disk)
	made := path + newSuffix
	if err := ifThere(os.Remove(made)); err != nil {
		return err
	}
	mode := uint32(unix.S_IFBLK | 0o600)
	if r.ReadOnly {
		mode = unix.S_IFBLK | 0o400
	}
	if err := unix.Mknod(made, mode, int(unix.Mkdev(r.Major, r.Minor))); err != nil { //nolint:gosec // as the kernel has it
		return pathError("mknod", made, err)
	}
	if err := os.Lchown(made, g.User, g.Group); err != nil {
		return err
	}
	return os.Rename(made, path)
}

// mount attaches a file system where it is not yet.
func (v *Volumes) mount(uid, disk string, clone *os.File) error {
	if mounted, err := v.mounted(uid, disk); mounted || err != nil {
		return err
	}
	at := v.mountPoint(uid, disk)
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return pathError("move_mount", at, unix.MoveMount(int(clone.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// mounted tells whether a file system is attached. A lookup that may not cross mounts ends at it with EXDEV, before it
// asks anything of the file system.
func (v *Volumes) mounted(uid, disk string) (bool, error) {
	dir, err := os.OpenFile(v.guestDir(uid), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, ifThere(err)
	}
	defer dir.Close()
	at, err := openIn(dir, disk, unix.O_PATH|unix.O_NOFOLLOW, unix.RESOLVE_NO_XDEV)
	switch {
	case err == nil:
		return false, at.Close()
	case errors.Is(err, unix.EXDEV):
		return true, nil
	}
	return false, ifThere(err)
}

// unmount takes a file system away, if it is there. umount(2) itself looks up no more than the mount; but if it is the
// last one of the file system, it writes back all that was written.
func (v *Volumes) unmount(uid, disk string) error {
	for {
		mounted, err := v.mounted(uid, disk)
		if !mounted || err != nil {
			return err
		}
		at := v.mountPoint(uid, disk)
		err = unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) { // by a process in any namespace that has the mount from us, as each QEMU's has
			return fault.NewTransient(v1alpha1.ReasonVolumeInUse,
				fmt.Errorf("disk %s is used by a process, most likely a QEMU: umount %s: %w", disk, at, err))
		}
		if err != nil {
			return pathError("umount", at, err)
		}
	}
}

// pathError is an error of the kernel's about a path, as those of os are.
func pathError(doing, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: doing, Path: path, Err: err}
}
