package cli

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/internal/untar"
)

// errSkipped goes with what is no failure: a member that is told and left out.
var errSkipped = errors.New("left out")

// writeTree writes what an archive of a guest has of base to destination, and nothing outside: names and hard links that lead
// out of it end it, and so does what is to be written through a link; symbolic links that lead out, and what is neither file,
// directory nor link, are told to skipped and left out. No file gets to run as another user.
func writeTree(archive io.Reader, base, destination string, skipped func(what string)) error {
	if there, err := filepath.EvalSymlinks(destination); err == nil { // the user's own link
		destination = there
	}
	parent, name := filepath.Split(filepath.Clean(destination))
	root, err := os.OpenRoot(filepath.Join(parent, "."))
	if err != nil {
		return err
	}
	defer root.Close()
	count := 0
	e := untar.Extraction{Root: root, Modes: fs.ModePerm, Times: true, Place: func(h *tar.Header) error {
		count++
		return place(root, base, name, h)
	}, Failed: func(member string, err error) error {
		if errors.Is(err, errSkipped) {
			skipped(err.Error())
			return nil
		}
		return fmt.Errorf("writing %.200q: %w", member, err)
	}}
	if err = e.Run(archive); err == nil && count == 0 {
		err = errors.New("the guest sends nothing")
	}
	return err
}

// place has a member of base stand below name.
func place(root *os.Root, base, name string, h *tar.Header) error {
	below, isBelow := relative(base, h.Name)
	target := filepath.Join(name, filepath.FromSlash(below))
	switch h.Typeflag {
	case tar.TypeLink:
		linked, isWithin := relative(base, h.Linkname)
		h.Linkname, isBelow = filepath.Join(name, filepath.FromSlash(linked)), isBelow && isWithin
	case tar.TypeSymlink:
		h.Linkname = path.Clean(h.Linkname)                                                                          // so that no link on its way can change what .. is
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(filepath.FromSlash(path.Join(path.Dir(below), h.Linkname))) { //nolint:gosec // what is not below is refused, and opened below a root
			return fmt.Errorf("the link %s to %s: it leads out of what is copied: %w", target, h.Linkname, errSkipped)
		}
	case tar.TypeReg, tar.TypeDir:
	default:
		return fmt.Errorf("%s: it is no file, directory or link: %w", target, errSkipped)
	}
	if !isBelow {
		return fmt.Errorf("it is not below %s", base)
	}
	for dir := filepath.Dir(target); dir != "."; dir = filepath.Dir(dir) {
		if isLink(root, dir) {
			return fmt.Errorf("%.200q is a link", dir)
		}
	}
	h.Name = target
	if h.Typeflag == tar.TypeDir && isLink(root, target) {
		return root.Remove(target)
	}
	return nil
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

func isLink(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
