package shim_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/shim/console"
)

// portsOf is a hand-over of a console, the guest program's port and the exit port, with the first three descriptors.
func portsOf(instance string) shimproto.HandOver {
	h := consoleOf(instance)
	h.Devices = append(h.Devices, shimproto.Device{Kind: shimproto.KindGuest, Name: "guest", FD: 1}, shimproto.Device{Kind: shimproto.KindExit, Name: "exit", FD: 2})
	return h
}

// ports are QEMU's ends.
type ports struct {
	console, guest, exit *os.File
	link                 *guestlink.Link // of the guest program
}

// handOverPorts hands over what a guest has, and says that it runs.
func (a *agent) handOverPorts() (p ports) {
	a.t.Helper()
	var console, guest, exit *os.File
	p.console, console = sockets(a.t)
	p.guest, guest = sockets(a.t)
	p.exit, exit = sockets(a.t)
	a.await("a state", func(shimproto.State) bool { return true })
	a.send(portsOf("r1"), console, guest, exit)
	_, _, _ = console.Close(), guest.Close(), exit.Close()
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning})
	a.await("running", func(s shimproto.State) bool { return s.InstanceID == "r1" && s.RunningSinceNS != 0 })
	return p
}

// running is a container whose guest runs, with a guest program.
func running(t *testing.T) (*container, *agent, ports) {
	t.Helper()
	c := start(t, null(t), null(t))
	a := c.take()
	p := a.handOverPorts()
	p.link = answer(t, p.guest)
	a.await("the guest program's version", func(s shimproto.State) bool { return s.GuestTools == "test" })
	eventually(t, "the shim listens", func() bool {
		sockets, _ := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/net/unix")
		return regexp.MustCompile(` 00010000 .* @berth-shim\n`).Match(sockets) // the flag of one that listens
	})
	return c, a, p
}

// client prepares a client in the container, as the runtime starts one.
func (c *container) client(arg ...string) *exec.Cmd {
	c.t.Helper()
	pid := strconv.Itoa(c.cmd.Process.Pid)
	arg = append([]string{"--target", pid, "--pid", "--mount", "--net", "--uts", "--ipc", "--root=/proc/" + pid + "/root", "--wd=/proc/" + pid + "/root", "--setuid=65532", "--setgid=65532"}, arg...)
	cmd := exec.Command("nsenter", arg...)
	cmd.Env = environment()
	return cmd
}

