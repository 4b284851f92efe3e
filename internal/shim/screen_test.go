package shim_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// viewer dials the VNC port from within the container's network namespace.
func (c *container) viewer() net.Conn {
	c.t.Helper()
	made := make(chan net.Conn)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		var conn net.Conn
		if unix.Setns(c.pidfd, unix.CLONE_NEWNET) == nil {
			for late := time.Now().Add(waitTimeout); conn == nil && time.Now().Before(late); { // until the shim listens
				if conn, _ = net.Dial("tcp", "127.0.0.1:5900"); conn == nil {
					runtime.Gosched()
				}
			}
		}
		made <- conn
	}()
	conn := <-made
	if conn == nil {
		c.t.Fatal("nobody listens on port 5900")
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	return conn
}

// screen is a container with a display, and what listens in QEMU's place.
func screen(t *testing.T) (*container, net.Listener) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vnc.sock")
	vnc, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vnc.Close() })
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	display := os.NewFile(uintptr(fd), "display")
	_, console := sockets(t)
	c := start(t, null(t), null(t))
	a := c.take()
	a.await("a state", func(shimproto.State) bool { return true })
	h := consoleOf("r1")
	h.Devices = append(h.Devices, shimproto.Device{Kind: shimproto.KindDisplay, Name: "display", FD: 1})
	a.send(h, console, display)
	_, _ = console.Close(), display.Close()
	return c, vnc
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	return conn
}

// talk writes on one end and reads that on the other.
func talk(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.WriteString(from, text); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Errorf("read %q, %v; want %q", got, err, text)
	}
}

func hungUp(t *testing.T, conn net.Conn) {
	t.Helper()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

func TestEachViewerHasAConnectionOfItsOwn(t *testing.T) {
	c, vnc := screen(t)
	var viewers, ends []net.Conn
	for range 8 {
		viewers = append(viewers, c.viewer())
		ends = append(ends, accept(t, vnc))
	}
	for i := range viewers {
		talk(t, ends[i], viewers[i], "RFB 003.008\n")
		talk(t, viewers[i], ends[i], "RFB 003.008\n")
	}
	hungUp(t, c.viewer()) // the ninth
	_ = viewers[0].Close()
	hungUp(t, ends[0])
	_ = ends[1].Close()
	hungUp(t, viewers[1])
	var again net.Conn
	eventually(t, "there is room again", func() bool {
		again = c.viewer()
		_ = vnc.(*net.UnixListener).SetDeadline(time.Now().Add(time.Second))
		end, err := vnc.Accept()
		if err == nil {
			talk(t, end, again, "hello")
			_ = end.Close()
		}
		return err == nil
	})
}

func TestAViewerThatDoesNotReadHoldsUpNoOther(t *testing.T) {
	c, vnc := screen(t)
	stuck := c.viewer()
	end := accept(t, vnc)
	var sent int
	_ = end.SetWriteDeadline(time.Now().Add(2 * time.Second))
	for chunk := make([]byte, 1<<20); ; {
		n, err := end.Write(chunk)
		if sent += n; err != nil {
			break // QEMU waits, and drops updates
		}
		if sent > 1<<30 {
			t.Fatal("the shim takes whatever comes")
		}
	}
	other := c.viewer()
	talk(t, accept(t, vnc), other, "RFB 003.008\n")
	t.Logf("a viewer that does not read took %d bytes; VmRSS %d kB", sent, c.memory("VmRSS"))
	if rss := c.memory("VmRSS"); rss > 5<<10 {
		t.Errorf("VmRSS %d kB", rss)
	}
	_ = stuck.Close()
}

func TestTheExitPortIsReadToItsEnd(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	p := a.handOverPorts()
	write(t, p.exit, []byte("1\n"))
	a.await("a first line", func(s shimproto.State) bool { return s.ExitText == "1" })
	for range 64 { // faster than a State each
		write(t, p.exit, make([]byte, 64<<10))
	}
	_ = p.console.Close()
	a.send(shimproto.Hello{})
	if s := a.await("a state", func(s shimproto.State) bool { return s.ExitText != "1" }); s.ConsoleClosed {
		t.Errorf("closed before the exit port has ended: %+v", s)
	}
	write(t, p.exit, []byte("\n3\n"))
	_ = p.exit.Close()
	if s := a.await("closed", func(s shimproto.State) bool { return s.ConsoleClosed }); s.ExitText != "3" {
		t.Errorf("exit text %q, want 3", s.ExitText)
	}
}
