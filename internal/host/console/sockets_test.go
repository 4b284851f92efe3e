package console

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestSockets(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(t.Context(), "a", Serial); fault.ReasonOf(err) != v1alpha1.ReasonStarting || fault.ClassOf(err) != fault.Transient {
		t.Errorf("connecting to a console that is not there: %v", err)
	}
	if err := s.Remove("a"); err != nil {
		t.Errorf("removing one that is not there: %v", err)
	}
	qemu, err := net.Listen("unix", s.Path("a", Serial))
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	qemu.(*net.UnixListener).SetUnlinkOnClose(false) // QEMU that is killed leaves it

	file, err := s.Connect(t.Context(), "a", Serial)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := qemu.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = guest.Write([]byte("login: "))
		_ = guest.Close()
	}()
	if text, err := io.ReadAll(file); err != nil || string(text) != "login: " {
		t.Errorf("the console says %q, %v", text, err)
	}
	_ = file.Close()

	uids, err := s.List()
	if diff := cmp.Diff([]string{"a"}, uids); err != nil || diff != "" || !s.Exists("a") {
		t.Errorf("%v, consoles (-want +got):\n%s", err, diff)
	}
	if err := s.Remove("a"); err != nil || s.Exists("a") {
		t.Errorf("after its removal it exists: %t, %v", s.Exists("a"), err)
	}
	again, err := New(filepath.Dir(s.consoles))
	if err != nil {
		t.Fatal(err)
	}
	if uids, err := again.List(); err != nil || len(uids) > 0 {
		t.Errorf("consoles are %v, %v", uids, err)
	}
}

// TestPorts: a guest is known by whichever of its sockets is left, and once.
func TestPorts(t *testing.T) {
	s, err := New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const uid = "8f9c1d2e-0000-4000-8000-000000000001"
	if p := s.Path(uid, Serial); p != filepath.Join(s.consoles, uid+".sock") { // as older agents have made it
		t.Errorf("the console is %s", p)
	}
	for _, which := range []Socket{Serial, GuestPort, ExitPort} {
		qemu, err := net.Listen("unix", s.Path(uid, which))
		if err != nil {
			t.Fatal(err)
		}
		qemu.(*net.UnixListener).SetUnlinkOnClose(false)
		file, err := s.Connect(t.Context(), uid, which)
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		_ = qemu.Close()
		if uids, err := s.List(); err != nil || len(uids) != 1 || uids[0] != uid || !s.Exists(uid) {
			t.Errorf("with socket %q: %v, %v", which, uids, err)
		}
		if left, err := os.ReadDir(s.consoles); err != nil || len(left) != 1 { // which older agents take all that is there for
			t.Errorf("consoles are %v, %v", left, err)
		}
		if which != ExitPort {
			continue
		}
		if err := os.Remove(s.Path(uid, Serial)); err != nil || !s.Exists(uid) {
			t.Errorf("without its console it exists: %t, %v", s.Exists(uid), err)
		}
	}
	if err := s.Remove(uid); err != nil || s.Exists(uid) {
		t.Errorf("after its removal it exists: %t, %v", s.Exists(uid), err)
	}
}
