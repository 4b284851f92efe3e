package guest

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/shim/client"
)

const waitTimeout = 20 * time.Second

// pair is a client's end, and the shim's, of a connection of this process with itself.
func pair(t *testing.T) (ours, shims *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, shims = os.NewFile(uintptr(fds[0]), "client's"), os.NewFile(uintptr(fds[1]), "shim's")
	t.Cleanup(func() { _, _ = ours.Close(), shims.Close() })
	return ours, shims
}

// packet is a request for a reset, the shortest.
var packet = []byte{1, byte(client.Reset)}

func awaitGo(t *testing.T, conn *os.File) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Fatalf("read %d bytes, %v; want the shim's first packet", n, err)
	}
}

func TestARequestIsTakenFromWhoWasLookedAt(t *testing.T) {
	ours, shims := pair(t)
	sent := make(chan error, 1)
	go func() {
		awaitGo(t, ours)
		_, err := ours.Write(packet)
		sent <- err
	}()
	r, _, files, err := request(shims)
	if r.Kind != client.Reset || len(files) > 0 || err != nil || <-sent != nil {
		t.Errorf("got %+v, %d files, %v", r, len(files), err)
	}
}

// TestARequestThatCameTooEarlyIsNot: its sender may have ended, and another process may have its number.
func TestARequestThatCameTooEarlyIsNot(t *testing.T) {
	ours, shims := pair(t)
	self := unix.UnixCredentials(&unix.Ucred{Pid: int32(os.Getpid()), Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())})
	raw, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = unix.Sendmsg(int(fd), packet, self, nil, 0) }); err != nil || failure != nil {
		t.Fatal(err, failure)
	}
	if _, _, _, err := request(shims); !errors.Is(err, errStranger) {
		t.Errorf("got %v, want %v", err, errStranger)
	}
}

// TestARequestOfWhoWasGivenTheConnectionIsNot: the process that was looked at is not the one that asks.
func TestARequestOfWhoWasGivenTheConnectionIsNot(t *testing.T) {
	ours, shims := pair(t)
	written := make(chan error, 1)
	go func() {
		awaitGo(t, ours)
		other := exec.Command("sh", "-c", `printf '\001\004' >&3`)
		other.ExtraFiles = []*os.File{ours}
		written <- other.Run()
	}()
	if _, _, _, err := request(shims); !errors.Is(err, errStranger) {
		t.Errorf("got %v, want %v", err, errStranger)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

func TestMoreDescriptorsThanAClientPassesAreRefused(t *testing.T) {
	ours, shims := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	fd := int(w.Fd())
	go func() {
		awaitGo(t, ours)
		raw, _ := ours.SyscallConn()
		_ = raw.Control(func(conn uintptr) { _ = unix.Sendmsg(int(conn), packet, unix.UnixRights(fd, fd, fd, fd), nil, 0) })
		_ = w.Close()
	}()
	if _, _, _, err := request(shims); err == nil {
		t.Error("was taken")
	}
	if err := r.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) { // nothing has the other end open
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}