// run runs a client to its end.
func (c *container) run(stdin io.Reader, arg ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := c.client(arg...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errs
	_ = cmd.Start()
	late := time.AfterFunc(3*waitTimeout, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("%q: %v", arg, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// answer is a guest program, which runs commands on this machine.
func answer(t *testing.T, port *os.File) *guestlink.Link {
	t.Helper()
	link := &guestlink.Link{Version: "test", Changed: func(bool, string) {}}
	link.Accept = func(s *guestlink.Stream, c guestlink.Command) guestlink.Handler {
		p := &process{stream: s, cmd: exec.Command(c.Args[0], c.Args[1:]...), begun: make(chan struct{})}
		p.cmd.Env, p.cmd.Dir = append(os.Environ(), c.Env...), c.Dir
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL}
		p.in, _ = p.cmd.StdinPipe()
		out, _ := p.cmd.StdoutPipe()
		errs, _ := p.cmd.StderrPipe()
		go p.run(out, errs)
		return p
	}
	go func() { _ = link.Serve(port) }()
	return link
}

// written counts what all commands have written and the shim has taken.
var written atomic.Int64

type process struct {
	stream *guestlink.Stream
	cmd    *exec.Cmd
	in     io.WriteCloser
	begun  chan struct{} // it was started, or could not be
}

func (p *process) run(out, errs io.Reader) {
	err := p.cmd.Start()
	close(p.begun)
	if err != nil {
		_ = p.stream.Write(guestlink.Stderr, []byte(err.Error()+"\n"))
		p.stream.Exit(127)
		return
	}
	var copied sync.WaitGroup
	for channel, r := range map[int]io.Reader{guestlink.Stdout: out, guestlink.Stderr: errs} {
		copied.Go(func() {
			buf := make([]byte, 32<<10)
			for {
				n, err := r.Read(buf)
				if n > 0 && p.stream.Write(channel, buf[:n]) != nil || err != nil {
					return
				}
				written.Add(int64(n))
			}
		})
	}
	copied.Wait()
	_ = p.cmd.Wait()
	code := p.cmd.ProcessState.ExitCode()
	if s := p.cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signaled() {
		code = 128 + int(s.Signal())
	}
	p.stream.Exit(byte(code))
}

func (p *process) Take(_ int, b []byte) error {
	if b == nil {
		return p.in.Close()
	}
	_, err := p.in.Write(b)
	return err
}

func (p *process) Ended(int, error) {
	<-p.begun
	if p.cmd.Process != nil {
		_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGKILL)
	}
}
func (p *process) Resize(guestlink.Size) {}
func (p *process) Signal(n int)          { _ = unix.Kill(-p.cmd.Process.Pid, unix.Signal(n)) }

func TestACommandOfTheGuest(t *testing.T) {
	c, _, _ := running(t)
	for name, test := range map[string]struct {
		stdin          string
		arg            []string
		stdout, stderr string
		code           int
	}{
		"by its name":              {"", []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 3"}, "out\n", "err\n", 3},
		"by guest":                 {"", []string{"/bin/guest", "echo", "a b", "c"}, "a b c\n", "", 0},
		"with input":               {strings.Repeat("0123456789\n", 100_000), []string{"/bin/guest", "wc", "-c"}, "1100000\n", "", 0},
		"with environment":         {"", []string{"/berth-shim", "exec", "-e", "A=1", "-e", "B=2 3", "-w", "/tmp", "--", "sh", "-c", "echo $A $B $PWD"}, "1 2 3 /tmp\n", "", 0},
		"that is killed":           {"", []string{"/bin/sh", "-c", "kill -9 $$"}, "", "", 137},
		"without input being read": {strings.Repeat("x", 4<<20), []string{"/bin/guest", "true"}, "", "", 0},
		"that the guest has not":   {"", []string{"/bin/guest", "nonesuch"}, "", "exec: \"nonesuch\": executable file not found in $PATH\n", 127},
		"that is missing":          {"", []string{"/bin/guest"}, "", "", 125},
		"with a flag that is not":  {"", []string{"/berth-shim", "exec", "-x", "true"}, "", "", 125},
		"longer than it may be":    {"", []string{"/bin/guest", "echo", strings.Repeat("x", 100_000)}, "", "berth: the command line is longer than 32 KiB: put what is long into a file, or into the command's input\n", 126},
		"as a readiness probe":     {"", []string{"/berth-shim", "probe", "--readiness", "--", "sh", "-c", "echo no; exit 1"}, "no\n", "", 1},
		"as a liveness probe":      {"", []string{"/berth-shim", "probe", "--liveness", "--", "true"}, "", "", 0},
		"as one that fails":        {"", []string{"/berth-shim", "probe", "--liveness", "false"}, "", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := c.run(strings.NewReader(test.stdin), test.arg...)
			if stdout != test.stdout || code != test.code || stderr != test.stderr && test.code != 125 {
				t.Errorf("stdout %.200q, stderr %.400q, code %d; want %q, %q, %d", stdout, stderr, code, test.stdout, test.stderr, test.code)
			}
		})
	}
	t.Logf("VmRSS %d kB, RssAnon %d kB", c.memory("VmRSS"), c.memory("RssAnon"))
}

// boot runs the real guest program on this machine, with a terminal in its port's place, in which nothing has a meaning.
func boot(t *testing.T, port *os.File) {
	t.Helper()
	program, err := build("cmd/berth-guest")
	if err != nil {
		t.Fatal(err)
	}
	master, slave := openTerminal(t)
	if before, err := console.MakeRaw(slave); before == nil || err != nil {
		t.Fatal(before, err)
	}
	const script = `set -e
mount -t tmpfs class /sys/class
mkdir -p /sys/class/virtio-ports/vport0p2
echo dev.berth.guest.0 >/sys/class/virtio-ports/vport0p2/name
mount -t tmpfs dev "$1"
mkdir "$1/pts"
mount --bind /dev/pts "$1/pts"
ln -s pts/ptmx "$1/ptmx"
for f in null zero tty urandom; do touch "$1/$f"; mount --bind "/dev/$f" "$1/$f"; done
touch "$1/vport0p2"
mount --bind "$2" "$1/vport0p2"
mount --move "$1" /dev
exec "$3"`
	cmd := exec.Command("sh", "-c", script, "sh", t.TempDir(), slave.Name(), program)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(port, master) }()
	go func() { _, _ = io.Copy(master, port) }()
	t.Cleanup(func() { _, _, _ = cmd.Process.Signal(unix.SIGTERM), master.Close(), cmd.Wait() })
}

func TestTheRealGuestProgram(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	p := a.handOverPorts()
	boot(t, p.guest)
	if stdout, stderr, code := c.run(strings.NewReader("in"), "/bin/sh", "-c", "cat; echo err >&2; exit 3"); stdout != "in" || stderr != "err\n" || code != 3 {
		t.Errorf("%q, %q, code %d", stdout, stderr, code) // it waited for the program's hello
	}
	if s := a.await("its version", func(s shimproto.State) bool { return s.GuestTools != "" }); s.GuestTools != "dev" {
		t.Errorf("version %q", s.GuestTools)
	}
	for name, test := range map[string]struct {
		arg    []string
		stderr string
		code   int
	}{
		"a command that is not there": {[]string{"/bin/guest", "nonesuch"}, "nonesuch", 127},
		"a user that is not there":    {[]string{"/berth-shim", "exec", "-u", "nobodyatall", "true"}, "nobodyatall", 126},
		"a directory that is not":     {[]string{"/berth-shim", "exec", "-w", "/nonesuch", "true"}, "/nonesuch", 126},
		"a user's":                    {[]string{"/berth-shim", "exec", "-u", "nobody", "--", "sh", "-c", "test $(id -un) = nobody"}, "", 0},
		"a killed command":            {[]string{"/bin/sh", "-c", "kill -9 $$"}, "", 137},
		"a detached one":              {[]string{"/berth-shim", "exec", "-d", "sleep", "0"}, "", 0},
	} {
		if stdout, stderr, code := c.run(nil, test.arg...); code != test.code || !strings.Contains(stderr, test.stderr) || stdout != "" {
			t.Errorf("%s: %q, %q, code %d; want %q in it and %d", name, stdout, stderr, code, test.stderr, test.code)
		}
	}
	t.Run("terminal", func(t *testing.T) { testTerminal(t, c) })
}

// testTerminal has a command run in a terminal of the guest's own, as kubectl exec -it does.
func testTerminal(t *testing.T, c *container) {
	master, slave := openTerminal(t)
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.client("/bin/sh", "-c", `trap 'stty size' WINCH; trap 'echo interrupted; exit 4' INT; echo "$TERM"; while :; do sleep 0.01; done`)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	resize := func(rows, columns uint16) {
		t.Helper()
		if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
			t.Fatal(err)
		}
		if err := unix.SetNonblock(int(master.Fd()), true); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, master, []byte("xterm\r\n"))
	resize(50, 132)
	expect(t, master, []byte("50 132\r\n"))
	write(t, master, []byte{3})
	expect(t, master, []byte("^Cinterrupted\r\n"))
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("code %d", cmd.ProcessState.ExitCode())
	}
	if after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS); err != nil || *after != *before {
		t.Errorf("the terminal is left as %+v, %v; it was %+v", after, err, before)
	}
	if flags, err := unix.FcntlInt(slave.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("the terminal is left non-blocking: %#x, %v", flags, err)
	}
}

