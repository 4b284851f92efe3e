package untar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrKind is what goes with members that are not made for what they are.
var ErrKind = errors.New("it is no file, directory or link")

// Extraction is how the members of an archive come to stand below Root.
type Extraction struct {
	Root *os.Root
	// Place gives a member, and of a hard link what it names, the names that they have below Root. With an error, the member
	// is not made.
	Place func(*tar.Header) error
	// Failed hears why a member was not made. The error that it returns, if any, ends the extraction.
	Failed func(member string, err error) error
	Modes  fs.FileMode // the bits of their modes that members get; with none, modes are as the umask makes them
	Owners bool        // members get their owners
	Times  bool        // members get their times
}

// Run makes all members. Those of an archive that breaks off stay.
func (e *Extraction) Run(archive io.Reader) error {
	files := tar.NewReader(archive)
	var dirs []*tar.Header // what comes into them would change their times, and need their modes
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the archive: %w", err)
		}
		member := h.Name
		if err = e.Place(h); err == nil {
			err = e.make(h, files)
		}
		if err != nil {
			err = e.Failed(member, err)
		} else if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, h)
		}
		if err != nil {
			return err
		}
	}
	for _, h := range slices.Backward(dirs) {
		if info, err := e.Root.Lstat(h.Name); err != nil || !info.IsDir() {
			continue // a later member took its place: a link, perhaps to a file that has other names outside
		}
		if err := e.finish(h); err != nil {
			if err = e.Failed(h.Name, err); err != nil {
				return err
			}
		}
	}
	return nil
}

// make makes a member. What is there is removed first, and never written into: it may have other names.
func (e *Extraction) make(h *tar.Header, content io.Reader) error {
	if err := e.Root.MkdirAll(filepath.Dir(h.Name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return e.Root.MkdirAll(h.Name, 0o755)
	case tar.TypeReg, tar.TypeSymlink, tar.TypeLink:
	default:
		return fmt.Errorf("%w, but of type %q", ErrKind, h.Typeflag)
	}
	if h.Typeflag == tar.TypeLink && h.Linkname == h.Name {
		return nil
	}
	if err := e.Root.Remove(h.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeSymlink:
		return e.Root.Symlink(h.Linkname, h.Name)
	case tar.TypeLink:
		return e.Root.Link(h.Linkname, h.Name)
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm //nolint:gosec // nine bits
	if e.Modes != 0 {
		mode = 0o600 // until it is whole
	}
	file, err := e.Root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return e.finish(h)
}

// finish gives a file or a directory its owner, mode and time.
func (e *Extraction) finish(h *tar.Header) (err error) {
	if e.Owners {
		err = e.Root.Lchown(h.Name, h.Uid, h.Gid) // first: it takes setuid away
	}
	if err == nil && e.Modes != 0 {
		err = e.Root.Chmod(h.Name, h.FileInfo().Mode()&e.Modes&^fs.ModeType)
	}
	if err == nil && e.Times {
		err = e.Root.Chtimes(h.Name, time.Time{}, h.ModTime)
	}
	return err
}
