package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

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
	free, size, err := s.space()
	if err != nil {
		return fmt.Errorf("looking at the free space of %s: %w", s.root, err)
	}
	reserved := max(size/100*int64(s.reserve.Percent), s.reserve.Bytes)
	if free-reserved > needs || needs == 0 && reserved == 0 {
		return nil
	}
	least := "more"
	if needs > 0 {
		least = fmt.Sprintf("at least %d MiB", needs>>20)
	}
	return fault.NewTransient(v1alpha1.ReasonStoreFull, fmt.Errorf(
		"the node's disk has %d MiB free, of which %d MiB are kept for guests; the image needs %s: free some space on the node",
		free>>20, reserved>>20, least))
}

// space is what is free of the store's file system, and what it has, as df(1) counts; in bytes.
func (s *Store) space() (free, size int64, err error) {
	var st unix.Statfs_t
	err = unix.Statfs(s.root, &st)
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks-st.Bfree+st.Bavail) * st.Bsize, err //nolint:gosec // of a file system that exists
}

// Usage is the size of the store's file system, in bytes, and how much of it is taken, in percent.
func (s *Store) Usage() (size int64, percent int32, err error) {
	free, size, err := s.space()
	if err != nil || size == 0 {
		return 0, 0, classify("looking at the free space of the store", err)
	}
	return size, int32((size - free) * 100 / size), nil //nolint:gosec // at most 100
}

// freshFor is how long an image is kept that nothing uses yet: the guest that it was pulled for is about to.
const freshFor = 10 * time.Minute

// Limits say which unused images go.
type Limits struct {
	// MaxUnusedAge is how long an image stays after its last use; 0 is for ever.
	MaxUnusedAge time.Duration
	// MaxUsagePercent is how full the file system may be, in percent, before unused images go early, until it is no fuller
	// than LowUsagePercent; 100 is never.
	MaxUsagePercent, LowUsagePercent int
	// Keep are the digests of images that count as used.
	Keep map[string]bool
}

// Collect removes what is left of imports for more than a day, and images that no guest uses: those whose last use is longer
// ago than the limit, and, if the file system is too full, those unused for longest, until it is no longer. It returns what
// it removed. A use is seen only while Collect looks, so it is to be called more often than MaxUnusedAge; when that was
// stands in the times of meta.json.
func (s *Store) Collect(limits Limits, now time.Time) (removed []Image, err error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	crowded := s.fullerThan(limits.MaxUsagePercent)
	if err := s.dropParts(crowded, now); err != nil {
		return nil, classify("removing what is left of imports", err)
	}
	slices.SortFunc(images, func(a, b Image) int { return a.LastUse.Compare(b.LastUse) })
	for _, i := range images {
		if i.LastUse.IsZero() || limits.Keep[i.Digest] {
			if err := os.Chtimes(filepath.Join(i.Dir, metaFile), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return removed, classify("noting the use of image "+i.Digest, err)
			}
			continue
		}
		age := now.Sub(i.LastUse)
		old := limits.MaxUnusedAge > 0 && age >= limits.MaxUnusedAge
		if !old && (age < freshFor || !crowded || !s.fullerThan(min(limits.LowUsagePercent, limits.MaxUsagePercent))) {
			continue
		}
		switch err := s.RemoveImage(i.Content); {
		case errors.Is(err, ErrInUse): // since a moment ago
		case err != nil:
			return removed, err
		default:
			removed = append(removed, i)
		}
	}
	return removed, nil
}

// fullerThan tells whether more than that many percent of the file system are taken.
func (s *Store) fullerThan(percent int) bool {
	free, size, err := s.space()
	return err == nil && percent < 100 && (size-free)*100 > size*int64(percent)
}