// begin starts a client that has said something, and leaves it running.
func (c *container) begin(script string) (cmd *exec.Cmd) {
	c.t.Helper()
	cmd = c.client("/bin/sh", "-c", "echo begun; "+script)
	out, w := pipe(c.t)
	in, hold := pipe(c.t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, w, os.Stderr
	_ = hold // open, and silent
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	_ = w.Close()
	expect(c.t, out, []byte("begun\n"))
	c.t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	return cmd
}

// clientOf is the pid of what nsenter has started, on this machine.
func clientOf(t *testing.T, nsenter *exec.Cmd) int {
	t.Helper()
	pid := nsenter.Process.Pid
	list, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(pid) + "/children")
	child, _ := strconv.Atoi(strings.TrimSpace(string(list)))
	if err != nil || child == 0 {
		t.Fatalf("%q, %v", list, err)
	}
	return child
}

func TestAClientThatIsKilledHangsItsCommandUp(t *testing.T) {
	c, _, _ := running(t)
	dir := t.TempDir()
	cmd := c.begin("echo $$ >" + dir + "/pid; exec sleep 1000")
	var pid string
	eventually(t, "the command is there", func() bool {
		text, _ := os.ReadFile(dir + "/pid")
		pid = strings.TrimSpace(string(text))
		return pid != ""
	})
	_ = unix.Kill(clientOf(t, cmd), unix.SIGKILL)
	eventually(t, "the command has ended", func() bool { _, err := os.Stat("/proc/" + pid); return err != nil })
}

