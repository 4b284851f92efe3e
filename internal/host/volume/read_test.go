package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

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
	mount := func(kind, at, options string) {
		t.Helper()
		at = filepath.Join(root, at)
		must(os.MkdirAll(at, 0o755))
		must(unix.Mount(kind, at, kind, 0, options))
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	}
	mount("tmpfs", "run", "")
	mount("tmpfs", "run/secret", "")
	mount("tmpfs", "run/other", "")
	must(os.WriteFile(filepath.Join(root, "run/other/key"), []byte("another's"), 0o400))
	must(os.Symlink("/run/other/key", filepath.Join(root, "run/secret/over")))
	must(os.WriteFile(filepath.Join(root, "key"), []byte("the image's"), 0o400))
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
	if got, err := ReadFile(pid, "/run/secret/over", 100); err == nil {
		t.Errorf("a link leads to another mount: %q", got)
	}
	if got, err := ReadFile(pid, "/key", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of the image itself %q is read, %v", got, err)
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

// TestAMountThatHangs: a file system of FUSE whose server does not answer, where a Secret is expected and above it.
func TestAMountThatHangs(t *testing.T) {
	pid, root := jail(t)
	server, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		env.Missing(t, "needs /dev/fuse: "+err.Error())
	}
	at := filepath.Join(root, "hangs")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("fuse", at, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := ReadFile(pid, "/hangs/user-data", 100)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "fuse is mounted at /hangs") {
			t.Errorf("it is refused with %v", err)
		}
	case <-time.After(3 * time.Second):
		t.Error("the reader waits for the server")
	}
	_ = unix.Close(server) // which ends all that waits for it
	_ = unix.Unmount(at, unix.MNT_DETACH)
}

func TestTmpfsOf(t *testing.T) {
	const (
		root   = "100 1 0:50 / / rw - overlay overlay rw,lowerdir=a - b\n"
		secret = "101 100 0:51 / /run/berth/user-data ro,relatime shared:1 - tmpfs tmpfs rw,size=1024k\n"
		above  = "102 100 0:52 / /run rw - nfs4 server:/x rw\n"
		over   = "103 101 0:53 / /run/berth/user-data rw - fuse.s3 s3 rw\n"
		beside = "104 100 0:54 / /run/berth/user-data2 rw - nfs4 server:/x rw\n"
		below  = "105 101 0:55 / /run/berth/user-data/deeper rw - nfs4 server:/x rw\n"
	)
	for _, tt := range []struct{ name, mounts, want string }{
		{"a Secret", root + secret, "/run/berth/user-data"},
		{"with other mounts beside it and below", root + secret + beside + below, "/run/berth/user-data"},
		{"below another mount", root + above + secret, ""},
		{"under another mount", root + secret + over, ""},
		{"none", root + beside, ""},
		{"nothing", "", ""},
		{"half a line", "101 100 0:51 / /run/berth/user-data", ""},
	} {
		if got, err := tmpfsOf(strings.NewReader(tt.mounts), "/run/berth/user-data/user-data"); got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
}

func FuzzTmpfsOf(f *testing.F) {
	f.Add("101 100 0:51 / /run/berth/user-data ro,relatime shared:1 - tmpfs tmpfs rw,size=1024k\n")
	f.Fuzz(func(t *testing.T, mounts string) {
		if at, err := tmpfsOf(strings.NewReader(mounts), "/run/berth/user-data"); err == nil && !strings.HasPrefix("/run/berth/user-data", at+"/") {
			t.Errorf("%q", at)
		}
	})
}
