package kube

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestDropProgram(t *testing.T) {
	before := fileMemory(t)
	if err := dropProgram(); err != nil {
		t.Fatal(err)
	}
	if after := fileMemory(t); after >= before {
		t.Errorf("%d KiB of files before, %d after", before, after)
	}
}

// fileMemory is how much of the files that the process has mapped is in its memory, in KiB.
func fileMemory(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssFile:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
