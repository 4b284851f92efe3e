package loop

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// file of 1 MiB, on a machine whose loop devices can be had.
func file(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func size(t *testing.T, device *os.File) int {
	t.Helper()
	n, err := unix.IoctlGetInt(int(device.Fd()), unix.BLKGETSIZE64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAFileHasOneDeviceAsLongAsSomebodyUsesIt(t *testing.T) {
	path := file(t)
	one, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if one.Name() != two.Name() {
		t.Errorf("a file has both %s and %s", one.Name(), two.Name())
	}
	if err := os.Truncate(path, 2<<20); err != nil {
		t.Fatal(err)
	}
	if err := Grow(two); err != nil || size(t, one) != 2<<20 {
		t.Errorf("grown to %d bytes, want %d: %v", size(t, one), 2<<20, err)
	}
	one.Close()
	if found, err := Find(path); found == nil || err != nil {
		t.Errorf("the device went while it was open: %v", err)
	} else {
		found.Close()
	}
	two.Close()
	if found, err := Find(path); found != nil || err != nil {
		t.Errorf("nobody uses the device, and it is there: %v", err)
	}
}

func TestFreeTakesDevicesOfDevices(t *testing.T) {
	path := file(t)
	device, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	// As kubelet does with block volumes: it keeps the device, and is not asked before the power fails.
	var s unix.Stat_t
	if err := unix.Stat(device.Name(), &s); err != nil {
		t.Fatal(err)
	}
	node := filepath.Join(t.TempDir(), "node")
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(s.Rdev)); err != nil {
		t.Fatal(err)
	}
	above, err := Open(node)
	if err != nil {
		t.Fatal(err)
	}
	of, err := unix.IoctlLoopGetStatus64(int(above.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	of.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(above.Fd()), of); err != nil {
		t.Fatal(err)
	}
	device.Close()
	above.Close()
	if found, err := Find(path); found == nil || err != nil {
		t.Fatalf("the device above does not keep the one below: %v", err)
	} else {
		found.Close()
	}
	if err := Free(filepath.Dir(node)); err != nil {
		t.Fatal(err)
	}
	if err := Free(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(path); found != nil || err != nil {
		t.Errorf("the device is still there: %v", err)
	}
}
