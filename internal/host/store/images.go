package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest/diskformat"
)

const metaFile = "meta.json"

// ErrInUse: the image is below a guest's disk, or is its kernel.
var ErrInUse = errors.New("the image is in use")

// meta is what meta.json holds.
type meta struct {
	Content
	Format      diskformat.Format `json:"format,omitempty"`
	VirtualSize int64             `json:"virtualSize,omitempty"`
}

// Image is a content in the store. Its files never change.
type Image struct {
	Content
	// Format and VirtualSize, in bytes, are the disk's.
	Format      diskformat.Format
	VirtualSize int64
	// BootSize is that of kernel and initrd together, in bytes: what QEMU reads of them.
	BootSize int64
	// Allocated is the space that it takes, in bytes.
	Allocated int64
	// Dir is where its files are.
	Dir string
}

// DiskPath is the disk's path.
func (i Image) DiskPath() string { return filepath.Join(i.Dir, diskFile(i.Format)) }

// KernelPath is the kernel's path.
func (i Image) KernelPath() string { return filepath.Join(i.Dir, bootFile(Kernel)) }

// InitrdPath is the initial RAM disk's path, "" if the content has none.
func (i Image) InitrdPath() string {
	if i.Initrd == "" {
		return ""
	}
	return filepath.Join(i.Dir, bootFile(Initrd))
}

func bootFile(name string) string { return name + ".img" }

// Image returns a content that is in the store, fs.ErrNotExist if it is not.
func (s *Store) Image(c Content) (Image, error) {
	dir, err := s.imageDir(c)
	if err != nil {
		return Image{}, err
	}
	i, err := readImage(dir)
	return i, classify("reading image "+c.Digest, err)
}

func readImage(dir string) (Image, error) {
	if _, err := os.Stat(dir); err != nil {
		return Image{}, err
	}
	var m meta
	if err := readJSON(filepath.Join(dir, metaFile), &m); err != nil {
		return Image{}, err
	}
	i := Image{Content: m.Content, Format: m.Format, VirtualSize: m.VirtualSize, Dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Image{}, err
	}
	for _, e := range entries {
		n, err := allocated(filepath.Join(dir, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // access.json is replaced at any time
			return Image{}, err
		}
		i.Allocated += n
		if e.Name() == bootFile(Kernel) || e.Name() == bootFile(Initrd) {
			info, err := e.Info()
			if err != nil {
				return Image{}, err
			}
			i.BootSize += info.Size()
		}
	}
	return i, nil
}

// allocated is the space that a file takes, in bytes.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

// Images returns all that is in the store.
func (s *Store) Images() ([]Image, error) {
	entries, err := os.ReadDir(s.images)
	if err != nil {
		return nil, classify("listing the images", err)
	}
	var images []Image
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		i, err := readImage(filepath.Join(s.images, e.Name()))
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed meanwhile
		case err != nil:
			return nil, classify("listing the images", err)
		default:
			images = append(images, i)
		}
	}
	return images, nil
}

// RemoveImage removes a content, ErrInUse if a guest needs it. One that is absent is no error.
func (s *Store) RemoveImage(c Content) error {
	dir, err := s.imageDir(c)
	if err != nil {
		return err
	}
	return classify("removing image "+c.Digest, s.remove(dir, func() error {
		used, err := s.usedImages()
		if err == nil && used[filepath.Base(dir)] {
			err = ErrInUse
		}
		return err
	}))
}

// usedImages are the keys of the images that guests' links name. The disks' own headers name them too, but guests write those.
func (s *Store) usedImages() (map[string]bool, error) {
	links, err := filepath.Glob(filepath.Join(s.vms, "*", "*"+baseSuffix))
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, l := range links {
		key, err := readBase(l)
		if errors.Is(err, fs.ErrNotExist) { // the guest was removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		used[key] = true
	}
	return used, nil
}

const baseSuffix = ".base"

// linkBase records that an image is needed.
func linkBase(dir, name, key string) error {
	link := filepath.Join(dir, name+baseSuffix)
	if have, err := readBase(link); err == nil && have == key {
		return nil
	}
	temporary := filepath.Join(dir, newPrefix+name)
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Join("..", "..", "images", key), temporary); err != nil {
		return err
	}
	return os.Rename(temporary, link)
}

func readBase(link string) (key string, err error) {
	target, err := os.Readlink(link)
	return filepath.Base(target), err
}
