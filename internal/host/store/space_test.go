package store

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

func TestUsage(t *testing.T) {
	s := open(t)
	size, percent, err := s.Usage()
	if err != nil || size < mib || percent < 0 || percent > 100 {
		t.Fatalf("%d bytes, %d %% used, %v", size, percent, err)
	}
	if percent < 99 && s.fullerThan(int(percent)+1) {
		t.Errorf("%d %% are used, and more than that", percent)
	}
	if _, _, err := New(filepath.Join(t.TempDir(), "absent"), t.TempDir(), Reserve{}).Usage(); err == nil {
		t.Error("a store that is not there has a size")
	}
}

func TestCollect(t *testing.T) {
	now := time.Now()
	const keep = time.Hour
	for name, c := range map[string]struct {
		limits Limits
		after  time.Duration
		used   bool
		medium bool
		goes   bool
	}{
		"an old one that nothing uses goes":      {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 100}, after: 2 * keep, goes: true},
		"a young one stays":                      {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 100}, after: keep / 2},
		"an old one in use stays":                {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 100}, after: 2 * keep, used: true},
		"an old one in a CD-ROM drive stays":     {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 0}, after: 2 * keep, medium: true},
		"one in use stays on a full disk":        {limits: Limits{MaxUsagePercent: 0}, after: 2 * keep, used: true},
		"a full disk makes a young one go":       {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 0}, after: keep / 2, goes: true},
		"one that was just brought stays":        {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 0}, after: time.Minute},
		"without limits an old one stays":        {limits: Limits{MaxUsagePercent: 100}, after: 1000 * keep},
		"an old one goes on a disk with no room": {limits: Limits{MaxUnusedAge: keep, MaxUsagePercent: 0}, after: 2 * keep, goes: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			with(t, s, disk(1), mib)
			if c.used {
				user := claim(t, s, web)
				if _, err := s.Overlay(web, Overlay{Name: "root", Base: disk(1), User: user}); err != nil {
					t.Fatal(err)
				}
			}
			if c.medium {
				claim(t, s, web)
				if err := s.SetMedium(web, "install", "a", disk(1)); err != nil {
					t.Fatal(err)
				}
			}
			removed, err := s.Collect(c.limits, now.Add(c.after))
			if err != nil {
				t.Fatal(err)
			}
			left, err := s.Images()
			if err != nil {
				t.Fatal(err)
			}
			if (len(removed) == 1) != c.goes || (len(left) == 0) != c.goes {
				t.Errorf("removed %v, left %v", removed, left)
			}
		})
	}
}

// TestCollectMakesRoom on a file system that is too full, until it is no fuller than is wanted.
func TestCollectMakesRoom(t *testing.T) {
	for name, c := range map[string]struct {
		full, low int
		left      int // of four that take a sixth of it each
	}{
		"not too full":          {70, 10, 4},
		"until it is low":       {60, 40, 2},
		"until it is no fuller": {60, 60, 3},
		"low is never more":     {60, 90, 3},
		"none is kept":          {60, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
				env.Missing(t, "needs to mount: "+err.Error())
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			s, now := openAt(t, dir), time.Now()
			for n := range byte(4) {
				with(t, s, disk(n), 4*mib)
			}
			if _, err := s.Collect(Limits{MaxUsagePercent: c.full, LowUsagePercent: c.low}, now.Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if left, err := s.Images(); err != nil || len(left) != c.left {
				t.Errorf("left %v, %v; want %d", left, err, c.left)
			}
		})
	}
}

func TestCollectCountsFromTheLastUse(t *testing.T) {
	s, now := open(t), time.Now()
	limits := Limits{MaxUnusedAge: time.Hour, MaxUsagePercent: 100}
	with(t, s, disk(1), mib)
	with(t, s, disk(2), mib)
	user := claim(t, s, web)
	if _, err := s.Overlay(web, Overlay{Name: "root", Base: disk(1), User: user}); err != nil {
		t.Fatal(err)
	}
	collect := func(after time.Duration) []string {
		t.Helper()
		removed, err := s.Collect(limits, now.Add(after))
		if err != nil {
			t.Fatal(err)
		}
		var digests []string
		for _, i := range removed {
			digests = append(digests, i.Digest)
		}
		return digests
	}
	if got := collect(2 * time.Hour); !slices.Equal(got, []string{disk(2).Digest}) {
		t.Errorf("removed %v", got)
	}
	if err := s.Remove(web); err != nil {
		t.Fatal(err)
	}
	if got := collect(2*time.Hour + time.Minute); got != nil {
		t.Errorf("removed %v a minute after its last use", got)
	}
	if got := collect(3*time.Hour + time.Minute); !slices.Equal(got, []string{disk(1).Digest}) {
		t.Errorf("removed %v an hour after its last use", got)
	}
}
