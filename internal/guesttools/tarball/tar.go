package tarball

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/untar"
)

// call is one call of tar.
type call struct {
	options  string // letters
	dir      string
	paths    []string
	modes    fs.FileMode // bits that members get of their modes
	owners   bool        // members get their owners
	complain func(error)
}

// Run is tar with its arguments. It returns tar's exit code: 2 if anything went wrong, which stderr tells.
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) (code int) {
	c := call{dir: ".", modes: ^fs.FileMode(0), owners: os.Geteuid() == 0, complain: func(err error) {
		code = 2
		fmt.Fprintf(stderr, "tar: %v\n", err)
	}}
	switch err := c.parse(args); {
	case err != nil:
		c.complain(fmt.Errorf("%w; this is Berth's own small tar, as the guest has none", err))
	case strings.Contains(c.options, "c"):
		c.create(stdout)
	default:
		c.extract(stdin)
	}
	return code
}

func (c *call) parse(args []string) error {
	var archive string
	values := map[rune]*string{'f': &archive, 'C': &c.dir}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		letters, isOption := strings.CutPrefix(arg, "-")
		switch {
		case arg == "--no-same-permissions":
			c.modes = 0
		case arg == "--no-same-owner":
			c.owners = false
		case !isOption && c.options != "": // the first may lack its hyphen
			c.paths = append(c.paths, arg)
		default:
			c.options += letters
			for _, letter := range letters {
				if value := values[letter]; value != nil {
					*value = strings.Join(args[:min(1, len(args))], "")
					args = args[min(1, len(args)):]
				}
			}
		}
	}
	isCreate, isExtract := strings.Contains(c.options, "c"), strings.Contains(c.options, "x")
	switch {
	case strings.Trim(c.options, "cxfCmp") != "":
		return fmt.Errorf("one of the options -%s is unknown", c.options)
	case isCreate == isExtract || archive != "-" || c.dir == "" || isCreate == (len(c.paths) == 0):
		return errors.New("say -cf - and what to archive, or -xf -")
	}
	return nil
}

func (c *call) create(stdout io.Writer) {
	out := tar.NewWriter(stdout)
	err := os.Chdir(c.dir)
	for _, top := range c.paths {
		if err == nil {
			err = filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
				var header *tar.Header
				if err == nil {
					header, err = describe(path)
				}
				if err != nil { // of this one; the others go on
					c.complain(fmt.Errorf("skipped %q: %w", path, err))
					return nil
				}
				return add(out, header, path)
			})
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		c.complain(err)
	}
}

// describe makes the header of what is at a path. Its name is relative, as tar's are.
func describe(file string) (*tar.Header, error) {
	info, err := os.Lstat(file)
	if err != nil {
		return nil, err
	}
	if t := info.Mode().Type(); t != 0 && t != fs.ModeDir && t != fs.ModeSymlink {
		return nil, fmt.Errorf("it is no file, directory or link, but %v", info.Mode())
	}
	target, _ := os.Readlink(file) // of a link
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	header.ModTime = header.ModTime.Truncate(time.Second) // it would be rounded
	header.Name = cmp.Or(strings.TrimPrefix(path.Clean("/"+file), "/"), ".")
	if info.IsDir() {
		header.Name += "/"
	}
	return header, nil
}

// add writes one member. A file that became longer is cut; a shorter one ends the archive, which says so.
func add(out *tar.Writer, header *tar.Header, path string) error {
	if header.Typeflag != tar.TypeReg {
		return out.WriteHeader(header)
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.CopyN(out, file, header.Size)
	if err != nil {
		return fmt.Errorf("reading %q: %w", path, err)
	}
	return nil
}

func (c *call) extract(stdin io.Reader) {
	root, err := os.OpenRoot(c.dir)
	if err != nil {
		c.complain(err)
		return
	}
	defer root.Close()
	e := untar.Extraction{Root: root, Place: place, Modes: c.modes, Owners: c.owners, Times: !strings.Contains(c.options, "m"), Failed: func(member string, err error) error {
		c.complain(fmt.Errorf("skipped %q: %w", member, err))
		return nil
	}}
	if err := e.Run(stdin); err != nil {
		c.complain(err)
	}
	_, _ = io.Copy(io.Discard, stdin) // who writes is not to fail for what is behind the archive
}

// place makes names relative, as tar does.
func place(h *tar.Header) error {
	if slices.Contains(strings.Split(h.Name, "/"), "..") || h.Typeflag == tar.TypeLink && slices.Contains(strings.Split(h.Linkname, "/"), "..") {
		return errors.New("a name in it has a ..")
	}
	h.Name = path.Clean(strings.TrimLeft(h.Name, "/"))
	if h.Typeflag == tar.TypeLink {
		h.Linkname = path.Clean(strings.TrimLeft(h.Linkname, "/"))
	}
	return nil
}
