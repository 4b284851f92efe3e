package worker

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// mark is what the first sector of a block device begins with while it is being seeded: by it the next worker knows that
// what else is there is half an image. The digest follows, for those who look.
const mark = "berth-seed 1 "

func (w *worker) ensureDevice(ctx context.Context) (Result, error) {
	f, err := w.open(w.Name, w.access(), 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{}, refuse(v1alpha1.ReasonVolumeMissing, "%w: the claim's device is not there", err)
	case err != nil:
		return Result{}, onVolume("opening the claim's device", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fdOf(f), &st); err != nil {
		return Result{}, onVolume("looking at the claim's device", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Result{}, refuse(v1alpha1.ReasonVolumeUnsafe, "%s is not a block device (mode %o)", w.Name, st.Mode)
	}
	size, err := unix.IoctlGetInt(fdOf(f), unix.BLKGETSIZE64)
	if err != nil {
		return Result{}, onVolume("asking for the device's size", err)
	}
	return w.ensureSeeded(ctx, device{f}, int64(size))
}

// ensureSeeded seeds a device of size bytes if there is an image, and nothing else on it.
func (w *worker) ensureSeeded(ctx context.Context, d device, size int64) (Result, error) {
	result := Result{Size: size, Target: size}
	if w.Known {
		return result, nil
	}
	head, err := w.readHead(d, size)
	if err != nil {
		return Result{}, err
	}
	interrupted := bytes.HasPrefix(head, []byte(mark))
	if w.image == nil || w.ReadOnly {
		if interrupted {
			return Result{}, refuse(v1alpha1.ReasonVolumeUnsafe, "the claim holds half an image (%.100q): name that image beside the claim, or "+
				"wipe the claim's first sector", bytes.TrimRight(head[:min(len(head), diskformat.SectorSize)], "\x00"))
		}
		return result, nil
	}
	if !interrupted && !isZero(head) {
		result.Seeded, err = w.holds(head)
		return result, err
	}
	s, err := openSource(w.image, *w.Seed)
	if err != nil {
		return Result{}, err
	}
	want, err := s.head()
	switch {
	case err != nil:
		return Result{}, err
	case isZero(want):
		return Result{}, refuse(v1alpha1.ReasonImageUnsafe, "the image's first MiB is zero, by which a claim of volumeMode Block that has it could not "+
			"be told from a blank one: use a claim of volumeMode Filesystem")
	case bytes.HasPrefix(want, []byte(mark)):
		return Result{}, refuse(v1alpha1.ReasonImageUnsafe, "the image begins with %q, by which Berth knows half an image", mark)
	case s.size > size:
		return Result{}, w.imageTooLarge(size)
	}
	result.Seeded = true
	return result, w.seed(ctx, d, s, want)
}

// seed writes the image between two writes of the first sector, each on the medium before the next: so the device is
// blank, marked, or whole. What is behind the image's end stays as it is.
func (w *worker) seed(ctx context.Context, d device, s *source, head []byte) error {
	sector := make([]byte, diskformat.SectorSize)
	copy(sector, mark+w.Seed.Digest)
	if err := d.writeFirst(sector); err != nil {
		return err
	}
	if err := w.copy(ctx, s, d); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return onVolume("writing the device", err)
	}
	return d.writeFirst(head[:diskformat.SectorSize])
}

// device is a block device being seeded: its first sector is written apart.
type device struct{ *os.File }

func (d device) writeFirst(sector []byte) error {
	_, err := d.File.WriteAt(sector, 0)
	return onVolume("writing the device's first sector", errors.Join(err, d.Sync()))
}

// WriteAt leaves the first sector out.
func (d device) WriteAt(b []byte, at int64) (int, error) {
	skip := max(0, diskformat.SectorSize-at)
	n, err := d.File.WriteAt(b[skip:], at+skip)
	return n + int(skip), err
}

func (d device) zero(at, n int64) error {
	skip := max(0, diskformat.SectorSize-at)
	extent := [2]uint64{uint64(at + skip), uint64(n - skip)} //nolint:gosec // positive
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&extent)))
	switch errno { //nolint:exhaustive // the rest are failures
	case 0:
		return nil
	case unix.EINVAL, unix.ENOTTY, unix.EOPNOTSUPP: // less than a sector of the device, or a driver without it
	default:
		return errno
	}
	for end, zeroes := at+n, make([]byte, min(n, grain)); at < end; {
		wrote, err := d.WriteAt(zeroes[:min(end-at, grain)], at)
		if err != nil {
			return err
		}
		at += int64(wrote)
	}
	return nil
}
