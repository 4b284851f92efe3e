package main

import (
	"path/filepath"
	"testing"
)

func TestNoVNCIsAsPublished(t *testing.T) {
	sum, err := sumOf(filepath.Join("..", "..", novncDir))
	if err != nil || sum != novncSum {
		t.Errorf("%s has the sum %s (%v), not %s: run make generate, and change nothing in it by hand", novncDir, sum, err, novncSum)
	}
}
