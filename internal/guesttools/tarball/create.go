package tarball

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// inode tells files with several links.
type inode struct{ dev, ino uint64 }

func create(o options, stdout io.Writer, complain func(error)) {
	out := tar.NewWriter(stdout)
	if err := os.Chdir(o.dir); err != nil {
		complain(err)
		return
	}
	seen := map[inode]string{}
	for _, path := range o.paths {
		err := filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				complain(err)
				return nil
			}
			header, err := describe(path, entry, seen)
			if err != nil || header == nil {
				complain(fmt.Errorf("skipped %q: %w", path, err))
				return nil
			}
			return add(out, header, path, complain)
		})
		if err != nil { // stdout's
			complain(err)
			return
		}
	}
	if err := out.Close(); err != nil {
		complain(err)
	}
}

// describe makes the header of what is at a path. Names are relative, as tar's are.
func describe(path string, entry fs.DirEntry, seen map[inode]string) (*tar.Header, error) {
	info, err := entry.Info()
	if err != nil {
		return nil, err
	}
	var target string
	switch info.Mode().Type() {
	case 0, fs.ModeDir:
	case fs.ModeSymlink:
		if target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("it is neither a file nor a directory nor a link, but %v", info.Mode())
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	header.Name = strings.TrimLeft(filepath.ToSlash(path), "/")
	for strings.HasPrefix(header.Name, "../") {
		header.Name = header.Name[len("../"):]
	}
	if header.Name == "" || header.Name == ".." {
		header.Name = "."
	}
	if info.IsDir() {
		header.Name += "/"
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && stat.Nlink > 1 {
		id := inode{stat.Dev, stat.Ino}
		if first, ok := seen[id]; ok {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
		} else {
			seen[id] = header.Name
		}
	}
	return header, nil
}

// add writes one member. An error is stdout's.
func add(out *tar.Writer, header *tar.Header, path string, complain func(error)) error {
	if header.Typeflag != tar.TypeReg {
		return out.WriteHeader(header)
	}
	file, err := os.Open(path)
	if err != nil {
		complain(err)
		return nil
	}
	defer file.Close()
	if err := out.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(file, header.Size))
	if n == header.Size {
		return err
	}
	complain(fmt.Errorf("%q became shorter while it was read, or cannot be read: the rest is zeros: %v", path, err))
	_, err = io.CopyN(out, zeros{}, header.Size-n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
