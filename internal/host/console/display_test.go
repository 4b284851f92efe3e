package console

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/test/env"
)

// user is QEMU's.
const user = 0x70000001

func TestDisplay(t *testing.T) {
	if os.Getuid() != 0 {
		env.Missing(t, "needs root")
	}
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.OpenDisplay("a", user); fault.ReasonOf(err) != v1alpha1.ReasonStarting || fault.ClassOf(err) != fault.Transient {
		t.Errorf("opening a display that is not there: %v", err)
	}
	path, err := s.MakeDisplay("a", user)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Dir(path), &st); err != nil || st.Uid != user || st.Mode&0o7777 != 0o700 {
		t.Errorf("the directory has owner %d and mode %#o, %v", st.Uid, st.Mode, err)
	}
	listen(t, path, user)
	file, err := s.OpenDisplay("a", user)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	viewer, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
	if err != nil {
		t.Errorf("a viewer: %v", err)
	} else {
		_ = viewer.Close()
	}
	if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH == 0 {
		t.Errorf("the descriptor has flags %#x, %v", flags, err)
	}
	if uids, err := s.List(); err != nil || len(uids) != 1 || uids[0] != "a" || !s.Exists("a") {
		t.Errorf("guests are %v, %v", uids, err)
	}
	if again, err := s.MakeDisplay("a", user); err != nil || again != path {
		t.Errorf("at the next start: %s, %v", again, err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket that was left is there: %v", err)
	}
	if err := s.Remove("a"); err != nil || s.Exists("a") {
		t.Errorf("after its removal it exists: %t, %v", s.Exists("a"), err)
	}
}

// TestAHostileDisplay: whoever broke out of QEMU has put something else in the socket's place, or into the directory's.
func TestAHostileDisplay(t *testing.T) {
	if os.Getuid() != 0 {
		env.Missing(t, "needs root")
	}
	for name, put := range map[string]func(t *testing.T, path, others string) error{
		"a link to somebody's socket":     func(_ *testing.T, path, others string) error { return os.Symlink(others, path) },
		"a hard link to somebody's":       func(_ *testing.T, path, others string) error { return os.Link(others, path) },
		"a socket of another user":        func(t *testing.T, path, _ string) error { listen(t, path, user+1); return nil },
		"a file":                          func(_ *testing.T, path, _ string) error { return own(path, os.WriteFile(path, nil, 0o600)) },
		"a directory":                     func(_ *testing.T, path, _ string) error { return own(path, os.Mkdir(path, 0o700)) },
		"a second name of its own socket": func(t *testing.T, path, _ string) error { listen(t, path, user); return os.Link(path, path+"2") },
		"a link in the directory's place": func(_ *testing.T, path, others string) error {
			dir := filepath.Dir(path)
			if err := os.Rename(others, filepath.Join(filepath.Dir(others), vnc)); err != nil {
				return err
			}
			if err := os.Remove(dir); err != nil {
				return err
			}
			return os.Symlink(filepath.Dir(others), dir)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := New(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			path, err := s.MakeDisplay("a", user)
			if err != nil {
				t.Fatal(err)
			}
			others := filepath.Join(t.TempDir(), "libvirt")
			listen(t, others, 0)
			if err := os.Chmod(others, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := put(t, path, others); err != nil {
				t.Fatal(err)
			}
			if file, err := s.OpenDisplay("a", user); err == nil {
				_ = file.Close()
				t.Error("it was opened")
			}
			for _, victim := range []string{others, filepath.Join(filepath.Dir(others), vnc)} {
				if info, err := os.Lstat(victim); err == nil && info.Mode().Perm() != 0o600 {
					t.Errorf("somebody's socket has mode %v now", info.Mode())
				}
			}
		})
	}
}

func listen(t *testing.T, path string, as int) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chown(path, as, -1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		t.Fatal(err)
	}
}

func own(path string, err error) error {
	if err != nil {
		return err
	}
	return os.Chown(path, user, -1)
}
