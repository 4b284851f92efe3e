package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/hack/lab/loop"
)

func TestMountsOfADeviceAreReadFromMountinfo(t *testing.T) {
	const mounts = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" +
		"2 1 7:3 / /staged rw,relatime shared:1 - xfs /dev/loop3 rw\n" +
		"3 1 7:31 / /other rw - xfs /dev/loop31 rw\n" +
		"4 1 7:3 /sub /pod ro - xfs /dev/loop3 rw\n"
	if diff := cmp.Diff([]string{"/staged", "/pod"}, mountPoints(mounts, "7:3")); diff != "" {
		t.Error(diff)
	}
}

func TestWhoeverHasADeviceOpenUsesIt(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	device, err := loop.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	if found, err := users(device, "/staged"); len(found) > 0 || err != nil {
		t.Errorf("nobody uses it, and it is used: %v, %v", found, err)
	}
	other := exec.CommandContext(t.Context(), "sleep", "1000")
	other.ExtraFiles = []*os.File{device}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	found, err := users(device, "/staged")
	if err := other.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = other.Wait()
	if err != nil || len(found) != 1 || !strings.Contains(found[0], "(sleep) has "+device.Name()+" open") {
		t.Errorf("sleep uses it, and found is %v, %v", found, err)
	}
}
