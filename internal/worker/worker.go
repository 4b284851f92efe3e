package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// Request is the one line that a worker hears. The worker is of the agent's own binary, so that it needs no version.
type Request struct {
	// Name of the disk in the directory: disk.img, or a block device's.
	Name string
	// Block is set for a block device: it is never made, and Size and Capacity say nothing of it.
	Block bool
	// ReadOnly is set for a disk that is neither made nor written.
	ReadOnly bool
	// Known is set for the disk of a claim that this guest has used before: it is there, and whatever it holds is the
	// guest's.
	Known bool
	// Size of the disk in bytes as the spec has it, 0 if it has none.
	Size int64
	// Capacity of the claim in bytes, 0 if that is unknown.
	Capacity int64
	// Seed is the image that a blank disk gets, nil if it is to stay blank.
	Seed *Seed
}

// Seed is an image in the cache.
type Seed struct {
	Digest string
	Format diskformat.Format
	// Size is the virtual size in bytes.
	Size int64
}

// Answer is a line that a worker says: any number of Progress, and then a Result or an Error.
type Answer struct {
	Progress *Progress `json:",omitempty"`
	Result   *Result   `json:",omitempty"`
	Error    *Error    `json:",omitempty"`
}

// Progress of a seeding, in bytes of the image's virtual size. It is told once a second at most.
type Progress struct{ Done, Total int64 }

// Result is what the disk is now.
type Result struct {
	// Size of the disk in bytes.
	Size int64
	// Target is the size in bytes that it may grow to by Size, Capacity and the volume, at least Size.
	Target int64
	// Made is set if there was no disk before.
	Made bool
	// Seeded is set if it holds the image whole, and no guest has booted from it; not where there was data in its place.
	Seeded bool
}

// Error is why there is no disk.
type Error struct {
	Reason  v1alpha1.Reason
	Message string
}

// maxMessage bounds an Error's message, so that a line stays below 4 KiB however JSON escapes it.
const maxMessage = 600

// Run answers the request on in. dir is the directory that has the disk, which may be open by O_PATH; image is the
// seed's, and not looked at if there is none. Its own error is that nobody can be told.
func Run(ctx context.Context, in io.Reader, out io.Writer, dir, image *os.File) error {
	var r Request
	if err := json.NewDecoder(in).Decode(&r); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	unix.Umask(0) // the volume's group may write what is made
	if r.Seed == nil {
		image = nil
	}
	w := &worker{Request: r, dir: dir, image: image, answers: json.NewEncoder(out)}
	ensure := w.ensureFile
	if r.Block {
		ensure = w.ensureDevice
	}
	result, err := ensure(ctx)
	if err != nil {
		message := err.Error()
		return w.answers.Encode(Answer{Error: &Error{fault.ReasonOf(err), message[:min(len(message), maxMessage)]}})
	}
	return w.answers.Encode(Answer{Result: &result})
}

// worker is one request being answered.
type worker struct {
	Request
	dir, image *os.File
	answers    *json.Encoder
}

const mib = 1 << 20

// headSize is how much of a disk tells whether it is blank, in bytes.
const headSize = mib

// open opens a name in the directory, and nothing that a link or a mount leads to.
func (w *worker) open(name string, flags int, mode uint64) (*os.File, error) {
	fd, err := unix.Openat2(fdOf(w.dir), name, &unix.OpenHow{
		Flags:   uint64(flags) | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY, //nolint:gosec // positive
		Mode:    mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func fdOf(f interface{ Fd() uintptr }) int { return int(f.Fd()) }

// access is how the disk is opened.
func (w *worker) access() int {
	if w.ReadOnly {
		return unix.O_RDONLY
	}
	return unix.O_RDWR
}

// readHead reads the first bytes of a disk.
func (w *worker) readHead(disk io.ReaderAt, size int64) ([]byte, error) {
	head := make([]byte, min(size, headSize))
	_, err := io.ReadFull(io.NewSectionReader(disk, 0, size), head)
	return head, onVolume("reading "+w.Name, err)
}

// holds tells whether a disk begins as an image does: then it was seeded from it, and whoever did so could not tell. A
// guest that has started may have changed that, but its disk is Known.
func (w *worker) holds(head []byte) (bool, error) {
	s, err := openSource(w.image, *w.Seed)
	if err != nil {
		return false, err
	}
	want, err := s.head()
	return err == nil && !isZero(want) && bytes.HasPrefix(head, want), err
}

// onVolume says whose an error of the volume is.
func onVolume(doing string, err error) error {
	wrapped := fault.Doing(err, "%s", doing)
	errno, ok := errors.AsType[unix.Errno](err)
	switch {
	case !ok:
		return wrapped
	case errno == unix.ENOSPC || errno == unix.EDQUOT || errno == unix.EFBIG:
		return fault.NewUser(v1alpha1.ReasonVolumeTooSmall, fmt.Errorf("%w: remove what else is on the volume, or raise the claim's request", wrapped))
	default:
		return fault.NewUser(v1alpha1.ReasonVolumeNotWritable, wrapped)
	}
}

func refuse(reason v1alpha1.Reason, format string, args ...any) error {
	return fault.NewUser(reason, fmt.Errorf(format, args...))
}
