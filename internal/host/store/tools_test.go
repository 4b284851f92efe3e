package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// version is one of the guest program's disk.
func version(image string) Tools {
	return Tools{Digest: fmt.Sprintf("%x", sha256.Sum256([]byte(image))), Image: func() ([]byte, error) { return []byte(image), nil }}
}

func TestTools(t *testing.T) {
	s := open(t)
	const other = "8f9c1d2e-0000-4000-8000-000000000002"
	claim(t, s, web)
	claim(t, s, other)
	link := func(uid, image string) (path string, inode uint64) {
		t.Helper()
		path, err := s.LinkTools(uid, version(image))
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode != unix.S_IFREG|0o444 || st.Uid != 0 || read(t, path) != image {
			t.Fatalf("it is %+v, %v", st, err)
		}
		return path, st.Ino
	}
	files := func() []string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(s.tools, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	first, version1 := link(web, "version 1")
	if again, inode := link(web, "version 1"); again != first || inode != version1 {
		t.Errorf("made again it is %s, another file: %t", again, inode != version1)
	}
	if path, inode := link(other, "version 1"); path == first || inode != version1 {
		t.Errorf("the guests do not share one file: %s and %s", first, path)
	}
	running, err := os.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if path, inode := link(web, "version 2"); path != first || inode == version1 {
		t.Errorf("the next version is %s, the file before: %t", path, inode == version1)
	}
	if left := files(); len(left) != 1 || read(t, left[0]) != "version 2" {
		t.Errorf("the store has %v", left)
	}
	theirs := filepath.Join(s.vms, other, toolsFile)
	if read(t, theirs) != "version 1" {
		t.Error("another guest's was changed while it runs")
	}
	if err := s.Remove(other); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(running.Fd()), &st); err != nil || st.Nlink != 0 {
		t.Errorf("the version that no guest has any more has %d names, %v", st.Nlink, err)
	}
	if disks, err := s.Disks(web); err != nil || len(disks) != 0 {
		t.Errorf("it counts as a disk: %v, %v", disks, err)
	}
	if _, err := s.LinkTools(uuid.NewString(), version("version 2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("for no guest: %v", err)
	}
	if _, err := s.LinkTools("../images", version("version 2")); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("for what is no UID: %v", err)
	}
}

// TestToolsThatAreNotThose: the program was replaced on the node since the agent began.
func TestToolsThatAreNotThose(t *testing.T) {
	s := open(t)
	claim(t, s, web)
	for name, image := range map[string]func() ([]byte, error){
		"other bytes": func() ([]byte, error) { return []byte("another"), nil },
		"none":        func() ([]byte, error) { return nil, fs.ErrNotExist },
	} {
		if path, err := s.LinkTools(web, Tools{Digest: version("version 1").Digest, Image: image}); err == nil {
			t.Errorf("%s were taken as %s", name, path)
		}
		if left, err := filepath.Glob(filepath.Join(s.tools, "*")); err != nil || len(left) != 0 {
			t.Errorf("%s left %v, %v", name, left, err)
		}
	}
}

// TestToolsAfterACrash: what a crash left half done is done again.
func TestToolsAfterACrash(t *testing.T) {
	s := open(t)
	claim(t, s, web)
	if _, err := s.LinkTools(web, version("version 1")); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(s.vms, web, newPrefix+toolsFile)
	if err := os.Link(filepath.Join(s.vms, web, toolsFile), old); err != nil {
		t.Fatal(err)
	}
	path, err := s.LinkTools(web, version("version 2"))
	if err != nil || read(t, path) != "version 2" {
		t.Errorf("it is %s, %v", path, err)
	}
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was left is there: %v", err)
	}
}
