package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// partPrefix begins the name of a directory with what a process that ended had of a disk, and partFile has that name while
	// the process lives.
	partPrefix = ".part-"
	partFile   = "part"
	// maxPartAge is how long it is kept.
	maxPartAge = 24 * time.Hour
)

const bootIDPath = "/proc/sys/kernel/random/boot_id"

// part names what is kept of a content from a source. What was written before the machine started may not be on its disk.
func part(c Content, source string) (string, error) {
	key, err := c.key()
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile(bootIDPath)
	sum := sha256.Sum256(fmt.Appendf(boot, "%s\x00%s", key, source))
	return partPrefix + hex.EncodeToString(sum[:]), err
}

// Resume has what is written kept if this process ends before the import does, and returns what the last one kept, from
// the file's beginning on. All of it is to be written again, which stores none of it anew.
func (f *sparseFile) Resume() (*io.SectionReader, error) {
	in, nothing := f.staging, io.NewSectionReader(f.file, 0, 0)
	if in.source == "" || in.content.Digest == "" {
		return nothing, nil
	}
	name, err := part(in.content, in.source)
	if err == nil {
		err = os.WriteFile(filepath.Join(in.dir, partFile), []byte(name), 0o600)
	}
	if err == nil {
		err = os.Rename(filepath.Join(in.store.images, name, bootFile(f.name)), f.file.Name())
		if errors.Is(err, fs.ErrNotExist) {
			return nothing, nil
		}
	}
	var had *os.File
	if err == nil {
		had, err = os.OpenFile(f.file.Name(), os.O_RDWR, 0)
	}
	if err != nil {
		in.err = err
		return nil, err
	}
	_ = f.file.Close()
	f.file = had
	info, err := had.Stat()
	if err == nil {
		f.had = info.Size()
		err = os.RemoveAll(filepath.Join(in.store.images, name))
	}
	in.err = err
	return io.NewSectionReader(had, 0, f.had), err
}

// keepPart keeps what an import left behind in dir, if that said so: of several of the same, the one found last.
func (s *Store) keepPart(dir string) (kept bool) {
	name, err := os.ReadFile(filepath.Join(dir, partFile))
	if err != nil || !strings.HasPrefix(string(name), partPrefix) {
		return false
	}
	path := filepath.Join(s.images, filepath.Base(string(name)))
	now := time.Now()
	return errors.Join(os.RemoveAll(path), os.Chtimes(dir, now, now), os.Rename(dir, path)) == nil
}

// dropParts removes what is older than maxPartAge, or all.
func (s *Store) dropParts(all bool, now time.Time) error {
	parts, err := filepath.Glob(filepath.Join(s.images, partPrefix+"*"))
	for _, p := range parts {
		info, e := os.Stat(p)
		if e == nil && (all || now.Sub(info.ModTime()) >= maxPartAge) {
			e = os.RemoveAll(p)
		}
		if !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
