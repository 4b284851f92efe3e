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

// Fetch brings the files of a content: it opens each with create, by one of the names Disk, Kernel and Initrd, writes
// it, and returns nil only if all that it wrote is good.
type Fetch func(ctx context.Context, create func(name string) (io.Writer, error)) error

// Import is a content on its way into the store.
type Import struct {
	done  chan struct{}
	bytes atomic.Int64
	err   error
}

// Wait returns how the import ended: nil if the content is in the store.
func (i *Import) Wait() error {
	<-i.done
	return i.err
}

// Bytes is how many bytes have come so far.
func (i *Import) Bytes() int64 { return i.bytes.Load() }

// transfer is what imports share. What one source is too slow for, or fails in, another may do.
type transfer struct {
	content Content
	source  string
}

// Import begins to bring a content into the store, or joins the import that already does from the same source; one that
// is there is done. Of several sources the first to end makes the content, and the others find it there. It ends with ctx, which must not be a single guest's. Errors of fetch are returned as they are, StoreFull if the
// disk is full, and diskformat's if the disk is none. A failed import leaves nothing and may be begun again.
func (s *Store) Import(ctx context.Context, c Content, source string, fetch Fetch) *Import {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := transfer{c, source}
	if running, ok := s.imports[t]; ok {
		return running
	}
	i := &Import{done: make(chan struct{})}
	s.imports[t] = i
	go func() {
		i.err = s.bring(ctx, i, c, fetch)
		s.mu.Lock()
		delete(s.imports, t)
		s.mu.Unlock()
		close(i.done)
	}()
	return i
}

func (s *Store) bring(ctx context.Context, i *Import, c Content, fetch Fetch) error {
	final, err := s.imageDir(c)
	if err != nil {
		return err
	}
	if _, err := s.Image(c); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var dir string
	var held *os.File
	// No sweep may come between the making of the directory and the lock that protects it.
	err = s.together(func() (err error) {
		if dir, err = os.MkdirTemp(s.images, newPrefix); err != nil {
			return err
		}
		held, err = lockedFile(dir, os.O_RDONLY, unix.LOCK_EX)
		return err
	})
	if dir != "" {
		defer os.RemoveAll(dir)
	}
	if err != nil {
		return classify("importing "+c.Digest, err)
	}
	defer held.Close()

	incoming := &incoming{dir: dir, count: &i.bytes, wants: c.wants()}
	defer incoming.close()
	if err := fetch(ctx, incoming.create); err != nil {
		if incoming.err != nil {
			err = classify("importing "+c.Digest, incoming.err)
		}
		return err
	}
	m, err := incoming.finish(c)
	if err == nil {
		err = errors.Join(writeJSON(filepath.Join(dir, metaFile), 0o644, m), os.Chmod(dir, dirMode))
	}
	if err != nil {
		return classify("importing "+c.Digest, err)
	}
	return classify("publishing "+c.Digest, s.together(func() error {
		// Another process may have brought it meanwhile: then its directory is as good as ours.
		if err := os.Rename(dir, final); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return syncDir(s.images)
	}))
}

// incoming are the files of an import.
type incoming struct {
	dir   string
	count *atomic.Int64
	wants []string
	files []*sparseFile
	// err is the first error of a writer.
	err error
}

func (in *incoming) create(name string) (io.Writer, error) {
	for _, f := range in.files {
		if f.name == name {
			return nil, fmt.Errorf("the import's file %q came twice", name)
		}
	}
	if !slices.Contains(in.wants, name) {
		return nil, fmt.Errorf("the import has no place for %q", name)
	}
	f, err := os.OpenFile(filepath.Join(in.dir, name+".img"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		in.err = err
		return nil, err
	}
	sparse := &sparseFile{file: f, name: name, in: in}
	in.files = append(in.files, sparse)
	return sparse, nil
}

func (in *incoming) close() {
	for _, f := range in.files {
		_ = f.file.Close()
	}
}

// finish makes the files lasting and read-only, and looks at what they are.
func (in *incoming) finish(c Content) (meta, error) {
	m := meta{Content: c}
	if len(in.files) != len(in.wants) {
		return m, fmt.Errorf("the import brought %d files of %d", len(in.files), len(in.wants))
	}
	for _, f := range in.files {
		if err := f.file.Truncate(f.size); err != nil { // a hole at the end
			return m, err
		}
		if f.name == Disk {
			info, err := diskformat.Inspect(f.file, f.size)
			if err != nil {
				return m, err
			}
			m.Format, m.VirtualSize = info.Format, info.VirtualSize
			if err := os.Rename(f.file.Name(), filepath.Join(in.dir, diskFile(info.Format))); err != nil {
				return m, err
			}
		}
		if err := errors.Join(f.file.Chmod(0o444), f.file.Sync()); err != nil {
			return m, err
		}
	}
	return m, nil
}

// sparseFile writes no zeroes: what is not written reads as zero, and takes no space.
type sparseFile struct {
	file *os.File // not embedded: its ReadFrom and WriteString would go round Write
	name string
	in   *incoming
	size int64
}

const page = 4096

var zeroes [page]byte

func (f *sparseFile) Write(b []byte) (int, error) {
	start, at := f.size, f.size // data from start to at is still to be written
	end := start + int64(len(b))
	base := start
	flush := func() error {
		_, err := f.file.WriteAt(b[start-base:at-base], start)
		return err
	}
	for at < end {
		next := min(end, at/page*page+page)
		if piece := b[at-base : next-base]; bytes.Equal(piece, zeroes[:len(piece)]) {
			if err := flush(); err != nil {
				return f.failed(err)
			}
			start = next
		}
		at = next
	}
	if err := flush(); err != nil {
		return f.failed(err)
	}
	f.size = end
	f.in.count.Add(int64(len(b)))
	return len(b), nil
}

func (f *sparseFile) failed(err error) (int, error) {
	f.in.err = err
	return 0, err
}

func diskFile(format diskformat.Format) string { return Disk + "." + string(format) }
