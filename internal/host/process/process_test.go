package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

const uuid = "5d0c3c5e-0000-4000-8000-00000000a001"

func TestFindTakesOnlyQEMU(t *testing.T) {
	if found, err := (Table{}).Find(uuid); err != nil || len(found) != 0 {
		t.Fatalf("without one: %v, %v", found, err)
	}
	// tail does not mind our arguments as names of files that do not exist.
	cmd := exec.Command("/usr/bin/tail", "-F", "-q", "--pid", fmt.Sprint(os.Getpid()), "--", "/dev/null", "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if found, err := (Table{}).Find(uuid); err != nil || len(found) != 0 {
		t.Errorf("another program with QEMU's argument counts: %v, %v", found, err)
	}
}

func TestFind(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		env.Missing(t, "needs qemu-system-x86_64")
	}
	cmd := exec.Command(qemu, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	found, err := (Table{}).Find(uuid)
	if err != nil || len(found) != 1 || found[0] != (Process{PID: cmd.Process.Pid, UID: uint32(os.Getuid())}) {
		t.Fatalf("found %v, %v", found, err)
	}
	if helpers, err := (Table{}).VhostThreads(found[0].PID); err != nil || len(helpers) != 0 {
		t.Errorf("helpers of a QEMU without vhost: %v, %v", helpers, err)
	}
	if err := (Table{}).Kill(found[0]); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if found, err := (Table{}).Find(uuid); err != nil || len(found) != 0 {
		t.Errorf("after its end: %v, %v", found, err)
	}
}

// TestFindReadsOn: arguments that come before -uuid may be long, as a CPU with all its features is.
func TestFindReadsOn(t *testing.T) {
	cmd := exec.Command(fakeQEMU(t), "-q", "-f", "--", "/dev/null", strings.Repeat("x", firstCmdline-60), "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if found, err := (Table{}).Find(uuid); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
}

// TestNamed finds a process of the host by its name, and none of a container.
func TestNamed(t *testing.T) {
	program := fakeQEMU(t)
	name := filepath.Base(program)
	container(t, program+" -q -f /dev/null & sleep 0.2")
	if pid, args, err := Named(name); !errors.Is(err, ErrAbsent) {
		t.Errorf("of a container's: %d %q, %v", pid, args, err)
	}
	cmd := exec.Command(program, "-q", "-f", "/dev/null")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	pid, args, err := Named(name)
	if err != nil || pid != cmd.Process.Pid || !slices.Equal(args, cmd.Args) {
		t.Errorf("process %d with %q, %v; want %d with %q", pid, args, err, cmd.Process.Pid, cmd.Args)
	}
}

func TestCopyOOMScore(t *testing.T) {
	start := func() int {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd.Process.Pid
	}
	from, to := start(), start()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", from), []byte("987"), 0); err != nil {
		t.Fatal(err)
	}
	if err := (Table{}).CopyOOMScore(from, to); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", to)); err != nil || string(got) != "987\n" {
		t.Errorf("it has %q, %v", got, err)
	}
	if err := (Table{}).CopyOOMScore(1<<30, to); err == nil {
		t.Error("nobody's was copied")
	}
}

// TestScansAreShared has many callers wait for a scan under way: all of them find what began after that.
func TestScansAreShared(t *testing.T) {
	qemu := fakeQEMU(t)
	scans.scanning.Lock() // a scan is under way
	results := make(chan int)
	for range 10 {
		go func() {
			found, err := (Table{}).Find(uuid)
			if err != nil {
				t.Error(err)
			}
			results <- len(found)
		}()
	}
	env.Eventually(t, "somebody to wait", func() bool {
		scans.mu.Lock()
		defer scans.mu.Unlock()
		return scans.next != nil
	})
	cmd := exec.Command(qemu, "-F", "-q", "--pid", fmt.Sprint(os.Getpid()), "--", "/dev/null", "-uuid", uuid)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	scans.scanning.Unlock()
	for range 10 {
		if n := <-results; n != 1 {
			t.Errorf("found %d, want the one that began before the scan", n)
		}
	}
}

