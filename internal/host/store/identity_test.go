package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/test/env"
)

// TestIdentify: a store is known by its ID, wherever it is mounted, and another directory is none.
func TestIdentify(t *testing.T) {
	const uid = "8f9c1d2e-0000-4000-8000-000000000001"
	run := env.Tmpfs(t)
	mounted, bare := t.TempDir(), t.TempDir()
	open := func(root string) *Store {
		s := New(root, run, Reserve{})
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(mounted)
	id, err := s.Identify("")
	if err != nil || len(id) < 26 {
		t.Fatalf("a new store has the ID %q, %v", id, err)
	}
	for range 2 {
		if again, err := open(mounted).Identify(""); err != nil || again != id {
			t.Errorf("later it has the ID %q, %v", again, err)
		}
	}
	if again, err := s.Identify(id); err != nil || again != id {
		t.Errorf("it is not the one that it is: %q, %v", again, err)
	}

	s = open(bare)
	if found, err := s.Identify(id); fault.ReasonOf(err) != v1alpha1.ReasonStoreFailed || found != "" {
		t.Errorf("a bare directory: %q, %v", found, err)
	}
	if _, err := os.Stat(filepath.Join(bare, idFile)); !os.IsNotExist(err) {
		t.Errorf("it is given an ID: %v", err)
	}
	if _, err := s.Has(uid); fault.ReasonOf(err) != v1alpha1.ReasonStoreFailed {
		t.Errorf("it says that it has no disks of a guest: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bare, idFile), []byte(id+"\n"), 0o600); err != nil { // its store is mounted
		t.Fatal(err)
	}
	if _, err := s.Identify(id); err != nil {
		t.Errorf("with its ID: %v", err)
	}
	if has, err := s.Has(uid); has || err != nil {
		t.Errorf("it has disks: %t, %v", has, err)
	}
	if _, err := s.Identify("another"); fault.ReasonOf(err) != v1alpha1.ReasonStoreFailed {
		t.Errorf("another store: %v", err)
	}
}
