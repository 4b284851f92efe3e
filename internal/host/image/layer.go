package image

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// whiteout and opaque are the OCI image specification's marks for what lower layers have and the image has not.
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	// maxWhiteouts bounds the memory that an image's whiteouts take, with maxName, Linux' limit of a name's bytes.
	maxWhiteouts = 4096
	maxName      = 255
)

// want is a file that is looked for in an image.
type want struct {
	// path is the file's, without a leading slash; or that of the directory whose only file it is.
	path        string
	inDirectory bool
	file        File
	// found is its name in the layer that has it, or that of a link on the way to it, and then link what is to be looked
	// for instead.
	found string
	link  *want
	// removed: a layer has removed what lower ones have of it.
	removed bool
}

// search looks for files in the layers of an image, from the top one down, by their names alone.
type search struct {
	ref Reference // for messages
	// wants are by their paths.
	wants map[string]*want
	// write copies a file's content to where name says.
	write func(name string, size int64, r io.Reader) error
	// remaining is how many bytes the files may have together.
	remaining int64
	// whiteouts are names that upper layers removed in a directory that is looked into.
	whiteouts map[string]bool
	// bootc: there are files of a system that bootc installs (https://bootc.dev/bootc/).
	bootc bool
}

// done: no lower layer needs to be read, as all is found, or something never will be.
func (s *search) done() bool {
	all := true
	for _, w := range s.wants {
		if w.removed && w.found == "" {
			return true
		}
		all = all && w.found != ""
	}
	return all
}

// layer reads the tar stream of one layer to its end. Its whiteouts count for the layers below.
func (s *search) layer(r io.Reader) error {
	open := slices.DeleteFunc(slices.Collect(maps.Values(s.wants)), func(w *want) bool { return w.found != "" || w.removed })
	whiteouts := map[string]bool{}
	maps.Copy(whiteouts, s.whiteouts)
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		for _, w := range open {
			if err := s.entry(archive, h, w, whiteouts); err != nil {
				return err
			}
		}
		if len(whiteouts) > maxWhiteouts {
			return s.ref.notDisk("it removes too many files beside its disk")
		}
	}
	s.whiteouts = whiteouts
	return nil
}

// entry takes an entry that matters to what is looked for: the file, a link on the way to it, or what removes it from the
// layers below.
func (s *search) entry(r io.Reader, h *tar.Header, w *want, whiteouts map[string]bool) error {
	name := path.Clean("/" + h.Name)[1:]
	base, dir := path.Base(name), path.Dir("/" + name)[1:]
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		name = path.Join(dir, hidden)
		if base == opaque {
			name = dir
		} else if w.inDirectory && dir == w.path && len(hidden) <= maxName { // no file has a longer name
			whiteouts[strings.Clone(name)] = true // not a part of a larger header
		}
		w.removed = w.removed || isBelow(w.path, name)
		return nil
	}
	s.bootc = s.bootc || isBelow(name, "usr/lib/bootc") || isBelow(name, "sysroot/ostree")
	if h.Typeflag == tar.TypeDir || name == "" {
		return nil
	}
	above := isBelow(w.path, name)
	w.removed = w.removed || above // as a file is no directory
	onTheWay := above && (w.inDirectory || name != w.path)
	switch {
	case onTheWay && h.Typeflag == tar.TypeSymlink:
	case !w.inDirectory && name == w.path:
	case w.inDirectory && dir == w.path && !strings.HasPrefix(base, ".") && !s.whiteouts[name]:
	default:
		return nil
	}
	switch {
	case w.found != "" && w.inDirectory && w.found != name:
		return s.ref.notDisk("it holds more than one file in /%s (%s and %s): leave one", w.path, printable(path.Base(w.found)), printable(base))
	case w.found != "":
		return s.ref.notDisk("it holds more than one /%s: leave one", printable(name))
	}
	w.found = name
	switch {
	case onTheWay:
		to := path.Join("/", target(h, name), w.path[len(name):])[1:]
		w.link = &want{path: to, inDirectory: w.inDirectory, file: w.file}
	case h.Typeflag == tar.TypeLink, h.Typeflag == tar.TypeSymlink:
		w.link = &want{path: target(h, name), file: w.file}
	case h.Typeflag == tar.TypeReg, h.Typeflag == tar.TypeGNUSparse:
		return s.copyFile(r, h, name, w.file)
	default:
		return s.ref.notDisk("its /%s is no regular file", printable(name))
	}
	return nil
}

// isBelow tells whether a path is dir or lies below it; the root is "".
func isBelow(name, dir string) bool {
	return dir == "" || name == dir || strings.HasPrefix(name, dir+"/")
}

// target is what a link leads to in the image; nothing leads out of it.
func target(h *tar.Header, name string) string {
	to := h.Linkname
	if h.Typeflag == tar.TypeSymlink && !path.IsAbs(to) {
		to = path.Join(path.Dir(name), to) //nolint:gosec // a name to look for: nothing is extracted
	}
	return path.Clean("/" + to)[1:]
}

// copyFile writes one file.
func (s *search) copyFile(r io.Reader, h *tar.Header, name string, file File) error {
	if file.MaxBytes > 0 && h.Size > file.MaxBytes {
		return s.ref.refuse(v1alpha1.ReasonImageTooLarge,
			"its /%s has %d bytes, the most is %d: use a smaller one", printable(name), h.Size, file.MaxBytes)
	}
	// A sparse file has more bytes than its archive, so the archive's limit is not enough.
	if h.Size > s.remaining {
		return errTooLarge
	}
	s.remaining -= h.Size
	return s.write(file.Name, h.Size, r)
}
