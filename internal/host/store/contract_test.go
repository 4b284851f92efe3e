package store_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/test/env"
)

// TestContract tests what holds of the in-memory store as well.
func TestContract(t *testing.T) {
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: a store gives files to the users of guests")
	}
	hosttest.TestStore(t, func(t *testing.T) hosttest.StoreSetup {
		dir := t.TempDir()
		s := store.New(filepath.Join(dir, "lib"), env.Tmpfs(t), store.Reserve{})
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		return hosttest.StoreSetup{
			Guests: s, Disks: s, LiveDisks: s, Images: s, Seeds: s, FirstStarts: s, Commits: s,
			AddImage: func(t *testing.T, c store.Content, size int64) {
				t.Helper()
				names := []string{store.Disk}
				if c.Kernel != "" {
					names = []string{store.Kernel}
				}
				if c.Initrd != "" {
					names = append(names, store.Initrd)
				}
				fetch := func(_ context.Context, create store.Create) error {
					for _, name := range names {
						w, err := create(name, size)
						if err != nil {
							return err
						}
						if _, err := io.WriteString(w, strings.Repeat("d", int(size))); err != nil {
							return err
						}
					}
					return nil
				}
				if err := s.Import(t.Context(), store.Import{Content: c, Fetch: fetch, Progress: &store.Progress{}}); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}
