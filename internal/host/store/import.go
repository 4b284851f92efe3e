package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// Create opens a file of a content, by one of the names Disk, Kernel and Initrd. size is its size in bytes, 0 if that is
// not known yet.
type Create = func(name string, size int64) (io.Writer, error)

// Fetch gets the files of a content: it opens each with create, writes it, and returns nil only if all that it wrote is
// good.
type Fetch func(ctx context.Context, create Create) error

// Import is a content to be brought into the store.
type Import struct {
	Content
	Fetch Fetch
	// Fetched is asked for the digest after Fetch, of a content without one.
	Fetched func() string
	// Needs is the space in bytes that it is known to take at least, 0 if nothing is known: it is not begun with less.
	Needs int64
	// Progress is told how far it is.
	Progress *Progress
	// Source is where it comes from, whose partial disks only imports from there go on with; "" if none may.
	Source string
	// Stopping tells, once Fetch has failed, whether it did because this process ends.
	Stopping func() bool
}

// Progress is how far an import is.
type Progress struct {
	// Bytes is how many have come, Stored how many of them take space: zeroes do not.
	Bytes, Stored atomic.Int64
}

// Import imports a content, and is done at once for one that is there. Nobody else's import of the same content is
// waited for: the first to end makes it, and the others find it there. Errors of Fetch are returned as they are,
// diskformat's as soon as the first bytes show that the disk is none, and StoreFull if it would take what the store
// keeps free for guests. A failed import may be started again, and leaves nothing but what Resume of its writer keeps.
func (s *Store) Import(ctx context.Context, i Import) error {
	c := i.Content
	if c.Digest != "" {
		if _, err := s.Image(c); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.checkRoom(i.Needs); err != nil {
		return classify("importing "+c.Digest, err)
	}
	var dir string
	var held *os.File
	// No sweep may come between the making of the directory and the lock that protects it.
	err := s.locked(shared, func() (err error) {
		if dir, err = os.MkdirTemp(s.images, newPrefix); err != nil {
			return err
		}
		held, err = lockedFile(dir, os.O_RDONLY, unix.LOCK_EX)
		return err
	})
	stops := false
	defer func() {
		if dir != "" && !(stops && s.keepPart(dir)) {
			_ = os.RemoveAll(dir)
		}
	}()
	if err != nil {
		return classify("importing "+c.Digest, err)
	}
	defer held.Close()

	staged := &staging{store: s, dir: dir, content: c, source: i.Source, progress: i.Progress}
	defer staged.close()
	if err := i.Fetch(ctx, staged.create); err != nil {
		if staged.err != nil {
			return classify("importing "+c.Digest, staged.err)
		}
		stops = i.Stopping != nil && i.Stopping()
		return err
	}
	if c.Digest == "" {
		c.Digest = i.Fetched()
	}
	final, err := s.imageDir(c)
	if err != nil {
		return err
	}
	m, err := staged.finish(c)
	if err == nil {
		err = os.RemoveAll(filepath.Join(dir, partFile))
	}
	if err == nil {
		err = errors.Join(writeJSON(filepath.Join(dir, metaFile), 0o644, m), os.Chmod(dir, dirMode))
	}
	if err != nil {
		return classify("importing "+c.Digest, err)
	}
	return classify("publishing "+c.Digest, s.locked(shared, func() error {
		// Another import, or another process, may have made it meanwhile: then its directory is as good as ours.
		if err := os.Rename(dir, final); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return syncDir(s.images)
	}))
}

// staging has the files of an import until they are complete.
type staging struct {
	store     *Store
	dir       string
	content   Content
	source    string
	progress  *Progress
	files     []*sparseFile
	unchecked int64 // bytes stored since the room was last looked at
	// err is the first error of a writer.
	err error
}

func (in *staging) create(name string, size int64) (io.Writer, error) {
	switch {
	case !slices.Contains(in.content.fileNames(), name):
		return nil, fmt.Errorf("the import does not expect file %q", name)
	case slices.ContainsFunc(in.files, func(f *sparseFile) bool { return f.name == name }):
		return nil, fmt.Errorf("the image has file %q twice", name)
	}
	f, err := os.OpenFile(filepath.Join(in.dir, bootFile(name)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		in.err = err
		return nil, err
	}
	sparse := &sparseFile{file: f, name: name, staging: in, expected: size}
	in.files = append(in.files, sparse)
	return sparse, nil
}

func (in *staging) close() {
	for _, f := range in.files {
		_ = f.file.Close()
	}
}

// finish syncs the files, makes them read-only, and inspects the disk.
func (in *staging) finish(c Content) (Image, error) {
	i := Image{Content: c}
	if want := len(c.fileNames()); len(in.files) != want {
		return i, fmt.Errorf("the image has %d files of %d", len(in.files), want)
	}
	for _, f := range in.files {
		if err := f.file.Truncate(f.size); err != nil { // a hole at the end
			return i, err
		}
		if f.name == Disk {
			info, err := diskformat.Inspect(f.file, f.size)
			if err != nil {
				return i, err
			}
			i.Format, i.VirtualSize = info.Format, info.VirtualSize
			if info.Format == diskformat.Raw { // padded to a sector
				err = f.file.Truncate(info.VirtualSize)
			}
			if err := errors.Join(err, os.Rename(f.file.Name(), filepath.Join(in.dir, diskFile(info.Format)))); err != nil {
				return i, err
			}
		}
		if err := errors.Join(f.file.Chmod(0o444), f.file.Sync()); err != nil {
			return i, err
		}
	}
	return i, nil
}

// sparseFile writes no zeroes: what is not written reads as zero, and takes no space.
type sparseFile struct {
	file     *os.File // not embedded: its ReadFrom and WriteString would go round Write
	name     string
	staging  *staging
	size     int64
	had      int64  // so many of its first bytes are stored already
	expected int64  // size at the end, 0 if that is not known
	head     []byte // of a disk, until it has been inspected
}

const pageSize = 4096

var zeroPage [pageSize]byte

func (f *sparseFile) Write(b []byte) (int, error) {
	err := f.inspectHead(b)
	start, at := 0, 0 // data from start to at is still to be stored
	for at < len(b) && err == nil {
		next := min(len(b), at+pageSize-int(f.size+int64(at))%pageSize)
		if piece := b[at:next]; bytes.Equal(piece, zeroPage[:len(piece)]) {
			err = f.store(b[start:at], int64(start))
			start = next
		}
		at = next
	}
	if err == nil {
		err = f.store(b[start:], int64(start))
	}
	if err != nil {
		f.staging.err = err
		return 0, err
	}
	f.size += int64(len(b))
	f.staging.progress.Bytes.Add(int64(len(b)))
	return len(b), nil
}

// store writes bytes that take space, behind so many others than the file has, and ends the import before they take what
// is kept for guests.
func (f *sparseFile) store(b []byte, behind int64) error {
	const interval = 8 << 20
	skipped := min(max(f.had-f.size-behind, 0), int64(len(b)))
	b = b[skipped:]
	if _, err := f.file.WriteAt(b, f.size+behind+skipped); err != nil {
		return err
	}
	in := f.staging
	in.progress.Stored.Add(int64(len(b)))
	if in.unchecked += int64(len(b)); in.unchecked < interval {
		return nil
	}
	in.unchecked = 0
	return in.store.checkRoom(0)
}

// inspectHead ends the import of a disk whose first bytes are refused, or tell that there is no room for it.
func (f *sparseFile) inspectHead(b []byte) error {
	if f.name != Disk || f.size >= diskformat.HeadSize {
		return nil
	}
	f.head = append(f.head, b[:min(len(b), diskformat.HeadSize-len(f.head))]...)
	if len(f.head) < diskformat.HeadSize {
		return nil
	}
	format, err := diskformat.InspectHead(f.head)
	f.head = nil
	if err != nil || format == diskformat.Raw { // a raw disk may be holes for the most part
		return err
	}
	return f.staging.store.checkRoom(f.expected - f.had)
}

func diskFile(format diskformat.Format) string { return Disk + "." + string(format) }
