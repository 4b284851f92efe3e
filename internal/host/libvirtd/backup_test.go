package libvirtd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// TestBackup copies a disk of a QEMU whose vCPUs are halted.
func TestBackup(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "backup", env.Idle)
	create(t, c, g)
	dir := filepath.Dir(g.Console)
	begin := func(file string) error {
		t.Helper()
		doc, err := domain.BackupXML(factsOf(t, c, g.UUID).Disks[0], file)
		if err != nil {
			t.Fatal(err)
		}
		return c.BeginBackup(t.Context(), g.UUID, doc)
	}
	if err := c.AbortBackup(t.Context(), g.UUID); err != nil {
		t.Errorf("without one: %v", err)
	}
	copied := filepath.Join(dir, "copy.part")
	env.EmptyDiskLike(t, copied, g.Disks[0].Path, l.UID, l.GID)
	if err := begin(copied); err != nil {
		t.Fatal(err)
	}
	env.Eventually(t, "the copy's end", func() bool {
		_, _, goesOn, err := c.BackupProgress(t.Context(), g.UUID)
		if err != nil {
			t.Fatal(err)
		}
		return !goesOn
	})
	if raw, err := os.ReadFile(copied); err != nil || !strings.HasPrefix(string(raw), "QFI\xfb") {
		t.Errorf("%d bytes: %v", len(raw), err)
	}
	refused := begin(filepath.Join(dir, "none.part"))
	t.Log(refused)
	if fault.ClassOf(refused) != fault.Transient || fault.ReasonOf(refused) != v1alpha1.ReasonLibvirtRefused {
		t.Errorf("into no file: %v", refused)
	}
	if err := c.AbortBackup(t.Context(), g.UUID); err != nil {
		t.Errorf("after one that was refused: %v", err)
	}
	if err := c.Destroy(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	if err := c.AbortBackup(t.Context(), g.UUID); err != nil {
		t.Errorf("without a domain: %v", err)
	}
}
