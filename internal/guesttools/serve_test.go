package guesttools

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/guesttools/tarball"
	"github.com/berth-dev/berth/test/env"
)

// waitTimeout is patience with a busy machine; nothing is to take that long.
const waitTimeout = time.Minute

// TestMain is also the guest program, with its port as descriptor 3, and its tar.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == "tar":
		os.Exit(tarball.Run(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	case os.Getenv("BERTH_TEST_GUEST") == "":
		os.Exit(m.Run())
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGTTIN) // as nohup, and whoever
	syscall.Umask(0o077)
	inheritable()
	_ = os.Unsetenv("BERTH_TEST_GUEST")
	link := newLink("v1.2")
	port, err := newPort(os.NewFile(3, "port"))
	if err == nil {
		err = link.Serve(port)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(0)
}

// machine is a guest program and the host's link to it.
type machine struct {
	t     *testing.T
	link  *guestlink.Link
	up    chan string
	guest *os.File // its end of the port
	proc  *exec.Cmd
}

func boot(t *testing.T) *machine {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "host")
	host, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	m := &machine{t: t, up: make(chan string, 100), guest: os.NewFile(uintptr(fds[1]), "guest")}
	m.link = &guestlink.Link{Changed: func(up bool, version string) {
		if up {
			m.up <- version
		}
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.link.Serve(host)
	}()
	m.start()
	t.Cleanup(func() {
		_ = host.Close()
		_ = m.guest.Close()
		<-done
		_ = m.proc.Process.Kill()
		_ = m.proc.Wait()
	})
	return m
}

func (m *machine) start() {
	m.t.Helper()
	m.proc = exec.Command("/proc/self/exe")
	m.proc.Env = append(os.Environ(), "BERTH_TEST_GUEST=1")
	m.proc.ExtraFiles, m.proc.Stderr = []*os.File{m.guest}, os.Stderr
	if err := m.proc.Start(); err != nil {
		m.t.Fatal(err)
	}
	select {
	case version := <-m.up:
		if version != "v1.2" {
			m.t.Fatalf("version %q", version)
		}
	case <-time.After(waitTimeout):
		m.t.Fatal("the guest program never said hello")
	}
}

// client is the host's end of a stream.
type client struct {
	t      *testing.T
	stream *guestlink.Stream
	mu     sync.Mutex
	out    [3]bytes.Buffer
	more   chan struct{}
	gate   chan struct{}
	ended  chan struct{}
	code   int
	err    error
}

func (c *client) Take(channel int, b []byte) error {
	if c.gate != nil {
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out[channel].Write(b)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return nil
}
func (c *client) Ended(code int, err error) { c.code, c.err = code, err; close(c.ended) }
func (*client) Resize(guestlink.Size)       {}
func (*client) Signal(int)                  {}

func (c *client) text(channel int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out[channel].String()
}

// until waits for output.
func (c *client) until(text string) {
	c.t.Helper()
	late := time.After(waitTimeout)
	for !strings.Contains(c.text(guestlink.Stdout), text) {
		select {
		case <-c.more:
		case <-late:
			c.t.Fatalf("no %q in %.2000q, %.2000q", text, c.text(guestlink.Stdout), c.text(guestlink.Stderr))
		}
	}
}

func (c *client) write(text string) {
	c.t.Helper()
	if err := c.stream.Write(guestlink.Stdin, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// wait returns the exit code, and what came.
func (c *client) wait() (code int, stdout, stderr string) {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(waitTimeout):
		c.t.Fatalf("never ended: %.2000q, %.2000q", c.text(guestlink.Stdout), c.text(guestlink.Stderr))
	}
	if c.err != nil {
		c.t.Fatalf("ended by %v", c.err)
	}
	return c.code, c.text(guestlink.Stdout), c.text(guestlink.Stderr)
}

func (m *machine) open(command guestlink.Command, gate chan struct{}) *client {
	m.t.Helper()
	b, err := command.Encode()
	if err != nil {
		m.t.Fatal(err)
	}
	c := &client{t: m.t, more: make(chan struct{}, 1), ended: make(chan struct{}), gate: gate}
	if c.stream, err = m.link.Open(b, c); err != nil {
		m.t.Fatal(err)
	}
	return c
}

func (m *machine) sh(script string) *client {
	m.t.Helper()
	return m.open(guestlink.Command{Args: []string{"sh", "-c", script}}, nil)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "the guest program needs root")
	}
}

func TestCommandsRunAsInAShell(t *testing.T) {
	needRoot(t)
	m := boot(t)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sh := func(script string) []string { return []string{"sh", "-c", script} }
	for _, c := range []struct {
		name           string
		command        guestlink.Command
		code           int
		stdout, stderr string // the beginning of stderr
	}{
		{"output and code 0", guestlink.Command{Args: sh("echo out; echo err >&2")}, 0, "out\n", "err\n"},
		{"code 3", guestlink.Command{Args: sh("exit 3")}, 3, "", ""},
		{"a signal", guestlink.Command{Args: sh("kill -9 $$")}, 137, "", ""},
		{"no such command", guestlink.Command{Args: []string{"no-such"}}, 127, "", "berth: the guest has no command \"no-such\""},
		{"no such path", guestlink.Command{Args: []string{"/no/such"}}, 127, "", "berth: the guest has no command"},
		{"no such interpreter", guestlink.Command{Args: []string{write("interpreter", "#!/no/such\n", 0o755)}}, 127, "", "berth: "},
		{"a file without x", guestlink.Command{Args: []string{write("plain", "#!/bin/sh\n", 0o644)}}, 126, "", "berth: "},
		{"a directory", guestlink.Command{Args: []string{dir}}, 126, "", "berth: "},
		{"no program", guestlink.Command{Args: []string{write("noise", "noise\n", 0o755)}}, 126, "", "berth: "},
		{"no such user", guestlink.Command{Args: sh(""), User: "no-such"}, 126, "", "berth: the guest has no user \"no-such\""},
		{"no such group", guestlink.Command{Args: sh(""), User: "daemon:no-such"}, 126, "", "berth: the guest has no group \"no-such\""},
		{"no such directory", guestlink.Command{Args: sh(""), Dir: "/no/such"}, 126, "", "berth: the guest has no directory \"/no/such\""},
		{"a file as directory", guestlink.Command{Args: sh(""), Dir: "/etc/passwd"}, 126, "", "berth: the guest has no directory"},
		{"a directory that is not the user's", guestlink.Command{Args: sh(""), User: "nobody", Dir: "/root"}, 126, "", "berth: user nobody cannot run "},
		{"the environment", guestlink.Command{Args: sh(`echo $HOME $SHELL $LOGNAME $PATH $A $0`), Env: []string{"A=b c"}}, 0, "/root /bin/bash root " + defaultPath + " b c sh\n", ""},
		{"nothing more in it", guestlink.Command{Args: []string{"env"}}, 0, "HOME=/root\nSHELL=/bin/bash\nLOGNAME=root\nUSER=root\nPATH=" + defaultPath + "\n", ""},
		{"no variable", guestlink.Command{Args: []string{"env"}, Env: []string{"PATH"}}, 126, "", "berth: \"PATH\" is no KEY=VALUE"},
		{"a user's", guestlink.Command{Args: sh(`echo $HOME $LOGNAME; id -u; id -g; id -G; pwd`), User: "daemon"}, 0, "/usr/sbin daemon\n1\n1\n1\n/usr/sbin\n", ""},
		{"numbers", guestlink.Command{Args: sh(`id -u; id -G; echo $HOME; pwd`), User: "4321:1234"}, 0, "4321\n1234\n/\n/\n", ""},
		{"another PATH", guestlink.Command{Args: []string{"mine"}, Env: []string{"PATH=" + dir + "/bin"}}, 127, "", "berth: "},
		{"a path below the directory", guestlink.Command{Args: []string{"./" + filepath.Base(write("script", "#!/bin/sh\necho $0 $#", 0o755)), "a", ""}, Dir: dir}, 0, dir + "/script 2\n", ""},
		{"umask 022", guestlink.Command{Args: sh("umask")}, 0, "0022\n", ""},
		{
			"no signal is ignored or blocked",
			// Signals 32 and 33 are the C library's, which no program can reach.
			guestlink.Command{Args: sh(`while read -r name mask; do case $name in SigBlk: | SigIgn:) echo $name $((0x$mask & ~0x180000000)) ;; esac; done </proc/self/status`)},
			0,
			"SigBlk: 0\nSigIgn: 0\n", "",
		},
		{"a session of its own", guestlink.Command{Args: sh(`read -r a b c d e f rest </proc/$$/stat; [ $a = $e ] && [ $a = $f ] && echo leader`)}, 0, "leader\n", ""},
		{"no descriptors but three", guestlink.Command{Args: sh("for i in 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$i ] || echo $i; done")}, 0, "", ""},
	} {
		client := m.open(c.command, nil)
		client.stream.CloseStdin()
		code, stdout, stderr := client.wait()
		if code != c.code || stdout != c.stdout || !strings.HasPrefix(stderr, c.stderr) {
			t.Errorf("%s: code %d, stdout %q, stderr %q; want %d, %q, %q", c.name, code, stdout, stderr, c.code, c.stdout, c.stderr)
		}
	}
}

func TestStdinReachesTheCommandAndEnds(t *testing.T) {
	m := boot(t)
	c := m.open(guestlink.Command{Args: []string{"cat"}}, nil)
	c.write("one\n")
	c.until("one\n")
	c.write("two\n")
	c.stream.CloseStdin()
	if code, stdout, _ := c.wait(); code != 0 || stdout != "one\ntwo\n" {
		t.Errorf("code %d, %q", code, stdout)
	}
	c = m.open(guestlink.Command{Args: []string{"true"}}, nil) // reads nothing
	_ = c.stream.Write(guestlink.Stdin, make([]byte, 1<<20))
	if code, _, _ := c.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestATerminal(t *testing.T) {
	needRoot(t)
	m := boot(t)
	const script = `stty size; tty; echo $TERM; stat -c %U $(tty)
		trap 'echo resized to $(stty size)' WINCH; trap 'echo interrupted' INT; trap 'exit 5' QUIT
		read -r line; echo "got $line"; while :; do sleep 0.01; done`
	c := m.open(guestlink.Command{Args: []string{"sh", "-c", script}, Terminal: true, Size: guestlink.Size{Rows: 33, Columns: 101}, User: "daemon"}, nil)
	c.until("33 101\r\n/dev/pts/")
	c.until("xterm\r\ndaemon\r\n")
	c.write("typed\n")
	c.until("typed\r\ngot typed\r\n")
	c.stream.Resize(guestlink.Size{Rows: 44, Columns: 202})
	c.until("resized to 44 202")
	c.write("\x03")
	c.until("interrupted")
	c.write("\x1c")
	if code, _, stderr := c.wait(); code != 5 || stderr != "" {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestBytesArriveInOrder(t *testing.T) {
	m := boot(t)
	for _, size := range []int{1, 7, 2049, 4096, 10_000, 1 << 20} { // of a write: pages that are full, and that are not
		want := strings.Repeat("0123456789abc", size)[:10*size]
		c := m.open(guestlink.Command{Args: []string{"sh", "-c", fmt.Sprintf("tee /dev/stderr | dd bs=%d 2>/dev/null", size)}}, nil)
		c.write(want)
		c.stream.CloseStdin()
		if code, stdout, stderr := c.wait(); code != 0 || stdout != want || stderr != want {
			t.Errorf("writes of %d: code %d, %d and %d bytes of %d", size, code, len(stdout), len(stderr), len(want))
		}
	}
}

func TestTheLastBytesOfATerminalArrive(t *testing.T) {
	m := boot(t)
	for range 20 {
		c := m.open(guestlink.Command{Args: []string{"sh", "-c", "yes 0123456789 | head -n 3000; echo end"}, Terminal: true}, nil)
		if code, stdout, _ := c.wait(); code != 0 || len(stdout) != 3000*12+5 || !strings.HasSuffix(stdout, "end\r\n") {
			t.Fatalf("code %d, %d bytes", code, len(stdout))
		}
	}
}

func TestAProcessLeftBehindHoldsUpNoEnd(t *testing.T) {
	m := boot(t)
	for _, script := range []string{"sleep 1000 & echo $!", "yes & echo $!; exit 0"} {
		for _, terminal := range []bool{false, true} {
			c := m.open(guestlink.Command{Args: []string{"sh", "-c", "trap '' HUP; " + script}, Terminal: terminal}, nil)
			code, stdout, _ := c.wait()
			for line := range strings.Lines(stdout) {
				if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			if code != 0 {
				t.Errorf("%s: code %d", script, code)
			}
		}
	}
}

// gone waits until no process has the word among its arguments.
func gone(t *testing.T, word string) {
	t.Helper()
	late := time.Now().Add(waitTimeout)
	for {
		found := ""
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, path := range all {
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(word)) {
				found = string(data)
			}
		}
		if found == "" {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%q lives on", found)
		}
		time.Sleep(10 * time.Millisecond) // nothing tells of the end of others' processes
	}
}

func TestAResetHangsUpTheWholeSession(t *testing.T) {
	m := boot(t)
	word := "1000.0" + strconv.Itoa(os.Getpid())
	for _, terminal := range []bool{false, true} {
		polite := m.open(guestlink.Command{Args: []string{"sh", "-c", "trap 'echo bye >&2; exit' HUP; echo on; sleep " + word}, Terminal: terminal}, nil)
		stubborn := m.open(guestlink.Command{Args: []string{"sh", "-c", "trap '' HUP; sleep " + word + " & echo on; wait"}, Terminal: terminal}, nil)
		jobs := m.open(guestlink.Command{Args: []string{"bash", "-c", "set -m; nohup sleep " + word + " & echo on; sleep " + word}, Terminal: terminal}, nil)
		for _, c := range []*client{polite, stubborn, jobs} {
			c.until("on")
			c.stream.Reset()
			<-c.ended
			if !errors.Is(c.err, guestlink.ErrReset) {
				t.Errorf("ended by %v", c.err)
			}
		}
	}
	gone(t, word)
}

func TestADetachedCommandLivesOn(t *testing.T) {
	m := boot(t)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	c := m.open(guestlink.Command{Args: []string{"sh", "-c", "ls -l /proc/$$/fd >" + path}, Detached: true}, nil)
	if code, stdout, stderr := c.wait(); code != 0 || stdout != "" || stderr != "" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), "/dev/null") < 2 {
		t.Errorf("%s %v", text, err)
	}
	c = m.open(guestlink.Command{Args: []string{"no-such"}, Detached: true}, nil)
	if code, _, stderr := c.wait(); code != 127 || stderr == "" {
		t.Errorf("code %d, %q", code, stderr)
	}
}

func TestASignalReachesTheCommand(t *testing.T) {
	m := boot(t)
	c := m.sh("trap 'echo got it; exit 9' USR1; echo on; while :; do sleep 0.01; done")
	c.until("on")
	c.stream.Signal(byte(syscall.SIGUSR1))
	if code, stdout, _ := c.wait(); code != 9 || stdout != "on\ngot it\n" {
		t.Errorf("code %d, %q", code, stdout)
	}
}

func TestThirtyTwoAtOnceBesideAStoppedReader(t *testing.T) {
	m := boot(t)
	gate := make(chan struct{})
	text := strings.Repeat("0123456789abcdef", 64<<10) // 1 MiB
	stopped := m.open(guestlink.Command{Args: []string{"cat"}}, gate)
	go func() {
		_ = stopped.stream.Write(guestlink.Stdin, []byte(text))
		stopped.stream.CloseStdin()
	}()
	var others sync.WaitGroup
	for range 31 {
		others.Go(func() {
			c := m.open(guestlink.Command{Args: []string{"cat"}}, nil)
			if err := c.stream.Write(guestlink.Stdin, []byte(text)); err != nil {
				t.Error(err)
			}
			c.stream.CloseStdin()
			if code, stdout, _ := c.wait(); code != 0 || stdout != text {
				t.Errorf("code %d, %d bytes", code, len(stdout))
			}
		})
	}
	others.Wait()
	close(gate)
	if code, stdout, _ := stopped.wait(); code != 0 || stdout != text {
		t.Errorf("the stopped one: code %d, %d bytes", code, len(stdout))
	}
}

func TestAKilledProgramIsFollowedByAnother(t *testing.T) {
	m := boot(t)
	for range 10 {
		c := m.open(guestlink.Command{Args: []string{"yes"}}, nil)
		c.until("y\n")
		if err := m.proc.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = m.proc.Wait()
		m.start()
		select {
		case <-c.ended:
		case <-time.After(waitTimeout):
			t.Fatal("the stream of a killed program never ends")
		}
		if c.err == nil {
			t.Errorf("it ended with code %d", c.code)
		}
		again := m.sh("echo again")
		if code, stdout, _ := again.wait(); code != 0 || stdout != "again\n" {
			t.Errorf("code %d, %q", code, stdout)
		}
	}
}

func TestTheHostsEndEndsCommands(t *testing.T) {
	m := boot(t)
	word := "2000.0" + strconv.Itoa(os.Getpid())
	c := m.sh("echo on; sleep " + word)
	c.until("on")
	m.link.Leave()
	<-c.ended
	gone(t, word)
}

func TestTarIsThereWhereTheGuestHasNone(t *testing.T) {
	m := boot(t)
	from, to := t.TempDir(), t.TempDir()
	if err := os.WriteFile(from+"/file", []byte("content"), 0o640); err != nil {
		t.Fatal(err)
	}
	run := func(stdin string, args ...string) string {
		t.Helper()
		c := m.open(guestlink.Command{Args: args, Dir: from, Env: []string{"PATH=/nowhere"}}, nil)
		if stdin != "" {
			c.write(stdin)
		}
		c.stream.CloseStdin()
		code, stdout, stderr := c.wait()
		if code != 0 || stderr != "" {
			t.Fatalf("%v: code %d, %q", args, code, stderr)
		}
		return stdout
	}
	run(run("", "tar", "cf", "-", "file"), "tar", "-xmf", "-", "-C", to)
	if text, err := os.ReadFile(to + "/file"); err != nil || string(text) != "content" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestAMebibyteOfArgumentsIsTooLong(t *testing.T) {
	_, err := guestlink.Command{Args: []string{"echo", strings.Repeat("x", 1<<20)}}.Encode()
	if !errors.Is(err, guestlink.ErrTooLong) {
		t.Error(err)
	}
	m := boot(t)
	c := m.open(guestlink.Command{Args: []string{"printf", "%s", strings.Repeat("x", 32_000)}}, nil)
	if code, stdout, _ := c.wait(); code != 0 || len(stdout) != 32_000 {
		t.Errorf("code %d, %d bytes", code, len(stdout))
	}
}

var _ io.ReadWriteCloser = (*port)(nil)
