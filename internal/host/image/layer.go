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
	// maxHidden bounds what an image can make us remember.
	maxHidden = 4096
)

// search looks for files in the layers of an image, from the top one down, by their names alone.
type search struct {
	// files are the paths that are still looked for, without a leading slash, with the names that create is given.
	// Nil: the only file in /disk is looked for.
	files map[string]string
	// write copies a file's content to where name says.
	write func(name string, r io.Reader) error
	// left is how many bytes the files may have together.
	left int64

	found int
	// hidden are names in /disk that an upper layer removed.
	hidden map[string]bool
	// lost: what is looked for cannot come from a lower layer.
	lost bool
}

// refusal is an error of what an image holds, not of how it came.
type refusal struct{ error }

// errTooLarge tells that files have more bytes than are left.
var errTooLarge = errors.New("too large")

func (s *search) done() bool {
	return s.lost || s.files == nil && s.found > 0 || s.files != nil && len(s.files) == 0
}

// layer reads the tar stream of one layer to its end. What it hides, it hides of the layers below.
func (s *search) layer(r io.Reader) error {
	hides := map[string]bool{}
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
			s.hide(hides, dir, "/")
		case strings.HasPrefix(base, whiteout):
			s.hide(hides, path.Join(dir, base[len(whiteout):]), "")
		case h.Typeflag == tar.TypeDir:
		default:
			s.hide(hides, name, "") // and what is below it, as a file is no directory
			if as, ok := s.wants(name, dir); ok {
				if taken[name] || s.files == nil && len(taken) > 0 {
					return refusal{fmt.Errorf("it holds more than one /%s: leave one", s.pattern(name))}
				}
				taken[name] = true
				if err := s.take(archive, h, as); err != nil {
					return err
				}
			}
		}
		if len(hides) > maxHidden {
			return refusal{errors.New("it removes too many files of /disk")}
		}
	}
	for name := range taken {
		delete(s.files, name)
		s.found++
	}
	s.apply(hides)
	return nil
}

// pattern is how the name was looked for.
func (s *search) pattern(name string) string {
	if s.files == nil {
		return diskDir + "/*"
	}
	return name
}

// wants tells whether a file is looked for, and its name for write.
func (s *search) wants(name, dir string) (string, bool) {
	if s.files == nil {
		return diskDir, dir == diskDir && !s.hidden[name]
	}
	as, ok := s.files[name]
	return as, ok
}

// take hands one file over.
func (s *search) take(r io.Reader, h *tar.Header, as string) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
	case tar.TypeLink, tar.TypeSymlink:
		return refusal{fmt.Errorf("its /%s is a link: put the file itself there", path.Clean("/" + h.Name)[1:])}
	default:
		return refusal{fmt.Errorf("its /%s is no regular file", path.Clean("/" + h.Name)[1:])}
	}
	// A sparse file has more bytes than its archive, so the archive's limit is not enough.
	if h.Size > s.left {
		return errTooLarge
	}
	s.left -= h.Size
	return s.write(as, r)
}

// hide notes that lower layers' name is gone, or with the suffix "/" only what is in it, if that matters here.
func (s *search) hide(hides map[string]bool, name, suffix string) {
	matters := name == "" || name == diskDir || path.Dir(name) == diskDir
	if s.files != nil {
		matters = false
		for wanted := range s.files {
			matters = matters || name == "" || wanted == name || strings.HasPrefix(wanted, name+"/")
		}
	}
	if matters {
		hides[name+suffix] = true
	}
}

// apply makes what a layer hid count for the layers below.
func (s *search) apply(hides map[string]bool) {
	if s.files == nil {
		s.lost = s.lost || s.found == 0 && (hides["/"] || hides[diskDir] || hides[diskDir+"/"])
		if s.hidden == nil {
			s.hidden = map[string]bool{}
		}
		maps.Copy(s.hidden, hides)
		return
	}
	for wanted := range s.files {
		s.lost = s.lost || hides[wanted] || hides["/"]
		for dir := path.Dir(wanted); dir != "."; dir = path.Dir(dir) {
			s.lost = s.lost || hides[dir] || hides[dir+"/"]
		}
	}
}
