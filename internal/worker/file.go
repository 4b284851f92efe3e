package worker

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// The names that a disk has on a file system until it is whole.
const (
	newFile  = ".berth-new.img"
	seedFile = ".berth-seed.img"
)

// fileMode lets the group write: it is the volume's, and QEMU's of any node.
const fileMode = 0o660

func (w *worker) ensureFile(ctx context.Context) (Result, error) {
	result, err := w.findFile()
	switch {
	case !errors.Is(err, fs.ErrNotExist):
	case w.ReadOnly:
		return result, refuse(v1alpha1.ReasonVolumeMissing, "the volume has no %s, and a disk that is ReadOnly is not made: "+
			"write a raw disk of that name to the claim first", w.Name)
	case w.Known:
		return result, refuse(v1alpha1.ReasonVolumeMissing, "%s is gone from the volume, and it had this guest's data: put it back, "+
			"or delete the claim and make it anew", w.Name)
	default:
		result, err = w.makeFile(ctx)
		if errors.Is(err, fs.ErrExist) { // made by another guest that shares the volume
			result, err = w.findFile()
		}
	}
	if err == nil && !w.ReadOnly {
		// What an interrupted worker left takes space, and nothing else: it holds up no guest.
		_, _ = w.discard(newFile), w.discard(seedFile)
	}
	return result, err
}

// findFile looks at the disk that is there; fs.ErrNotExist if there is none.
func (w *worker) findFile() (Result, error) {
	st, err := w.statFile(w.dir, w.Name, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return Result{}, err
	}
	f, err := w.open(w.Name, w.access(), 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return Result{}, w.notWritable(w.Name, &st, "rw", err)
	case err != nil:
		return Result{}, onVolume("opening "+w.Name, err)
	}
	defer f.Close()
	if st, err = w.statFile(f, "", unix.AT_EMPTY_PATH); err != nil { // another than before
		return Result{}, err
	}
	result := Result{Size: st.Size, Target: st.Size}
	if !w.ReadOnly {
		if result.Target, err = w.target(st.Size); err != nil {
			return Result{}, err
		}
	}
	if w.Known {
		return result, nil
	}
	head, err := w.readHead(f, st.Size)
	if err != nil {
		return Result{}, err
	}
	// Whatever else it may be, it is the user's: a guest may have it as a disk of data.
	if format, _ := diskformat.InspectHead(head); format == diskformat.QCOW2 {
		return Result{}, refuse(v1alpha1.ReasonVolumeUnsafe, "%s is a qcow2 disk, and has to be a raw one: convert it with "+
			"`qemu-img convert -O raw`", w.Name)
	}
	if w.image != nil && !w.ReadOnly {
		result.Seeded, err = w.holds(head)
	}
	return result, err
}

// statFile looks at the disk as fstatat(2) does. It has to be a regular file with one name.
func (w *worker) statFile(dir *os.File, name string, flags int) (st unix.Stat_t, err error) {
	err = unix.Fstatat(fdOf(dir), name, &st, flags)
	switch {
	case err != nil:
		err = onVolume("looking for "+w.Name, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		err = refuse(v1alpha1.ReasonVolumeUnsafe, "%s is not a regular file (mode %o): put a raw disk there, or remove it", w.Name, st.Mode)
	case st.Nlink != 1:
		err = refuse(v1alpha1.ReasonVolumeUnsafe, "%s has %d names (hard links), and must have one: remove the others", w.Name, st.Nlink)
	}
	return st, err
}

// notWritable says who may open a thing on the volume, and who has to.
func (w *worker) notWritable(what string, st *unix.Stat_t, want string, err error) error {
	user, group := os.Geteuid(), os.Getegid()
	return refuse(v1alpha1.ReasonVolumeNotWritable, "%s belongs to %d:%d with mode %04o, and QEMU, which is %d:%d, cannot use it (%w): "+
		"let its group do so, with `chgrp %d` and `chmod g+%s`", what, st.Uid, st.Gid, st.Mode&0o7777, user, group, err, group, want)
}

// target is the size in bytes that a disk of size bytes may have, 0 if it is to be made.
func (w *worker) target(size int64) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fdOf(w.dir), &st); err != nil {
		return 0, onVolume("asking for the volume's size", err)
	}
	room := room(&st, w.Capacity)
	want := cmp.Or(w.Size, room)
	switch {
	case size < want && room < want:
		return 0, refuse(v1alpha1.ReasonVolumeTooSmall, "the disk is to have %d bytes, and the volume has room for one of %d: lower the disk's "+
			"size, or raise the claim's request", want, room)
	case size == 0 && want < mib:
		return 0, refuse(v1alpha1.ReasonVolumeTooSmall, "the volume has room for a disk of %d bytes, and the least is 1Mi: raise the claim's request", want)
	}
	return max(size, want), nil
}

