package shims

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/test/env"
)

// What the test's own binary does as a shim is named in its environment.
const (
	behaviour = "BERTH_TEST_SHIM"

	speaks   = "speaks"   // it answers each message with its State
	silent   = "silent"   // it has a socket, and says nothing
	deaf     = "deaf"     // it has none
	babbles  = "babbles"  // it answers the first message with nonsense
	floods   = "floods"   // it sends as many different States as fit
	drips    = "drips"    // it sends another State every 20 ms
	repeats  = "repeats"  // it sends the same State every 20 ms
	odd      = "odd"      // it has a file in its socket's place
	consoles = "consoles" // it speaks, and takes consoles alone
)

const (
	vm  types.UID = "5d0c3c5e-0000-4000-8000-000000000001"
	pod types.UID = "5d0c3c5e-0000-4000-8000-000000000002"
)

// Two containers' IDs.
var first, second = strings.Repeat("1", 64), strings.Repeat("2", 64)

func TestMain(m *testing.M) {
	what := os.Getenv(behaviour)
	if what == "" {
		os.Exit(m.Run())
	}
	if err := beShim(what); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
}

func beShim(what string) error {
	state := shimproto.State{Minor: shimproto.Minor, Kinds: []shimproto.Kind{shimproto.KindConsole, shimproto.KindDHCP}}
	switch what {
	case deaf:
		return nil
	case odd:
		file, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		return unix.Dup3(int(file.Fd()), shimproto.AgentFD, unix.O_CLOEXEC)
	case babbles, floods, drips, repeats:
		return attack(what)
	case consoles:
		state.Kinds = state.Kinds[:1]
	}
	conn, err := shimproto.Listen()
	if err != nil || what == silent {
		return err
	}
	go conn.Receive(func(m shimproto.Message, files []*os.File) {
		switch m := m.(type) {
		case shimproto.HandOver:
			state.InstanceID = m.InstanceID
			for _, d := range m.Devices { // it tells on its standard output what came
				name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", files[d.FD].Fd()))
				fmt.Println(d.Kind, d.Name, name, err)
			}
		case shimproto.Running:
			fmt.Println(m.LastResetNS)
			state.RunningSinceNS = 7
		case shimproto.Exit:
			state.TerminatingSinceNS = 5
		case shimproto.Hello, shimproto.Acted, shimproto.State:
		}
		for _, f := range files {
			_ = f.Close()
		}
		conn.Publish(state)
	}, func(error) {})
	return nil
}

// attack sends on a socket of its own what no shim of ours sends.
func attack(what string) error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	go func() {
		for i := 1; ; i++ {
			message := fmt.Sprintf(`{"v":1,"state":{"minor":3,"takes":["console"],"terminatingSinceNS":%d}}`, i)
			switch what {
			case babbles:
				_, _ = unix.Read(ends[0], make([]byte, shimproto.MaxMessage))
				message = `{"v":1,"state":{"running`
			case repeats:
				message = `{"v":1,"state":{"minor":3,"takes":["console"]}}`
			}
			_, _ = unix.Write(ends[0], []byte(message))
			if what == drips || what == repeats {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	return unix.Dup3(ends[1], shimproto.AgentFD, unix.O_CLOEXEC)
}

// child is a process that stands for a berth's container.
type child struct {
	container runtime.Container
	cmd       *exec.Cmd
	says      *bufio.Scanner
}

// start starts a process in the cgroup of a berth's container, with a network namespace of its own.
func start(t *testing.T, what, container string) *child {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), behaviour+"="+what)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET}
	group := makeCgroup(t, container)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{runtime.Container{ID: container, State: runtime.Running, PID: cmd.Process.Pid}, cmd, bufio.NewScanner(out)}
	t.Cleanup(c.end)
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if got := c.line(); got != "ready" {
		t.Fatalf("the shim says %q", got)
	}
	return c
}

// line is what the process says next.
func (c *child) line() string {
	c.says.Scan()
	return c.says.Text()
}

// end kills the process and reaps it.
func (c *child) end() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// makeCgroup makes the cgroup of a berth's container, in one hierarchy on v1: the others name no container then, as they
// may. It is removed after the processes in it.
func makeCgroup(t *testing.T, container string) string {
	t.Helper()
	root := "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
		root = filepath.Join(root, "pids")
	}
	base := filepath.Join(root, fmt.Sprintf("berth-shims-%d", os.Getpid()))
	dir := filepath.Join(base, "kubepods", "pod"+string(pod), container)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		env.Missing(t, "needs root and the machine's cgroups: "+err.Error())
	}
	t.Cleanup(func() {
		for d := dir; d != root; d = filepath.Dir(d) {
			_ = os.Remove(d) // the upper ones may have another container yet
		}
	})
	return dir
}
