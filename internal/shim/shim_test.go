package shim_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

func TestConsoleGoesToTheLogsAndTheGuestsCodeToKubelet(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	_ = stdout.Close()
	a := c.take()
	qemu := a.handOver()
	write(t, qemu, []byte("Linux version 6.1\r\n\x1b[32mok\x1b[0m\r\n"))
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning})
	expect(t, logs, []byte("Linux version 6.1\r\n\x1b[32mok\x1b[0m\r\n"))
	write(t, qemu, []byte("reboot: Power down\r\n"))
	_ = qemu.Close()
	if s := a.await("console closed", func(s shimproto.State) bool { return s.ConsoleClosed }); s.InstanceID != "r1" {
		t.Errorf("state %+v", s)
	}
	a.send(shimproto.Exit{Code: 3, Reason: "GuestPanicked", Message: "not syncing: ünïcode"})
	if code := c.code(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	if rest, _ := io.ReadAll(logs); string(rest) != "reboot: Power down\r\n" {
		t.Errorf("then %q", rest)
	}
	if got, want := c.terminationMessage(), "GuestPanicked: not syncing: ünïcode"; got != want {
		t.Errorf("termination message %q, want %q", got, want)
	}
}

func TestTheLastByteIsOutBeforeTheEnd(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprintf("terminal %v", terminal), func(t *testing.T) {
			logs, stdin, stdout := streams(t, terminal)
			c := start(t, stdin, stdout)
			if !terminal {
				_ = stdout.Close() // of a terminal, containerd's shim reads what is left while any end is open
			}
			a := c.take()
			qemu := a.handOver()
			want := bytes.Repeat([]byte("0123456789abcde\n"), 2<<10) // 32 KiB
			write(t, qemu, want)
			_ = qemu.Close()
			a.send(shimproto.Exit{Code: 0}) // before the console's end was seen
			expect(t, logs, want)
			if code := c.code(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// streams are a container's stdin and stdout, a terminal or not, and where its
// runtime reads (and, of a terminal, writes).
func streams(t *testing.T, terminal bool) (runtime, stdin, stdout *os.File) {
	t.Helper()
	if !terminal {
		r, w := pipe(t)
		return r, null(t), w
	}
	master, slave := openTerminal(t)
	return master, slave, slave
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

func TestAnAttachedTerminalIsASerialLine(t *testing.T) {
	master, slave := openTerminal(t)
	c := start(t, slave, slave)
	_ = slave.Close()
	a := c.take()
	qemu := a.handOver()
	every := make([]byte, 256) // among them ^C ^D ^Z ^S ^Q ^\, carriage return and line feed
	for i := range every {
		every[i] = byte(i)
	}
	write(t, master, every)
	expect(t, qemu, every)
	write(t, qemu, every)
	expect(t, master, every) // unchanged, and nothing of what was typed came back before it
	select {
	case <-c.ended:
		t.Error("a typed character ended the shim")
	default:
	}
}

func TestTypingIntoAPipeEndsWithThePipe(t *testing.T) {
	stdin, typing := pipe(t)
	logs, stdout := pipe(t)
	c := start(t, stdin, stdout)
	a := c.take()
	qemu := a.handOver()
	write(t, typing, []byte("root\n"))
	_ = typing.Close()
	expect(t, qemu, []byte("root\n"))
	write(t, qemu, []byte("login"))
	expect(t, logs, []byte("login"))
}

func TestAStuckReaderOfLogsBlocksNobody(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	_ = stdout.Close()
	a := c.take()
	qemu := a.handOver()
	const size = 4 << 20
	line := []byte(strings.Repeat("x", 1023) + "\n")
	began := time.Now()
	for range size / len(line) {
		write(t, qemu, line)
	}
	t.Logf("%d bytes written in %v with stdout stuck; VmRSS %d kB, RssAnon %d kB", size, time.Since(began), c.memory("VmRSS"), c.memory("RssAnon"))
	// A new agent, and a probe, find the shim at work.
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning})
	eventually(t, "the probe succeeds", func() bool { _, err := c.started(); return err == nil })
	// Once somebody reads again, the mark says exactly what is missing, and the end is there.
	write(t, qemu, []byte("the end"))
	_ = qemu.Close()
	a.await("console closed", func(s shimproto.State) bool { return s.ConsoleClosed })
	a.send(shimproto.Exit{})
	got, err := io.ReadAll(logs)
	if err != nil {
		t.Fatal(err)
	}
	marks := regexp.MustCompile(`\r\n\[berth: (\d+) bytes of console dropped\]\r\n`)
	total, found := 0, marks.FindAllSubmatch(got, -1)
	for _, mark := range found {
		dropped, err := strconv.Atoi(string(mark[1]))
		if err != nil {
			t.Fatal(err)
		}
		total += dropped
	}
	kept := marks.ReplaceAll(got, nil)
	if total += len(kept); len(found) == 0 || total != size+len("the end") || !bytes.HasSuffix(kept, []byte("the end")) {
		t.Errorf("%d marks and %d bytes make %d bytes, not %d", len(found), len(kept), total, size+len("the end"))
	}
	if code := c.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestAStuckReaderDelaysTheEndNotForEver(t *testing.T) {
	_, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	qemu := a.handOver()
	write(t, qemu, make([]byte, 1<<20))
	_ = qemu.Close()
	a.await("console closed", func(s shimproto.State) bool { return s.ConsoleClosed })
	a.send(shimproto.Exit{Code: 9})
	if code := c.code(); code != 9 {
		t.Errorf("exit code %d", code)
	}
	if c.terminationMessage() != "" {
		t.Errorf("termination message %q", c.terminationMessage())
	}
}

func TestLogsThatNobodyHoldsOpenAreNoEnd(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	_, _ = logs.Close(), stdout.Close()
	a := c.take()
	qemu := a.handOver()
	write(t, qemu, make([]byte, 1<<20)) // each write of the shim's fails with EPIPE
	a.send(shimproto.Hello{})
	a.await("an answer", func(s shimproto.State) bool { return s.InstanceID == "r1" && !s.ConsoleClosed })
	a.send(shimproto.Exit{Code: 4})
	_ = qemu.Close()
	if code := c.code(); code != 4 {
		t.Errorf("exit code %d", code)
	}
}

func TestAgentsComeAndGoWithoutALostByte(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	qemu := a.handOver()
	want, done := make(chan []byte, 1), make(chan struct{})
	go func() { // the guest: never more under way than fits, so that nothing may be dropped
		var all []byte
		for i := 0; ; i++ {
			select {
			case <-done:
				_ = qemu.Close()
				want <- all
				return
			default:
			}
			line := fmt.Appendf(nil, "line %d of many\r\n", i)
			if _, err := qemu.Write(line); err != nil {
				t.Error(err)
			}
			got := make([]byte, len(line))
			if _, err := io.ReadFull(logs, got); err != nil || !bytes.Equal(got, line) {
				t.Errorf("read %q (%v), want %q", got, err, line)
			}
			all = append(all, line...)
		}
	}()
	for range 500 {
		_ = a.Close()
		a = c.take()
		if s := a.await("a state", func(shimproto.State) bool { return true }); s.InstanceID != "r1" || s.ConsoleClosed {
			t.Fatalf("a new agent hears %+v", s)
		}
	}
	// It attaches again, as one would whose predecessor swallowed the answer: nothing changes, nothing leaks.
	spare, console := sockets(t)
	a.send(consoleOf("r1"), console)
	_ = console.Close()
	expectEnd(t, spare)
	close(done)
	t.Logf("%d bytes arrived beside 500 agents", len(<-want))
	a.await("console closed", func(s shimproto.State) bool { return s.ConsoleClosed })
	_ = a.Close() // and away: the verdict waits for the next
	a = c.take()
	if s := a.await("a state", func(s shimproto.State) bool { return s.ConsoleClosed }); s.InstanceID != "r1" {
		t.Errorf("a new agent hears %+v", s)
	}
	a.send(shimproto.Exit{Code: 0, Reason: "PoweredOff"})
	if code := c.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if got := c.terminationMessage(); got != "PoweredOff" {
		t.Errorf("termination message %q", got)
	}
}

// expectEnd waits until the other end is closed.
func expectEnd(t *testing.T, f *os.File) {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

func TestOneContainerIsOneInstance(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	_, spare := sockets(t)
	a.send(consoleOf("r0")) // without its descriptor
	expect(t, logs, []byte("berth: refused instance r0: console console names descriptor 0, 0 were sent\r\n"))
	a.handOver()
	other, console := sockets(t)
	a.send(consoleOf("r2"), console)
	_ = console.Close()
	expectEnd(t, other)
	expect(t, logs, []byte("berth: refused instance r2: this container is instance r1\r\n"))
	a.send(shimproto.Hello{}, spare) // a descriptor that nobody asked for
	if s := a.await("a state", func(s shimproto.State) bool { return true }); s.InstanceID != "r1" {
		t.Errorf("state %+v", s)
	}
}

func TestTheShimSaysWhatItTakesAndSkipsTheRest(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	want := []shimproto.Kind{
		shimproto.KindConsole, shimproto.KindDHCP, shimproto.KindGuest, shimproto.KindExit, shimproto.KindDisplay,
	}
	if s := a.await("a state", func(shimproto.State) bool { return true }); s.Minor != shimproto.Minor || !reflect.DeepEqual(s.Kinds, want) {
		t.Errorf("the shim speaks minor version %d and takes %q; want %d, %q", s.Minor, s.Kinds, shimproto.Minor, want)
	}
	qemu, console := sockets(t)
	other, hologram := sockets(t)
	message := consoleOf("r1")
	message.Devices[0].FD = 1
	message.Devices = append([]shimproto.Device{{Kind: "hologram", Name: "h1", FD: 0}}, message.Devices...)
	a.send(message, hologram, console)
	_, _ = hologram.Close(), console.Close()
	a.await("attached", func(s shimproto.State) bool { return s.InstanceID == "r1" })
	expectEnd(t, other)
	expect(t, logs, []byte("berth: skipped device hologram h1: this shim does not support the kind\r\n"))
	write(t, qemu, []byte("login: "))
	expect(t, logs, []byte("login: "))
}

func TestATerminationIsToldAndNotObeyed(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	a.handOver()
	for _, ignored := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTSTP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH} {
		c.signal(ignored)
	}
	before := bootTime(t)
	c.signal(unix.SIGTERM)
	s := a.await("terminating", func(s shimproto.State) bool { return s.TerminatingSinceNS != 0 })
	if s.TerminatingSinceNS < before || s.TerminatingSinceNS > bootTime(t) {
		t.Errorf("terminating since %d, which is not now", s.TerminatingSinceNS)
	}
	c.signal(unix.SIGTERM)
	_ = a.Close()
	a = c.take()
	again := a.await("a state", func(s shimproto.State) bool { return s.TerminatingSinceNS != 0 })
	if !reflect.DeepEqual(again, s) {
		t.Errorf("after a second signal and to a second agent: %+v, before %+v", again, s)
	}
	a.send(shimproto.Exit{Code: 137, Reason: "ForcedOff"})
	if code := c.code(); code != 137 {
		t.Errorf("exit code %d", code)
	}
}

func bootTime(t *testing.T) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

func TestATerminationBeforeAnyGuestWaitsForTheAgent(t *testing.T) {
	c := start(t, null(t), null(t))
	eventually(t, "the shim is up", func() bool { return c.comm() == "shim:waiting" })
	c.signal(unix.SIGTERM)
	eventually(t, "the shim shows it", func() bool { return c.comm() == "shim:ending" })
	a := c.take()
	a.await("terminating", func(s shimproto.State) bool { return s.TerminatingSinceNS != 0 })
	a.send(shimproto.Exit{Code: 0})
	if code := c.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func (c *container) comm() string {
	c.t.Helper()
	comm, err := os.ReadFile("/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/comm")
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(string(comm))
}

func TestTheStartupProbeSeesTheGuest(t *testing.T) {
	c := start(t, null(t), null(t))
	a := c.take()
	step := func(comm string, wantErr bool) {
		t.Helper()
		eventually(t, comm, func() bool { return c.comm() == comm })
		out, err := c.started()
		if (err != nil) != wantErr || wantErr && out != "berth: the guest does not run: "+comm+"\n" || !wantErr && out != "" {
			t.Errorf("%s: the probe says %q, %v", comm, out, err)
		}
	}
	step("shim:waiting", true)
	qemu := a.handOver()
	step("shim:waiting", true)
	waited := make(chan error, 1)
	go func() {
		_, err := c.started("1m")
		waited <- err
	}()
	a.send(shimproto.Running{Phase: shimproto.PhasePaused})
	if err := <-waited; err != nil {
		t.Errorf("the probe that waited says %v", err)
	}
	step("shim:paused", false)
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning})
	step("shim:running", false)
	_ = qemu.Close()
	step("shim:ending", true)
	a.send(shimproto.Running{Phase: shimproto.PhaseRunning}) // late
	a.send(shimproto.Hello{})
	a.await("an answer", func(s shimproto.State) bool { return s.ConsoleClosed })
	step("shim:ending", true)
}

func TestOrphansOfExecAreReaped(t *testing.T) {
	c := start(t, null(t), null(t))
	c.take()
	if out, err := c.exec("sh", "-c", "(sleep 0.05; true) & exit 0"); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", c.cmd.Process.Pid)
	eventually(t, "the orphan is gone", func() bool {
		list, err := os.ReadFile(children)
		if err != nil {
			t.Fatal(err)
		}
		return len(list) == 0
	})
}

func TestTheShimIsSmall(t *testing.T) {
	const limit = 8 << 10 // kB, the design's goal
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	qemu := a.handOver()
	idle := c.memory("VmRSS")
	t.Logf("idle: VmRSS %d kB, RssAnon %d kB", idle, c.memory("RssAnon"))
	go func() { _, _ = io.Copy(io.Discard, logs) }()
	const size = 256 << 20
	chunk := bytes.Repeat([]byte("some text of the guest\r\n"), 2<<10)
	began := time.Now()
	for sent := 0; sent < size; sent += len(chunk) {
		write(t, qemu, chunk)
	}
	took := time.Since(began)
	busy := c.memory("VmRSS")
	t.Logf("after %d MiB at %.0f MB/s: VmRSS %d kB, RssAnon %d kB, VmHWM %d kB", size>>20, size/1e6/took.Seconds(), busy, c.memory("RssAnon"), c.memory("VmHWM"))
	if idle > limit || busy > limit {
		t.Errorf("VmRSS %d kB idle, %d kB busy; at most %d kB", idle, busy, limit)
	}
}

func TestTheShimStaysAloof(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/berth-dev/berth/cmd/berth-shim").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		first, _, _ := strings.Cut(dep, "/")
		if strings.Contains(first, ".") && !strings.HasPrefix(dep, "golang.org/x/sys/") && !strings.HasPrefix(dep, "github.com/berth-dev/berth/") {
			t.Errorf("the shim imports %s", dep)
		}
		if dep == "net" || dep == "log" {
			t.Errorf("the shim imports %s, which makes it larger", dep)
		}
	}
}
