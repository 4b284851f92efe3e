package store

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/test/env"
)

// TestSeedsAreOnNoDisk: a seed may hold secrets, which would stay on a disk long after it was removed.
func TestSeedsAreOnNoDisk(t *testing.T) {
	disk := t.TempDir()
	if inMemory(disk) == nil {
		t.Skipf("%s is on a tmpfs itself", disk)
	}
	for run, refused := range map[string]bool{filepath.Join(disk, "run"): true, env.Tmpfs(t): false} {
		s := New(t.TempDir(), run, Reserve{})
		err := s.Check()
		if (fault.ReasonOf(err) == v1alpha1.ReasonStoreFailed && strings.Contains(err.Error(), "mount a tmpfs")) != refused {
			t.Errorf("Check() with seeds in %s: %v", run, err)
		}
		if _, err := s.CreateSeed(web, mib, 0); (fault.ReasonOf(err) == v1alpha1.ReasonStoreFailed) != refused || !refused && err != nil {
			t.Errorf("CreateSeed() in %s: %v", run, err)
		}
	}
}
