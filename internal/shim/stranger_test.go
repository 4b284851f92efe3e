package shim_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stranger is a program that knows how to talk to the shim, and does so wrongly.
var stranger = sync.OnceValues(func() (string, error) { return build("internal/shim/testdata/stranger") })

// foreign has a stranger do what verb says in some of the container's namespaces, and returns what it prints first.
func (c *container) foreign(verb string, namespaces ...string) (said string, end func()) {
	c.t.Helper()
	self := filepath.Join(c.root, "stranger") // where the container's user may execute it
	arg := append([]string{"--target", strconv.Itoa(c.cmd.Process.Pid), "--setuid=65532", "--setgid=65532"}, namespaces...)
	for _, n := range namespaces {
		if n == "--mount" {
			root := "/proc/" + strconv.Itoa(c.cmd.Process.Pid) + "/root"
			arg = append(arg, "--root="+root, "--wd="+root)
			self = "/stranger"
		}
	}
	cmd := exec.Command("nsenter", append(arg, self, verb)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, w := pipe(c.t)
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	_ = w.Close()
	end = func() { _, _ = in.Close(), cmd.Wait() }
	c.t.Cleanup(end)
	if err := out.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, 1<<10)
	n, err := out.Read(buf)
	if err != nil {
		c.t.Fatalf("%s says nothing: %v", verb, err)
	}
	return string(buf[:n]), end
}

// withStranger gives the container that program, as no image of a berth has it.
func withStranger(c *container) {
	c.t.Helper()
	path, err := stranger()
	if err == nil { // the directory for those outside of the container
		err = errors.Join(os.Link(path, filepath.Join(c.root, "stranger")), os.Chmod(filepath.Dir(c.root), 0o755))
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func TestAnotherContainersProcessIsHungUpOn(t *testing.T) {
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout, withStranger)
	p := c.take().handOverPorts()
	answer(t, p.guest)
	if said, end := c.foreign("dial", "--pid", "--net", "--mount"); said != "<nil> \x01 <nil> \x01\x7dthis is no client: it passes no standard input, output and error\n" {
		t.Errorf("a process of the container itself gets %q", said)
	} else {
		end()
	}
	for name, namespaces := range map[string][]string{
		"second container": {"--net"},          // which shares the pod's network alone
		"debug --target":   {"--net", "--pid"}, // which shares the container's processes, too
	} {
		if said, _ := c.foreign("dial", namespaces...); !strings.HasPrefix(said, "<nil>  broken pipe") {
			t.Errorf("%s: a process gets %q", name, said)
		}
	}
	expect(t, logs, []byte("berth: hung up on a client, and will on others like it: it is a process of another container\r\n"))
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 0 {
		t.Errorf("a client after them: code %d, %q", code, stderr)
	}
}

func TestAnotherContainerThatListensInTheShimsPlace(t *testing.T) {
	logs, stdout := pipe(t)
	var hold string
	c := start(t, null(t), stdout, withStranger, func(c *container) {
		hold = filepath.Join(c.root, "dev/hold")
		if err := unix.Mkfifo(hold, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	release, err := os.OpenFile(hold, os.O_WRONLY, 0) // so the shim's namespaces are there, and it is not
	if err != nil {
		t.Fatal(err)
	}
	said, end := c.foreign("listen", "--net", "--pid")
	if said != "<nil> <nil> <nil>\n" {
		t.Fatal(said)
	}
	_ = release.Close()
	expect(t, logs, []byte("berth: listening on @berth-shim: another process of this pod does; trying again each 10s\r\n"))
	a := c.take()
	p := a.handOverPorts() // the guest is served all the same
	answer(t, p.guest)
	write(t, p.console, []byte("login: "))
	expect(t, logs, []byte("login: "))
	if stdout, stderr, code := c.run(nil, "/bin/guest", "true"); code != 126 || stdout != "" ||
		stderr != "berth: a process of another container of this pod listens on @berth-shim in the shim's place: end it\n" {
		t.Errorf("a client says %q, %q, code %d", stdout, stderr, code)
	}
	end()
	eventually(t, "the shim listens", func() bool { _, _, code := c.run(nil, "/bin/guest", "true"); return code == 0 })
}

func TestWhoFloodsTheSocketCostsLittle(t *testing.T) {
	c := start(t, null(t), null(t), withStranger)
	p := c.take().handOverPorts()
	answer(t, p.guest)
	if said, _ := c.foreign("flood", "--pid", "--net", "--mount"); said != "flooded 60\n" {
		t.Error(said)
	}
	if _, stderr, code := c.run(nil, "/bin/guest", "true"); code != 0 {
		t.Errorf("a client beside them: code %d, %q", code, stderr)
	}
	if rss := c.memory("VmRSS"); rss > 6<<10 {
		t.Errorf("VmRSS %d kB", rss)
	} else {
		t.Logf("VmRSS %d kB, RssAnon %d kB", rss, c.memory("RssAnon"))
	}
}

func TestDescriptorsAreClosedBeforeTheCodeIsTold(t *testing.T) {
	c := start(t, null(t), null(t), withStranger, func(c *container) {
		if err := unix.Mknod(filepath.Join(c.root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
	})
	p := c.take().handOverPorts()
	answer(t, p.guest)
	said, _ := c.foreign("order", "--pid", "--net", "--mount")
	if !strings.Contains(said, `answer "\x01\x00", hung up true, <nil>`) {
		t.Error(said)
	}
}
