package console

import (
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestSockets(t *testing.T) {
	s, err := New(filepath.Join(t.TempDir(), "consoles"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(t.Context(), "a"); fault.ReasonOf(err) != v1alpha1.ReasonStarting || fault.ClassOf(err) != fault.Transient {
		t.Errorf("connecting to a console that is not there: %v", err)
	}
	if err := s.Remove("a"); err != nil {
		t.Errorf("removing one that is not there: %v", err)
	}
	qemu, err := net.Listen("unix", s.Path("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer qemu.Close()
	qemu.(*net.UnixListener).SetUnlinkOnClose(false) // QEMU that is killed leaves it

	file, err := s.Connect(t.Context(), "a")
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
	again, err := New(filepath.Dir(s.Path("a")))
	if err != nil {
		t.Fatal(err)
	}
	if uids, err := again.List(); err != nil || len(uids) > 0 {
		t.Errorf("consoles are %v, %v", uids, err)
	}
}
