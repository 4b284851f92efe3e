package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// freshFor is how long an image is kept that nothing uses yet: the guest that it was pulled for is about to.
const freshFor = 10 * time.Minute

// Limits say which unused images go.
type Limits struct {
	// MaxUnusedAge is how long an image stays after its last use; 0 is for ever.
	MaxUnusedAge time.Duration
	// MaxUsagePercent is how full the file system may be, in percent, before unused images go early; 100 is never.
	MaxUsagePercent int
}

// Collect removes images that no guest uses: those whose last use is longer ago than the limit, and, while the file
// system is too full, those unused for longest. It returns what it removed. A use is seen only while Collect looks, so
// it is to be called more often than MaxUnusedAge; when that was stands in the times of meta.json.
func (s *Store) Collect(limits Limits, now time.Time) (removed []Image, err error) {
	images, err := s.Images()
	if err != nil {
		return nil, err
	}
	used, err := s.usedImages()
	if err != nil {
		return nil, classify("looking for unused images", err)
	}
	type candidate struct {
		image Image
		last  time.Time
	}
	var unused []candidate
	for _, i := range images {
		path := filepath.Join(i.Dir, metaFile)
		if used[filepath.Base(i.Dir)] {
			if err := os.Chtimes(path, now, now); err != nil {
				return nil, classify("noting the use of image "+i.Digest, err)
			}
			continue
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, classify("looking for unused images", err)
		}
		unused = append(unused, candidate{i, info.ModTime()})
	}
	slices.SortFunc(unused, func(a, b candidate) int { return a.last.Compare(b.last) })
	for _, c := range unused {
		age := now.Sub(c.last)
		old := limits.MaxUnusedAge > 0 && age >= limits.MaxUnusedAge
		if !old && (age < freshFor || !s.fullerThan(limits.MaxUsagePercent)) {
			continue
		}
		switch err := s.RemoveImage(c.image.Content); {
		case errors.Is(err, ErrInUse): // since a moment ago
		case err != nil:
			return removed, err
		default:
			removed = append(removed, c.image)
		}
	}
	return removed, nil
}

// fullerThan tells whether more than that many percent of the file system are taken, as df(1) counts.
func (s *Store) fullerThan(percent int) bool {
	var st unix.Statfs_t
	if percent >= 100 || unix.Statfs(s.root, &st) != nil {
		return false
	}
	taken := st.Blocks - st.Bfree
	return taken*100 > (taken+st.Bavail)*uint64(percent) //nolint:gosec // 0 to 100
}
