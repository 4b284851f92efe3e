package libvirtd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestRemoveLogs: of all that is beside them only a domain's own logs go, and nothing that a link points to.
func TestRemoveLogs(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, logDir)
	if err := removeLogs(root, "shop_web"); err != nil {
		t.Errorf("without a directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "shop_web.log.7"), 0o755); err != nil {
		t.Fatal(err)
	}
	goes := []string{"shop_web.log", "shop_web.log.0", "shop_web.log.2.gz", "shop_web.log-20260131.xz"}
	stays := []string{
		"shop_web.log.log", "shop_web.log.1.log", "shop_web2.log", "shop_web.log.old", "shop_web-2.log", "shop_web.1.log",
		"shop_we.log", "shop_web", "other_shop_web.log",
	}
	for _, name := range slices.Concat(goes, stays) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, nil, 0o600), os.Symlink(victim, filepath.Join(dir, "shop_web.log.3"))); err != nil {
		t.Fatal(err)
	}
	if err := removeLogs(root, "shop_web"); err != nil {
		t.Fatal(err)
	}
	for _, name := range goes {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	for _, path := range append([]string{victim, filepath.Join(dir, "shop_web.log.3"), filepath.Join(dir, "shop_web.log.7")}, under(dir, stays)...) {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is gone: %v", path, err)
		}
	}
}

// TestRemoveLogsStaysBelowRoot: a link in the daemon's tree does not lead out of it.
func TestRemoveLogsStaysBelowRoot(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	log := filepath.Join(outside, "shop_web.log")
	if err := errors.Join(
		os.WriteFile(log, nil, 0o600), os.MkdirAll(filepath.Dir(filepath.Join(root, logDir)), 0o755), os.Symlink(outside, filepath.Join(root, logDir)),
	); err != nil {
		t.Fatal(err)
	}
	if err := removeLogs(root, "shop_web"); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(log); err != nil {
		t.Errorf("a log outside of libvirtd's root is gone: %v", err)
	}
}

func under(dir string, names []string) (paths []string) {
	for _, name := range names {
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths
}
