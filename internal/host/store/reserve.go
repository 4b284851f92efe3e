package store

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Reserve is what imports leave free of the store's file system, the larger of both: guests that write to their disks
// come first. Unlike an import, a guest cannot wait for room. The zero value is none.
type Reserve struct {
	// Percent is a share of the file system, as df(1) counts: 0 to 100.
	Percent int
	// Bytes is a size.
	Bytes int64
}

// checkRoom tells, as StoreFull, that an import of so many more bytes would take what is reserved.
func (s *Store) checkRoom(needs int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return fmt.Errorf("looking at the free space of %s: %w", s.root, err)
	}
	free := int64(st.Bavail) * st.Bsize                                                     //nolint:gosec // of a file system that exists
	size := int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize / 100 * int64(s.reserve.Percent) //nolint:gosec // as above
	reserved := max(size, s.reserve.Bytes)
	if free-reserved > needs || needs == 0 && reserved == 0 {
		return nil
	}
	return fault.NewTransient(v1alpha1.ReasonStoreFull, fmt.Errorf(
		"the node's disk has %d MiB free, of which %d MiB are kept for guests; the image needs %s: free some space on the node",
		free>>20, reserved>>20, atLeast(needs)))
}

func atLeast(needs int64) string {
	if needs == 0 {
		return "more"
	}
	return fmt.Sprintf("at least %d MiB", needs>>20)
}
