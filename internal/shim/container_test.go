package shim_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/test/env"
)

// waitTimeout bounds every wait; none of them should come near it.
const waitTimeout = 20 * time.Second

// programs is where build puts what it builds.
var programs = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "berth-shim-") })

// binary builds the shim as its image has it, once.
var binary = sync.OnceValues(func() (string, error) { return build("cmd/berth-shim") })

func build(of string) (string, error) {
	dir, err := programs()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, filepath.Base(of))
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/berth-dev/berth/"+of)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
}

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// enter makes what kubelet's runtime makes: a read-only root with its own /proc,
// a resolv.conf and a termination log, the pod's name and loopback, no privilege
// and no root.
const enter = `set -e
hostname web
ip link set lo up
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --bind "$1/dev/termination-log" "$1/dev/termination-log"
mount -o remount,ro,bind "$1"
[ ! -p "$1/dev/hold" ] || cat "$1/dev/hold"
exec setpriv --no-new-privs chroot --userspec=65532:65532 --groups= "$1" /berth-shim`

// container is a berth's, with the real shim in it as PID 1.
type container struct {
	t     *testing.T
	root  string
	cmd   *exec.Cmd
	pidfd int
	ended chan struct{} // closed when the shim has exited
}

// start starts a container. Without root's rights there is none, and the test
// is skipped where tests may be.
func start(t *testing.T, stdin, stdout *os.File, options ...func(*container)) *container {
	t.Helper()
	if os.Getuid() != 0 {
		env.Missing(t, "containers need root")
	}
	shim, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	c := &container{t: t, root: t.TempDir(), ended: make(chan struct{})}
	for _, dir := range []string{"proc", "dev", "etc", "bin"} {
		if err := os.Mkdir(filepath.Join(c.root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"guest", "sh"} {
		if err := os.Symlink("/berth-shim", filepath.Join(c.root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	c.file("etc/resolv.conf", "search prod.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\n", 0o644)
	c.file("dev/termination-log", "", 0o666)
	if err := os.Link(shim, filepath.Join(c.root, "berth-shim")); err != nil {
		t.Fatal(err)
	}
	for _, o := range options {
		o(c)
	}
	c.cmd = exec.Command("sh", "-c", enter, "sh", c.root)
	c.cmd.Env = environment()
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = stdin, stdout, stdout
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWNET | unix.CLONE_NEWUTS, Unshareflags: unix.CLONE_NEWNS,
		Setsid: true, Setctty: isTerminal(stdin), PidFD: &c.pidfd,
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = c.cmd.Wait()
		close(c.ended)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		_ = unix.Close(c.pidfd)
	})
	return c
}

// environment is what a berth gives its container.
func environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "GOMAXPROCS=2", "GOGC=25"}
}

func (c *container) file(name, text string, mode os.FileMode) {
	c.t.Helper()
	path := filepath.Join(c.root, name)
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		c.t.Fatal(err)
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// eventually waits until done returns true, of what no event tells.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(waitTimeout); !done(); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: did not happen in %v", what, waitTimeout)
		}
	}
}

// signal sends the shim a signal, as the runtime does.
func (c *container) signal(s unix.Signal) {
	c.t.Helper()
	if err := unix.PidfdSendSignal(c.pidfd, s, nil, 0); err != nil {
		c.t.Fatal(err)
	}
}

// code waits for the end and returns the exit code.
func (c *container) code() int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(waitTimeout):
		c.t.Fatal("the shim did not end")
	}
	return c.cmd.ProcessState.ExitCode()
}

// terminationMessage is what kubelet finds in the termination log.
func (c *container) terminationMessage() string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.root, "dev/termination-log"))
	if err != nil {
		c.t.Fatal(err)
	}
	return string(text)
}

// exec runs a command in the container, as an exec probe does.
func (c *container) exec(arg ...string) (output string, err error) {
	c.t.Helper()
	arg = append([]string{"--target", strconv.Itoa(c.cmd.Process.Pid), "--pid", "--mount"}, arg...)
	out, err := exec.Command("nsenter", arg...).CombinedOutput()
	return string(out), err
}