func TestAClientCostsLittle(t *testing.T) {
	c, _, _ := running(t)
	cmd := c.begin("sleep 1000")
	status, err := os.ReadFile("/proc/" + strconv.Itoa(clientOf(t, cmd)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	rest, _, _ = strings.Cut(rest, " kB")
	if kB, err := strconv.Atoi(strings.TrimSpace(rest)); err != nil || kB > 1<<10 {
		t.Errorf("RssAnon %d kB, %v; at most 1024 kB", kB, err)
	} else {
		t.Logf("RssAnon %d kB", kB)
	}
}

func TestARebootEndsCommands(t *testing.T) {
	c, _, p := running(t)
	errs, w := pipe(t)
	cmd := c.client("/bin/guest", "sleep", "1000")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	eventually(t, "the command is there", func() bool { _, stderr, _ := c.run(nil, "/bin/sh", "-c", "pgrep -x sleep >&2"); return stderr != "" })
	p.link.Leave() // a program that is told to end, and one that starts
	expect(t, errs, []byte("berth: the guest rebooted, or its guest program was started again\n"))
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 255 {
		t.Errorf("code %d", cmd.ProcessState.ExitCode())
	}
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 0 {
		t.Errorf("then %q, code %d", stderr, code)
	}
}

// TestAResetEndsCommands: the guest program was in no state to say so.
func TestAResetEndsCommands(t *testing.T) {
	before := bootTime(t)
	c, a, _ := running(t)
	errs, w := pipe(t)
	cmd := c.client("/bin/sh", "-c", "echo begun >&2; cat >&2")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	expect(t, errs, []byte("begun\n"))
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning, LastResetNS: before}) // since which the program has said hello
	a.await("an answer", func(shimproto.State) bool { return true })
	_, _ = io.WriteString(in, "still here\n")
	expect(t, errs, []byte("still here\n"))
	began := time.Now()
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning, LastResetNS: bootTime(t)})
	expect(t, errs, []byte("berth: the guest rebooted, or its guest program was started again\n"))
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 255 {
		t.Errorf("code %d", cmd.ProcessState.ExitCode())
	}
	t.Logf("it took %v", time.Since(began))
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 0 {
		t.Errorf("then %q, code %d", stderr, code)
	}
}

