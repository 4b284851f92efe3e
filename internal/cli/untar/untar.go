package untar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Tree writes what in has of base to destination, and nothing outside: names and hard links that lead out of it are refused,
// and so is what is to be written through a link; symbolic links that lead out, and what is neither file, directory nor link,
// are told to skipped and left out.
func Tree(in io.Reader, base, destination string, skipped func(what string)) error {
	if there, err := filepath.EvalSymlinks(destination); err == nil { // the user's own link
		destination = there
	}
	parent, name := filepath.Split(filepath.Clean(destination))
	root, err := os.OpenRoot(filepath.Join(parent, "."))
	if err != nil {
		return err
	}
	defer root.Close()
	var directories []func() error // whose modes and times are set when all is in them
	files := tar.NewReader(in)
	for count := 0; ; count++ {
		h, err := files.Next()
		if errors.Is(err, io.EOF) && count > 0 {
			break
		} else if err != nil {
			return fmt.Errorf("reading what the guest sends: %w", err)
		}
		below, isBelow := relative(base, h.Name)
		target := filepath.Join(name, filepath.FromSlash(below))
		switch h.Typeflag {
		case tar.TypeLink:
			linked, isWithin := relative(base, h.Linkname)
			h.Linkname, isBelow = filepath.Join(name, filepath.FromSlash(linked)), isBelow && isWithin
		case tar.TypeSymlink:
			h.Linkname = path.Clean(h.Linkname)                                                                          // so that no link on its way can change what .. is
			if path.IsAbs(h.Linkname) || !filepath.IsLocal(filepath.FromSlash(path.Join(path.Dir(below), h.Linkname))) { //nolint:gosec // what is not below is skipped, and opened below a root
				skipped(fmt.Sprintf("the link %s to %s: it leads out of what is copied", target, h.Linkname))
				continue
			}
		case tar.TypeReg, tar.TypeDir:
		default:
			skipped(target + ": it is no file, directory or link")
			continue
		}
		if !isBelow {
			return fmt.Errorf("the guest sends %.200q, which is not below %s", h.Name, base)
		}
		if err := write(root, target, h, files); err != nil {
			return fmt.Errorf("writing %.200q: %w", target, err)
		}
		if h.Typeflag == tar.TypeDir {
			directories = append(directories, func() error { return attributes(root, target, h) })
		}
	}
	for _, set := range slices.Backward(directories) {
		err = errors.Join(err, set())
	}
	return err
}

// relative is a name of a tar below its base.
func relative(base, name string) (string, bool) {
	name = path.Clean(name)
	if base != "." {
		rest, is := strings.CutPrefix(name+"/", base+"/")
		if !is {
			return "", false
		}
		name = path.Join(".", rest)
	}
	return name, filepath.IsLocal(filepath.FromSlash(name))
}

// write makes one file, directory or link, in place of one that is there.
func write(root *os.Root, target string, h *tar.Header, content io.Reader) error {
	for dir := filepath.Dir(target); dir != "."; dir = filepath.Dir(dir) {
		if isLink(root, dir) {
			return fmt.Errorf("%.200q is a link", dir)
		}
	}
	if err := root.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir && !isLink(root, target) {
		return root.MkdirAll(target, 0o755)
	}
	if err := root.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.Mkdir(target, 0o755)
	case tar.TypeLink:
		return root.Link(h.Linkname, target)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, target)
	}
	file, err := root.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Close(), attributes(root, target, h))
}

func isLink(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}

// attributes sets mode and time. Modes have nine bits here: no guest makes a program run as another.
func attributes(root *os.Root, target string, h *tar.Header) error {
	if isLink(root, target) { // in the place of a directory
		return nil
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm //nolint:gosec // of which nine bits stay
	return errors.Join(root.Chmod(target, mode), root.Chtimes(target, h.ModTime, h.ModTime))
}
