package volume

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

// jail starts a process whose root is a directory of the test.
func jail(t *testing.T) (pid int, root string) {
	t.Helper()
	if os.Getuid() != 0 {
		env.Missing(t, "needs root")
	}
	root = t.TempDir()
	cat, err := exec.LookPath("busybox")
	if err != nil {
		env.Missing(t, "needs busybox")
	}
	binary, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "busybox"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/busybox", "cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		env.Missing(t, "needs a static busybox: "+err.Error())
	}
	t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	return cmd.Process.Pid, root
}

func TestReadFile(t *testing.T) {
	pid, root := jail(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(root, "run/secret/..1"), 0o755))
	must(os.WriteFile(filepath.Join(root, "run/secret/..1/key"), []byte("value"), 0o400))
	must(os.Symlink("..1", filepath.Join(root, "run/secret/..data")))
	must(os.Symlink("..data/key", filepath.Join(root, "run/secret/key")))
	must(os.Symlink("/etc/hostname", filepath.Join(root, "run/absolute")))
	must(os.Symlink("../../../../../../etc/hostname", filepath.Join(root, "run/climbing")))
	must(os.Symlink("/proc/1/root/etc/hostname", filepath.Join(root, "run/magic")))
	must(unix.Mkfifo(filepath.Join(root, "run/fifo"), 0o666))
	must(os.WriteFile(filepath.Join(root, "run/long"), []byte(strings.Repeat("x", 101)), 0o400))

	got, err := ReadFile(pid, "/run/secret/key", 100)
	if err != nil || string(got) != "value" {
		t.Errorf("a Secret's key is %q, %v", got, err)
	}
	for _, outside := range []string{"/run/absolute", "/run/climbing", "/run/magic"} {
		if got, err := ReadFile(pid, outside, 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s leads to %q, %v", outside, got, err)
		}
	}
	if _, err := ReadFile(pid, "/run/fifo", 100); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a FIFO: %v", err)
	}
	if _, err := ReadFile(pid, "/run/long", 100); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a long file: %v", err)
	}
	if _, err := ReadFile(pid, "/run/none", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}
