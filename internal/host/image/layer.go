package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"strings"
)

const (
	diskDir = "disk"
	// whiteout and opaque are the OCI image specification's marks for what lower layers have and the image has not.
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
	// maxWhiteouts bounds the memory that an image's whiteouts take, with maxName, Linux' limit of a name's bytes.
	maxWhiteouts = 4096
	maxName      = 255
)

// search looks for files in the layers of an image, from the top one down, by their names alone.
type search struct {
	// files are the paths that are still looked for, without a leading slash. Nil: the only file in dir is looked for.
	files map[string]File
	dir   string
	// write copies a file's content to where name says.
	write func(name string, size int64, r io.Reader) error
	// remaining is how many bytes the files may have together.
	remaining int64

	found int
	// links are those that were found instead of files, or on the way to them.
	links []link
	// whiteouts are names in dir that an upper layer removed.
	whiteouts map[string]bool
	// deleted: an upper layer removed what is looked for, so no lower one is read.
	deleted bool
}

// link leads from a name to what is to be looked for instead.
type link struct {
	name, target string
	file         File // where the target goes; zero if the link is, or leads to, dir
}

// contentError is an error of what an image holds, not of how it was transferred.
type contentError struct{ error }

// errTooLarge tells that files have more bytes than are left.
var errTooLarge = errors.New("too large")

// fileTooLargeError is that of one file.
type fileTooLargeError struct {
	name    string
	size    int64
	maximum int64
}

func (e fileTooLargeError) Error() string {
	return fmt.Sprintf("its /%s has %d bytes, the most is %d: use a smaller one", e.name, e.size, e.maximum)
}

func (s *search) done() bool {
	return s.deleted || s.files == nil && (s.found > 0 || len(s.links) > 0) || s.files != nil && len(s.files) == 0
}

// layer reads the tar stream of one layer to its end. Its whiteouts count for the layers below.
func (s *search) layer(r io.Reader) error {
	whiteouts := map[string]bool{}
	taken := map[string]bool{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)[1:]
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		switch {
		case base == opaque:
			s.addWhiteout(whiteouts, dir, "/")
		case strings.HasPrefix(base, whiteout):
			s.addWhiteout(whiteouts, path.Join(dir, base[len(whiteout):]), "")
		case h.Typeflag == tar.TypeDir:
		default:
			s.addWhiteout(whiteouts, name, "") // and what is below it, as a file is no directory
			if err := s.entry(archive, h, name, taken); err != nil {
				return err
			}
		}
		if len(whiteouts) > maxWhiteouts {
			return contentError{errors.New("it removes too many files beside its disk")}
		}
	}
	for name := range taken {
		delete(s.files, name)
	}
	s.applyWhiteouts(whiteouts)
	return nil
}

// entry takes what is no directory, if it is looked for or a link on the way there.
func (s *search) entry(r io.Reader, h *tar.Header, name string, taken map[string]bool) error {
	if h.Typeflag == tar.TypeSymlink {
		s.redirect(name, target(h, name), taken)
	}
	file, ok := s.matches(name)
	if !ok {
		return nil
	}
	for other := range taken {
		if other == name {
			return contentError{fmt.Errorf("it holds more than one /%s: leave one", printable(name))}
		}
		if s.files == nil {
			return contentError{fmt.Errorf("it holds more than one file in /%s (%s and %s): leave one", s.dir, printable(path.Base(other)), printable(path.Base(name)))}
		}
	}
	taken[name] = true
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		s.found++
		return s.copyFile(r, h, name, file)
	case tar.TypeLink, tar.TypeSymlink:
		s.links = append(s.links, link{name, target(h, name), file})
		return nil
	default:
		return contentError{fmt.Errorf("its /%s is no regular file", printable(name))}
	}
}

// matches tells whether a file is looked for, and where it goes.
func (s *search) matches(name string) (File, bool) {
	if s.files == nil {
		dir, base := path.Split(name)
		return File{Name: DiskName}, strings.TrimSuffix(dir, "/") == s.dir && !strings.HasPrefix(base, ".") && !s.whiteouts[name]
	}
	file, ok := s.files[name]
	return file, ok
}

// redirect notes a link that is a directory on the way to what is looked for.
func (s *search) redirect(name, to string, taken map[string]bool) {
	if s.files == nil {
		if rest, ok := below(s.dir, name); ok {
			s.links = append(s.links, link{name: name, target: path.Join(to, rest)})
		}
		return
	}
	for wanted, file := range s.files {
		if rest, ok := below(wanted, name); ok && rest != "" {
			taken[wanted] = true
			s.links = append(s.links, link{name, path.Join(to, rest), file})
		}
	}
}

// below returns the rest of a path that is dir or lies below it.
func below(name, dir string) (rest string, ok bool) {
	if name == dir {
		return "", true
	}
	return strings.CutPrefix(name, dir+"/")
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
		return fileTooLargeError{printable(name), h.Size, file.MaxBytes}
	}
	// A sparse file has more bytes than its archive, so the archive's limit is not enough.
	if h.Size > s.remaining {
		return errTooLarge
	}
	s.remaining -= h.Size
	return s.write(file.Name, h.Size, r)
}

// addWhiteout notes that a name of the layers below is removed, or with the suffix "/" only what is in it, if that
// matters to the search.
func (s *search) addWhiteout(whiteouts map[string]bool, name, suffix string) {
	matters := false
	for _, wanted := range s.wanted() {
		_, above := below(wanted, name)
		matters = matters || name == "" || above
	}
	if s.files == nil && len(path.Base(name)) <= maxName { // no file has a longer name
		dir, _ := path.Split(name)
		matters = matters || strings.TrimSuffix(dir, "/") == s.dir
	}
	if matters {
		whiteouts[strings.Clone(name+suffix)] = true // not a part of a larger header
	}
}

// wanted are the paths that are looked for.
func (s *search) wanted() []string {
	if s.files == nil {
		return []string{s.dir}
	}
	var list []string
	for name := range s.files {
		list = append(list, name)
	}
	return list
}

// applyWhiteouts makes the whiteouts of a layer count for the layers below.
func (s *search) applyWhiteouts(whiteouts map[string]bool) {
	if s.files == nil {
		if s.whiteouts == nil {
			s.whiteouts = map[string]bool{}
		}
		maps.Copy(s.whiteouts, whiteouts)
		if s.found > 0 || len(s.links) > 0 {
			return
		}
		s.deleted = s.deleted || whiteouts[s.dir+"/"]
	}
	for _, wanted := range s.wanted() {
		s.deleted = s.deleted || whiteouts[wanted] || whiteouts["/"]
		for dir := path.Dir(wanted); dir != "."; dir = path.Dir(dir) {
			s.deleted = s.deleted || whiteouts[dir] || whiteouts[dir+"/"]
		}
	}
}

// follow is the search for what the links lead to.
func (s *search) follow() *search {
	next := &search{write: s.write, remaining: s.remaining, dir: s.links[0].target}
	for _, l := range s.links {
		if l.file.Name == "" {
			continue
		}
		if next.files == nil {
			next.files = map[string]File{}
		}
		next.files[l.target] = l.file
	}
	return next
}
