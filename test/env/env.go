// Package env gives tests the real parts that they ask for: an API server, a
// libvirtd. A part that is missing skips the test on a laptop and fails it where
// BERTH_TEST_REQUIRE is set, as `make test` does.
package env

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need returns the value of an environment variable that names a real part.
func Need(t testing.TB, variable, what string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		Missing(t, "needs "+variable+": "+what)
	}
	return value
}

// Missing ends a test for want of a part.
func Missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("BERTH_TEST_REQUIRE") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// KVM skips a test where QEMU does not run under KVM, even where parts are required: it is the machine's, and nobody
// can install it. Some machines have a /dev/kvm that opens and yet runs nothing.
func KVM(t testing.TB) {
	t.Helper()
	qemu := exec.CommandContext(t.Context(), "qemu-system-x86_64",
		"-accel", "kvm", "-cpu", "host", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio")
	qemu.Stdin = strings.NewReader("quit\n")
	if out, err := qemu.CombinedOutput(); err != nil {
		t.Skipf("this machine has no KVM to use: %v: %.500s", err, out)
	}
}

// Tmpfs makes a directory on a tmpfs, which is removed with the test.
func Tmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-") // POSIX shared memory: a tmpfs on every Linux
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
