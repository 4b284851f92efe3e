package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// helper names, in the environment, what the test's own binary does as a child.
const helper = "BERTH_TEST_CGROUP_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "enter":
		if err := enterNamespaceOf(os.Getppid()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		ns, _ := os.Readlink("/proc/thread-self/ns/cgroup")
		fmt.Println(ns, os.Args[1:])
	case "eat": // 64 MiB, once told to; and then it has them until its end
		_, _ = os.Stdin.Read(make([]byte, 1))
		eaten := bytes.Repeat([]byte{1}, 64<<20)
		fmt.Println(len(eaten))
		_, _ = os.Stdin.Read(make([]byte, 1))
		runtime.KeepAlive(eaten)
	default:
		os.Exit(m.Run())
	}
}

// need skips a test without root, and fails instead where the real parts are promised.
func need(t *testing.T) *Host {
	t.Helper()
	h, err := New()
	if os.Getuid() != 0 || err != nil {
		if os.Getenv("BERTH_TEST_REQUIRE") != "" {
			t.Fatalf("needs root and the machine's cgroups: %v", err)
		}
		t.Skipf("needs root and the machine's cgroups: %v", err)
	}
	return h
}

// container makes a container's cgroup in every hierarchy that this process is in.
func container(t *testing.T, h *Host, id string) Group {
	t.Helper()
	own, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	g := Group{paths: map[string]string{}}
	for hierarchy, at := range own.paths {
		if _, err := h.dir(hierarchy, at); err != nil {
			continue
		}
		base := filepath.Join(at, fmt.Sprintf("berth-test-%d-%s", os.Getpid(), id[:2]))
		p := filepath.Join(base, "kubepods", "pod"+uid, id)
		dir, _ := h.dir(hierarchy, p)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for p != at {
				dir, _ := h.dir(hierarchy, p)
				if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
				}
				p = filepath.Dir(p)
			}
		})
		if hierarchy == "cpuset" { // a new one is empty, and takes nobody
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				copyDown(t, h, at, p, file)
			}
		}
		g.paths[hierarchy] = p
	}
	return g
}

func copyDown(t *testing.T, h *Host, from, to, file string) {
	t.Helper()
	top, _ := h.dir("cpuset", from)
	data, err := os.ReadFile(filepath.Join(top, file))
	if err != nil {
		t.Fatal(err)
	}
	rel, _ := filepath.Rel(from, to)
	for part := range strings.SplitSeq(rel, "/") {
		top = filepath.Join(top, part)
		if err := os.WriteFile(filepath.Join(top, file), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// child starts this test's binary as a helper that waits for its standard input.
func child(t *testing.T) (*exec.Cmd, func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helper+"=eat", "GOMAXPROCS=4")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, func() {
		_, _ = in.Write([]byte{'\n'})
		_, _ = out.Read(make([]byte, 64)) // when it has eaten, or was killed
	}
}

func TestPlace(t *testing.T) {
	h := need(t)
	a, b := container(t, h, idA), container(t, h, idB)
	first, _ := child(t)
	second, _ := child(t)
	one, two := first.Process.Pid, second.Process.Pid

	if err := h.Place(a, one, two); err != nil {
		t.Fatal(err)
	}
	if err := h.Place(a, one, two); err != nil {
		t.Fatal("again:", err)
	}
	at, err := Of(one)
	if err != nil {
		t.Fatal(err)
	}
	if pod, id, ok := at.Container(); pod != uid || id != idA || !ok {
		t.Errorf("Container() of %s = %q, %q, %t", at, pod, id, ok)
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", one))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/cgroup", one, task.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if thread, err := Parse(data); err != nil || !maps.Equal(thread.paths, at.paths) {
			t.Errorf("thread %s is in %s, its process in %s (%v)", task.Name(), thread, at, err)
		}
	}
	for g, want := range map[*Group]bool{&a: true, &b: false} {
		if got, err := h.Contains(*g, one); got != want || err != nil {
			t.Errorf("Contains(%s) = %t, %v", g, got, err)
		}
	}
	if err := h.Place(b, one); err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]bool{one: false, two: true} {
		if got, err := h.Contains(a, pid); got != want || err != nil {
			t.Errorf("after one has left, Contains(%d) = %t, %v", pid, got, err)
		}
	}
}

func TestPlaceFails(t *testing.T) {
	h := need(t)
	alive := os.Getpid()
	gone := Group{paths: map[string]string{}}
	live := container(t, h, idA)
	for hierarchy, p := range live.paths {
		gone.paths[hierarchy] = filepath.Join(filepath.Dir(p), idB)
	}
	cmd, _ := child(t)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	if err := h.Place(gone, alive); !errors.Is(err, ErrGone) || fault.ReasonOf(err) != v1alpha1.ReasonPlacementFailed {
		t.Errorf("Place() into a cgroup that is gone = %v", err)
	}
	if err := h.Place(live, cmd.Process.Pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Place() of a process that is gone = %v", err)
	}
	if err := h.Place(Group{paths: map[string]string{"": "/"}}, alive); err == nil {
		t.Error("Place() into no container has worked")
	}
	if _, err := h.OOMKills(gone); !errors.Is(err, ErrGone) {
		t.Errorf("OOMKills() = %v, want ErrGone", err)
	}
	if _, err := Of(cmd.Process.Pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Of() = %v, want ErrNoProcess", err)
	}
}

func TestOOMKills(t *testing.T) {
	h := need(t)
	g := container(t, h, idA)
	dir, v2, err := h.memory(g)
	if err != nil {
		t.Skip(err) // v2 without the controller handed down
	}
	file := "memory.limit_in_bytes"
	if v2 {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(strconv.Itoa(32<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd, eat := child(t)
	if err := h.Place(g, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if n, err := h.OOMKills(g); n != 0 || err != nil {
		t.Fatalf("OOMKills() before = %d, %v", n, err)
	}
	eat()
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != unix.SIGKILL {
		t.Fatalf("the process that ate too much ended with %v", status)
	}
	if n, err := h.OOMKills(g); n != 1 || err != nil {
		t.Errorf("OOMKills() after = %d, %v; want 1", n, err)
	}
}

// TestUncharged: what a process takes before it comes into the container stays charged to where it was.
func TestUncharged(t *testing.T) {
	h := need(t)
	g := container(t, h, idA)
	if _, _, err := h.memory(g); err != nil {
		t.Skip(err) // v2 without the controller handed down
	}
	const most = 16 << 20 // bytes, of Go's runtime
	for name, early := range map[string]bool{"before": true, "in it": false} {
		cmd, eat := child(t)
		if early {
			eat()
		}
		if err := h.Place(g, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if !early {
			eat()
		}
		n, err := h.Uncharged(g, cmd.Process.Pid)
		if err != nil || early != (n >= 64<<20) || !early && n > most {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := h.Uncharged(g, cmd.Process.Pid); !errors.Is(err, ErrGone) {
			t.Errorf("after its end: %v, want ErrGone", err)
		}
	}
}

func TestEnterNamespace(t *testing.T) {
	need(t)
	want, err := os.Readlink("/proc/self/ns/cgroup") // the test stands for process 1
	if err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string]uintptr{"from a namespace of its own": unix.CLONE_NEWCGROUP, "already there": 0} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "one", "two words")
			cmd.Env = append(os.Environ(), helper+"=enter")
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
			out, err := cmd.CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != want+" [one two words]" {
				t.Errorf("helper printed %q, %v; want to be in %s", got, err, want)
			}
		})
	}
}
