package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/host/store"
)

// TestTakesDirectIO: where it is said to, a file can be opened so, and not on tmpfs, which older kernels refuse.
func TestTakesDirectIO(t *testing.T) {
	s := store.New(t.TempDir(), t.TempDir(), store.Reserve{})
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if s.TakesDirectIO(path) {
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatalf("it does not: %v", err)
		}
		_ = f.Close()
	}
	if s.TakesDirectIO("/dev/shm/disk.img") || s.TakesDirectIO("/there/is/none") {
		t.Error("tmpfs, or what is not there, takes it")
	}
}