// started runs the startup probe.
func (c *container) started(timeout ...string) (output string, err error) {
	c.t.Helper()
	root := "--root=/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/root"
	return c.exec(append([]string{root, "--setuid=65532", "--setgid=65532", "/berth-shim", "started"}, timeout...)...)
}

// memory returns a line of the shim's /proc/PID/status, in KiB.
func (c *container) memory(line string) int { return c.status(line, " kB") }

// status returns a number in that file.
func (c *container) status(line, unit string) int {
	c.t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/status")
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), line+":")
	rest, _, _ = strings.Cut(rest, "\n")
	rest = strings.TrimSuffix(rest, unit)
	n, err := strconv.Atoi(strings.TrimSpace(rest))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// agent is one agent's copy of the socket, with what it hears.
type agent struct {
	*shimproto.Agent
	t      *testing.T
	states chan shimproto.State
}

// take plays an agent that starts: it takes the socket and says hello.
func (c *container) take() *agent {
	c.t.Helper()
	a := &agent{t: c.t, states: make(chan shimproto.State, 1000)}
	eventually(c.t, "the shim makes its socket", func() (taken bool) {
		var err error
		if a.Agent, err = shimproto.Take(c.pidfd); err != nil && !errors.Is(err, shimproto.ErrAbsent) {
			c.t.Fatal(err)
		}
		return err == nil
	})
	c.t.Cleanup(func() { _ = a.Close() })
	go func() {
		defer close(a.states)
		if err := a.Receive(func(s shimproto.State) { a.states <- s }); err != nil && !errors.Is(err, io.EOF) {
			c.t.Errorf("the agent: %v", err)
		}
	}()
	a.send(shimproto.Hello{})
	return a
}

func (a *agent) send(m shimproto.Message, files ...*os.File) {
	a.t.Helper()
	if err := a.Send(a.t.Context(), m, files...); err != nil {
		a.t.Fatal(err)
	}
}

// await waits for a state that fits.
func (a *agent) await(what string, fits func(shimproto.State) bool) shimproto.State {
	a.t.Helper()
	late := time.After(waitTimeout)
	for {
		select {
		case s, ok := <-a.states:
			if !ok {
				a.t.Fatalf("%s: the shim ended", what)
			}
			if fits(s) {
				return s
			}
		case <-late:
			a.t.Fatalf("%s: did not happen in %v", what, waitTimeout)
		}
	}
}

// handOver hands a console to the shim and returns QEMU's end of it.
func (a *agent) handOver() (qemu *os.File) {
	a.t.Helper()
	qemu, console := sockets(a.t)
	a.send(shimproto.Hello{})
	a.await("a state", func(shimproto.State) bool { return true }) // before it, an agent speaks protocol 1.0
	a.send(consoleOf("r1"), console)
	_ = console.Close()
	a.await("attached", func(s shimproto.State) bool { return s.InstanceID == "r1" })
	return qemu
}

// consoleOf is a hand-over of a console, with the first descriptor.
func consoleOf(instance string) shimproto.HandOver {
	return shimproto.HandOver{InstanceID: instance, Devices: []shimproto.Device{{Kind: shimproto.KindConsole, Name: "console"}}}
}

// sockets is a connected pair, as QEMU and its client have.
func sockets(t *testing.T) (one, two *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	one, two = os.NewFile(uintptr(fds[0]), "one"), os.NewFile(uintptr(fds[1]), "two")
	t.Cleanup(func() { _ = one.Close(); _ = two.Close() })
	return one, two
}

// pipe is a pipe that the test's end closes with it.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// null is /dev/null.
func null(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// expect reads exactly what is wanted.
func expect(t *testing.T, from *os.File, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := from.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(from, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %.200q (%v), want %.200q", got[:n], err, want)
	}
}

// write writes all, in time.
func write(t *testing.T, to *os.File, data []byte) {
	t.Helper()
	if err := to.SetWriteDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Write(data); err != nil {
		t.Fatal(err)
	}
}