func TestTheGuestsEndIsToldToItsCommands(t *testing.T) {
	c, a, p := running(t)
	errs, w := pipe(t)
	cmd := c.client("/bin/sh", "-c", "echo begun >&2; sleep 1000")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	expect(t, errs, []byte("begun\n"))
	_, _, _ = p.guest.Close(), p.console.Close(), p.exit.Close()
	a.await("closed", func(s shimproto.State) bool { return s.ConsoleClosed })
	a.send(shimproto.Exit{Reason: "PoweredOff"})
	expect(t, errs, []byte("berth: the guest has ended: PoweredOff\n"))
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 255 {
		t.Errorf("code %d", cmd.ProcessState.ExitCode())
	}
	if code := c.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestWithoutAGuestThatRunsNoCommandDoes(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	p := a.handOverPorts()
	// A liveness probe of a guest without the program succeeds; others do not.
	for arg, want := range map[string]int{"--liveness": 0, "--readiness": 126, "--startup": 126} {
		if _, stderr, code := c.run(nil, "/berth-shim", "probe", arg, "--", "true"); code != want || want != 0 && !strings.HasPrefix(stderr, "berth: no guest program answers: ") {
			t.Errorf("a probe %s before there is a program: %q, code %d; want %d", arg, stderr, code, want)
		}
	}
	answer(t, p.guest)
	a.await("the guest program's version", func(s shimproto.State) bool { return s.GuestTools == "test" })
	a.send(shimproto.Running{Phase: shimproto.PhasePaused})
	a.await("an answer", func(s shimproto.State) bool { return true })
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 126 || stderr != "berth: the guest is paused: kubectl vm unpause web\n" {
		t.Errorf("paused: %q, code %d", stderr, code)
	}
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning})
	a.await("an answer", func(s shimproto.State) bool { return true })
	// A program that goes away, and has been there, fails a liveness probe.
	_ = p.guest.Close()
	eventually(t, "a liveness probe fails", func() bool {
		_, _, code := c.run(nil, "/berth-shim", "probe", "--liveness", "--", "true")
		return code == 126
	})
}

// TestAProgramThatIsStuckIsToldFromACommandThatSaysNothing: it reads what it is sent, and does nothing with it.
func TestAProgramThatIsStuckIsToldFromACommandThatSaysNothing(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	p := a.handOverPorts()
	theirs, ours := sockets(t)
	answer(t, theirs)
	stuck := make(chan struct{})
	go func() { _, _ = io.Copy(ours, p.guest) }()
	go func() { // what it says is lost from some moment on
		buf := make([]byte, 64<<10)
		for {
			n, err := ours.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-stuck:
			default:
				_, _ = p.guest.Write(buf[:n])
			}
		}
	}()
	a.await("the guest program's version", func(s shimproto.State) bool { return s.GuestTools == "test" })
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 0 {
		t.Errorf("before: %q, code %d", stderr, code)
	}
	close(stuck)
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 126 || !strings.HasPrefix(stderr, "berth: no guest program answers: ") {
		t.Errorf("stuck: %q, code %d", stderr, code)
	}
}

func TestActionsAreTheAgents(t *testing.T) {
	c, a, _ := running(t)
	done := make(chan int, 2)
	for _, verb := range []string{"reset", "nmi"} {
		go func() { _, _, code := c.run(nil, "/berth-shim", verb); done <- code }()
	}
	a.await("both are asked for", func(s shimproto.State) bool { return s.Resets == 1 && s.NMIs == 1 })
	a.send(shimproto.Acted{NMIs: 1})
	if code := <-done; code != 0 {
		t.Errorf("code %d", code)
	}
	select {
	case <-done:
		t.Error("a reset that was not acknowledged is done")
	default:
	}
	a.send(shimproto.Acted{Resets: 1, NMIs: 1})
	if code := <-done; code != 0 {
		t.Errorf("code %d", code)
	}
	_ = a.Close()
	a = c.take()
	if s := a.await("a state", func(shimproto.State) bool { return true }); s.Resets != 1 || s.ResetsDone != 1 || s.NMIsDone != 1 {
		t.Errorf("the next agent hears %+v", s)
	}
	a.send(shimproto.Acted{Resets: 7}) // of a reset that nobody asked for
	if s := a.await("a state", func(shimproto.State) bool { return true }); s.ResetsDone != 1 {
		t.Errorf("then %+v", s)
	}
}