// room is the size in bytes of the largest disk that the volume is made for, in whole MiB. What is free does not count:
// it would shrink as the disk is written.
func room(st *unix.Statfs_t, capacity int64) int64 {
	room := int64(diskformat.MaxVirtualSize)
	// Some servers do not tell their size. Blocks are counted in fragments (statvfs(3)).
	if unit := cmp.Or(st.Frsize, st.Bsize); st.Blocks > 0 && unit > 0 {
		blocks := st.Blocks - min(st.Blocks, st.Bfree-min(st.Bfree, st.Bavail))    // without those for root
		total := int64(min(blocks, diskformat.MaxVirtualSize/uint64(unit))) * unit //nolint:gosec // at most MaxVirtualSize
		room = total - max(total/100, 8*mib)                                       // what the file system needs to find the disk's blocks
	}
	if capacity > 0 {
		room = min(room, capacity)
	}
	return max(0, room) / mib * mib
}

// makeFile makes the disk, blank or as the image has it. If there is one by now, it fails with fs.ErrExist.
func (w *worker) makeFile(ctx context.Context) (Result, error) {
	size, err := w.target(0)
	if err != nil {
		return Result{}, err
	}
	var s *source
	name := newFile
	if w.image != nil {
		if s, err = openSource(w.image, *w.Seed); err != nil {
			return Result{}, err
		}
		if s.size > size {
			return Result{}, w.imageTooLarge(size)
		}
		name = seedFile
	}
	f, err := w.create(name)
	if err != nil {
		return Result{}, err
	}
	defer f.Close()
	if err = onVolume("sizing "+name, f.Truncate(size)); err == nil && s != nil {
		err = w.copy(ctx, s, file{f})
	}
	if err == nil {
		err = w.publish(f, name)
	}
	if err != nil {
		_ = unix.Unlinkat(fdOf(w.dir), name, 0) // its space, at once; the next worker looks for it too
		return Result{}, err
	}
	return Result{Size: size, Target: size, Made: true, Seeded: s != nil}, nil
}

func (w *worker) imageTooLarge(size int64) error {
	return refuse(v1alpha1.ReasonVolumeTooSmall, "the image is a disk of %d bytes, and the claim's is one of %d: raise the disk's size and the "+
		"claim's request", w.Seed.Size, size)
}

// create makes a file and locks it: whoever else shares the volume may be about to do the same.
func (w *worker) create(name string) (*os.File, error) {
	if err := w.discard(name); err != nil {
		return nil, err
	}
	f, err := w.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, fileMode)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, errInUse
	case errors.Is(err, fs.ErrPermission):
		var st unix.Stat_t
		if err := unix.Fstat(fdOf(w.dir), &st); err != nil {
			return nil, onVolume("looking at the volume", err)
		}
		return nil, w.notWritable("the volume's directory", &st, "rwx", err)
	case err != nil:
		return nil, onVolume("making "+name, err)
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errInUse = fault.NewTransient(v1alpha1.ReasonVolumeInUse, errors.New("another guest makes its disk on the volume: it is awaited"))

func lock(f *os.File) error {
	err := unix.Flock(fdOf(f), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errInUse
	}
	return onVolume("locking "+f.Name(), err)
}

// discard removes what an interrupted worker left. One that lives has it locked.
func (w *worker) discard(name string) error {
	f, err := w.open(name, unix.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return onVolume("removing "+name, err)
	}
	defer f.Close()
	if err := lock(f); err != nil {
		return err
	}
	if err := unix.Unlinkat(fdOf(w.dir), name, 0); !errors.Is(err, unix.ENOENT) {
		return onVolume("removing "+name, err)
	}
	return nil
}

// publish gives the disk its name once it is whole and on the medium.
func (w *worker) publish(f *os.File, name string) error {
	if err := f.Sync(); err != nil {
		return onVolume("writing "+name, err)
	}
	dir := fdOf(w.dir)
	err := unix.Renameat2(dir, name, dir, w.Name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		// NFS has no such rename. Those who make disks do not meet, by the lock; and there was none a moment ago.
		var st unix.Stat_t
		if err = unix.Fstatat(dir, w.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
			err = unix.EEXIST
		} else if errors.Is(err, unix.ENOENT) {
			err = unix.Renameat(dir, name, dir, w.Name)
		}
	}
	if err != nil {
		return onVolume("naming "+w.Name, err)
	}
	volume, err := w.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0) // to sync it: w.dir may be a mere path
	if err != nil {
		return onVolume("opening the volume", err)
	}
	defer volume.Close()
	return onVolume("writing the volume", volume.Sync())
}

// file is a new file on a volume: what is not written reads as zero.
type file struct{ *os.File }

func (file) zero(int64, int64) error { return nil }
