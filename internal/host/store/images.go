package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// Content is what is kept of an image: its disk, or the kernel at a path in it. Equal contents are the same files.
type Content struct {
	// Digest is the image manifest's, as sha256:…, or that of a web server's file, as sha256:… or sha512:….
	Digest string `json:"digest"`
	// Kernel and Initrd are paths in the image; both "" if the disk is meant.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
}

// The names that a Fetch gives its files.
const (
	Disk   = "disk"
	Kernel = "kernel"
	Initrd = "initrd"
)

var (
	validDigest = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
	validUID    = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	validName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// key names the content's directory.
func (c Content) key() (string, error) {
	if !validDigest.MatchString(c.Digest) {
		return "", fmt.Errorf("%q is not a sha256 or sha512 digest", c.Digest)
	}
	_, key, _ := strings.Cut(c.Digest, ":")
	if c.Kernel != "" || c.Initrd != "" {
		paths := sha256.Sum256([]byte(c.Kernel + "\x00" + c.Initrd))
		key += "-" + hex.EncodeToString(paths[:8])
	}
	return key, nil
}

// digestOf is that of the content with a key. The two algorithms' have other lengths.
func digestOf(key string) string {
	sum, _, _ := strings.Cut(key, "-")
	if len(sum) == 128 {
		return "sha512:" + sum
	}
	return "sha256:" + sum
}

// fileNames are those of the files that make the content whole.
func (c Content) fileNames() []string {
	switch {
	case c.Kernel == "" && c.Initrd == "":
		return []string{Disk}
	case c.Initrd == "":
		return []string{Kernel}
	default:
		return []string{Kernel, Initrd}
	}
}

func (s *Store) imageDir(c Content) (string, error) {
	key, err := c.key()
	return filepath.Join(s.images, key), err
}

const metaFile = "meta.json"

// ErrInUse: the image is below a guest's disk, or is its kernel.
var ErrInUse = errors.New("the image is in use")

// Image is a content in the store. Its files never change. meta.json holds what has a name in JSON.
type Image struct {
	Content
	// Format and VirtualSize, in bytes, are the disk's.
	Format      diskformat.Format `json:"format,omitempty"`
	VirtualSize int64             `json:"virtualSize,omitempty"`
	// BootSize is that of kernel and initrd together, in bytes: what QEMU reads of them.
	BootSize int64 `json:"-"`
	// Allocated is the space that it takes, in bytes.
	Allocated int64 `json:"-"`
	// LastUse is when a guest was last seen to need it, zero while one does; Images alone tells it.
	LastUse time.Time `json:"-"`
	// Dir is where its files are.
	Dir string `json:"-"`
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
	i := Image{Dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Image{}, err
	}
	if err := readJSON(filepath.Join(dir, metaFile), &i); err != nil {
		return Image{}, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) { // access.json is replaced at any time
			continue
		}
		info, err := e.Info()
		if err != nil {
			return Image{}, err
		}
		i.Allocated += allocated(info)
		if e.Name() == bootFile(Kernel) || e.Name() == bootFile(Initrd) {
			i.BootSize += info.Size()
		}
	}
	return i, nil
}

// Images returns all that is in the store.
func (s *Store) Images() (images []Image, err error) {
	keys, err := directories(s.images)
	if err != nil {
		return nil, classify("listing the images", err)
	}
	used, err := s.usedImages()
	for _, key := range keys {
		i, err := readImage(filepath.Join(s.images, key))
		if err == nil && !used[key] {
			var info fs.FileInfo // of when Collect last saw it used, or of its import
			if info, err = os.Stat(filepath.Join(i.Dir, metaFile)); err == nil {
				i.LastUse = info.ModTime()
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, classify("listing the images", err)
		}
		images = append(images, i)
	}
	return images, classify("listing the images", err)
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
	links, err := filepath.Glob(filepath.Join(s.vms, "*", "[^.]*"+baseSuffix))
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
	return replace(link, func(temporary string) error { return os.Symlink(filepath.Join("..", "..", "images", key), temporary) })
}

func readBase(link string) (key string, err error) {
	target, err := os.Readlink(link)
	return filepath.Base(target), err
}
