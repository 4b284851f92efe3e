package store

import (
	"errors"
	"os"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestACommitIsEnded(t *testing.T) {
	s := open(t)
	user, err := s.EnsureGuest(Identity{Namespace: "shop", Name: "web", UID: web})
	if err != nil {
		t.Fatal(err)
	}
	calls, busy := 0, errors.New("QEMU has it")
	free := func() error { calls++; return busy }
	if err := s.EndCommit(web, free); err != nil || calls > 0 {
		t.Errorf("without one: %v, %d calls", err, calls)
	}
	path, err := s.CreateCommit(web, 64*mib, 1, user)
	if err != nil {
		t.Fatal(err)
	}
	if disks, err := s.Disks(web); err != nil || len(disks) > 0 {
		t.Errorf("it is a disk: %v, %v", disks, err)
	}
	if err := s.EndCommit(web, free); !errors.Is(err, busy) || calls != 1 {
		t.Errorf("while it is used: %v, %d calls", err, calls)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > 0 {
		t.Errorf("its space is not free: %v, %v", st, err)
	}
	busy = nil
	if err := s.EndCommit(web, free); err != nil || calls != 2 {
		t.Errorf("unused: %v, %d calls", err, calls)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("it is left: %v", err)
	}
	if _, err := s.CreateCommit(web, 64*mib, 1<<60, user); fault.ReasonOf(err) != v1alpha1.ReasonStoreFull {
		t.Errorf("one that is too large: %v", err)
	}
}