func TestThirtyTwoStuckCommandsAreCheap(t *testing.T) {
	const limit = 14 << 10 // kB
	c, _, _ := running(t)
	idle := c.memory("VmRSS")
	before := written.Load()
	for range 32 {
		cmd := c.client("/bin/guest", "yes")
		_, cmd.Stdout = pipe(t) // that nobody reads
		zero, err := os.Open("/dev/zero")
		if err != nil {
			t.Fatal(err)
		}
		defer zero.Close()
		cmd.Stdin = zero // and yes does not
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	}
	eventually(t, "all windows are full", func() bool { return written.Load()-before >= 32*(guestlink.Window+16<<10) })
	busy := c.memory("VmRSS")
	t.Logf("VmRSS %d kB idle; with 32 stuck commands %d kB, RssAnon %d kB, VmHWM %d kB, %d threads",
		idle, busy, c.memory("RssAnon"), c.memory("VmHWM"), c.status("Threads", ""))
	if idle > 4<<10 || busy > limit {
		t.Errorf("VmRSS %d kB idle, %d kB with 32 stuck commands; at most 4096 and %d kB", idle, busy, limit)
	}
	// One more is refused: none of them has been silent for long.
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 126 || !strings.HasPrefix(stderr, `berth: 32 commands run in this guest already: end one; the oldest, "yes", runs for `) {
		t.Errorf("the 33rd: %q, code %d", stderr, code)
	}
	// Probes have streams of their own.
	if _, stderr, code := c.run(nil, "/berth-shim", "probe", "--", "true"); code != 0 {
		t.Errorf("a probe: %q, code %d", stderr, code)
	}
}

func TestOneReaderThatStopsHoldsUpNoOther(t *testing.T) {
	c, _, _ := running(t)
	rest := c.descriptors()
	stuck := c.client("/bin/guest", "yes")
	_, stuck.Stdout = pipe(t)
	if err := stuck.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = stuck.Process.Kill(), stuck.Wait() })
	data := strings.Repeat("0123456789abcde\n", 1<<16) // 1 MiB
	var all sync.WaitGroup
	for range 31 {
		all.Go(func() {
			if stdout, stderr, code := c.run(strings.NewReader(data), "/bin/guest", "cat"); stdout != data || code != 0 {
				t.Errorf("%d bytes of %d came back, %q, code %d", len(stdout), len(data), stderr, code)
			}
		})
	}
	all.Wait()
	t.Logf("after 31 times 1 MiB: VmRSS %d kB, RssAnon %d kB, VmHWM %d kB", c.memory("VmRSS"), c.memory("RssAnon"), c.memory("VmHWM"))
	eventually(t, "all but one client have gone", func() bool { return c.descriptors() <= rest+4 })
	_ = unix.Kill(clientOf(t, stuck), unix.SIGKILL)
	eventually(t, "the shim gives its memory back", func() bool { return c.memory("VmRSS") <= 6<<10 })
	t.Logf("then: VmRSS %d kB, RssAnon %d kB", c.memory("VmRSS"), c.memory("RssAnon"))
}

// descriptors is how many the shim has open.
func (c *container) descriptors() int {
	c.t.Helper()
	fds, err := os.ReadDir("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/fd")
	if err != nil {
		c.t.Fatal(err)
	}
	return len(fds)
}