// BenchmarkFindAmong500 is a busy host: 500 processes that are none of ours.
func BenchmarkFindAmong500(b *testing.B) {
	for range 500 {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	BenchmarkFind(b)
}

func BenchmarkFind(b *testing.B) {
	for b.Loop() {
		if _, err := (Table{}).Find(uuid); err != nil {
			b.Fatal(err)
		}
	}
}

func TestHandle(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if !h.Alive() {
		t.Error("a process that runs is not alive")
	}
	ended := make(chan error, 1)
	go func() { ended <- h.Wait() }()
	if err := (Table{}).Kill(Process{PID: cmd.Process.Pid, UID: uint32(os.Getuid())}); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if h.Alive() {
		t.Error("a killed process is alive")
	}
	_ = cmd.Wait()
	if err := (Table{}).Kill(Process{PID: cmd.Process.Pid}); err != nil {
		t.Errorf("killing one that is gone: %v", err)
	}
}

func TestAClosedHandleKnowsNobodyAlive(t *testing.T) {
	h, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil || h.Alive() {
		t.Errorf("closed with %v, alive %t", err, h.Alive())
	}
}

func TestUUIDOf(t *testing.T) {
	for _, tt := range []struct{ name, cmdline, want string }{
		{"libvirt's", "qemu\x00-uuid\x00" + uuid + "\x00-display\x00none\x00", uuid},
		{"a kernel's command line that hides it", "qemu\x00-uuid\x00" + uuid + "\x00-append\x00-uuid\x00-x\x00", uuid},
		{"a kernel's command line that claims it", "qemu\x00-uuid\x00other\x00-append\x00-uuid\x00" + uuid + "\x00", "other"},
		{"a name that holds it", "qemu\x00-name\x00-uuid " + uuid + "\x00", ""},
		{"cut off", "qemu\x00-uuid", ""},
		{"cut off in its midst", "qemu\x00-uuid\x00" + uuid[:9], ""},
		{"nothing", "", ""},
	} {
		if got := parseUUID([]byte(tt.cmdline)); got != tt.want {
			t.Errorf("%s: %q", tt.name, got)
		}
	}
}

func TestIsKernelThread(t *testing.T) {
	for _, tt := range []struct {
		name, stat string
		want       bool
	}{
		{"kthreadd", "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0", true},
		{"a process", "9 (vhost-7) S 1 9 9 0 -1 4194304 0 0", false},
		{"a process with a devious name", "9 (x) S 2 0 0 0 -1 2129984 0) S 1 9 9 0 -1 4194304 0 0", false},
		{"nothing", "", false},
		{"half a line", "9 (x) S 2", false},
	} {
		if got := isKernelThread(tt.stat); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
	stat, err := os.ReadFile("/proc/2/stat")
	if err != nil || !isKernelThread(string(stat)) {
		t.Errorf("kthreadd itself is none: %q, %v", stat, err)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0")
	f.Add("Name:\tqemu\nState:\tZ (zombie)\nNSpid:\t42\n")
	f.Fuzz(func(t *testing.T, text string) {
		isKernelThread(text)
		parseStatus(text)
	})
}

func TestParseStatus(t *testing.T) {
	tests := []struct {
		name, status  string
		ended, nested bool
	}{
		{"a process of the host", "Name:\tqemu\nState:\tS (sleeping)\nNSpid:\t42\n", false, false},
		{"a zombie", "State:\tZ (zombie)\nNSpid:\t42\n", true, false},
		{"a process of a container", "State:\tR (running)\nNSpid:\t42\t7\n", false, true},
		{"nothing", "", false, false},
	}
	for _, tt := range tests {
		if ended, nested := parseStatus(tt.status); ended != tt.ended || nested != tt.nested {
			t.Errorf("%s: ended %t, nested %t", tt.name, ended, nested)
		}
	}
}

func TestTerminate(t *testing.T) {
	start := func(script string) Process {
		cmd := exec.Command("sh", "-c", script+"; echo; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		if _, err := out.Read(make([]byte, 1)); err != nil { // it is set up now
			t.Fatal(err)
		}
		return Process{PID: cmd.Process.Pid, UID: uint32(os.Getuid())}
	}
	willing := start("true")
	if err := (Table{}).Terminate(willing, time.Minute); err != nil {
		t.Errorf("one that listens: %v", err)
	}
	if err := (Table{}).Terminate(willing, time.Minute); err != nil {
		t.Errorf("one that has ended: %v", err)
	}
	if err := (Table{}).Terminate(start("trap '' TERM"), 10*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one that does not listen: %v", err)
	}
}
