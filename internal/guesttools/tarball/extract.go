package tarball

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"
)

// extraction is one destination: os.Root resolves each name beneath it, and follows no link out of it.
type extraction struct {
	options
	root  *os.Root
	umask fs.FileMode
	dirs  []*tar.Header // their modes and times come last
}

func extract(o options, stdin io.Reader, complain func(error)) {
	root, err := os.OpenRoot(o.dir)
	if err != nil {
		complain(err)
		return
	}
	defer root.Close()
	umask := syscall.Umask(0)
	syscall.Umask(umask)
	x := &extraction{options: o, root: root, umask: fs.FileMode(umask)} //nolint:gosec // nine bits
	in := tar.NewReader(stdin)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			complain(fmt.Errorf("reading the archive: %w", err))
			break
		}
		if err := x.member(header, in); err != nil {
			complain(fmt.Errorf("skipped %q: %w", header.Name, err))
		}
	}
	for _, dir := range slices.Backward(x.dirs) {
		if err := x.finish(dir); err != nil {
			complain(fmt.Errorf("directory %q: %w", dir.Name, err))
		}
	}
	_, _ = io.Copy(io.Discard, stdin) // who writes is not to fail for what is behind the archive
}

// clean makes a member's name relative. One with .. is refused: it means a place that it does not name.
func clean(name string) (string, error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", errors.New("its name has a ..")
	}
	return path.Clean(strings.TrimLeft(name, "/")), nil
}

func (x *extraction) member(header *tar.Header, content io.Reader) (err error) {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if header.Name, err = clean(header.Name); err != nil {
		return err
	}
	if header.Name == "" || header.Name == "." {
		if header.Typeflag == tar.TypeDir {
			return nil // the destination's modes are its own
		}
		return errors.New("it has no name")
	}
	if err := x.root.MkdirAll(path.Dir(header.Name), 0o755); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err := x.root.Mkdir(header.Name, 0o700); err != nil {
			if info, e := x.root.Stat(header.Name); e != nil || !info.IsDir() {
				return err
			}
		}
		x.dirs = append(x.dirs, header)
		return nil
	case tar.TypeReg:
		if err := x.remove(header.Name); err != nil {
			return err
		}
		if err := x.file(header.Name, content); err != nil {
			return err
		}
		return x.finish(header)
	case tar.TypeSymlink:
		if err := x.remove(header.Name); err != nil {
			return err
		}
		if err := x.root.Symlink(header.Linkname, header.Name); err != nil {
			return err
		}
		return x.own(header)
	case tar.TypeLink:
		target, err := clean(header.Linkname)
		if err != nil || target == header.Name {
			return err
		}
		if err := x.remove(header.Name); err != nil {
			return err
		}
		return x.root.Link(target, header.Name)
	default:
		return fmt.Errorf("it is a device, or of another type that is not extracted (%q)", header.Typeflag)
	}
}

// remove makes room: what is there may be a link, or have one from elsewhere, so nothing is written into it.
func (x *extraction) remove(name string) error {
	if err := x.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (x *extraction) file(name string, content io.Reader) error {
	file, err := x.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close())
}

// finish gives a file or a directory its owner, mode and times.
func (x *extraction) finish(header *tar.Header) error {
	if err := x.own(header); err != nil { // before the mode: it takes setuid away
		return err
	}
	mode := header.FileInfo().Mode() &^ fs.ModeType
	if x.noModes {
		mode = mode.Perm() &^ x.umask
	}
	if err := x.root.Chmod(header.Name, mode); err != nil {
		return err
	}
	if x.noTimes {
		return nil
	}
	return x.root.Chtimes(header.Name, time.Time{}, header.ModTime)
}

func (x *extraction) own(header *tar.Header) error {
	if x.noOwners {
		return nil
	}
	return x.root.Lchown(header.Name, header.Uid, header.Gid)
}
