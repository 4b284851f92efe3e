package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

const user, group = 1879048200, 1879113728

func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != "act" {
		os.Exit(m.Run())
	}
	if os.Args[2] == "parent" {
		fmt.Println(Run(context.Background(), Job{Args: []string{"act", "hang"}, User: user, Group: group, Place: place(nil)}, func(l []byte) {
			fmt.Println(string(l))
		}))
		os.Exit(1)
	}
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch os.Args[2] {
	case "facts":
		facts()
	case "babble":
		fmt.Println(strings.Repeat("x", maxLine+1))
	case "fail":
		fmt.Fprintln(os.Stderr, "no such luck"+strings.Repeat("x", 2*maxTrouble))
		os.Exit(3)
	case "hang":
		fmt.Println(os.Getpid())
		_, _ = unix.Poll(nil, -1) // an idle select would be a deadlock to Go, and end it
	}
	os.Exit(0)
}

// facts says what a worker is and can.
func facts() {
	input, _ := io.ReadAll(os.Stdin)
	fmt.Printf("input %s\n", input)
	groups, _ := os.Getgroups()
	fmt.Println("user", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups)
	fmt.Println("environment", os.Environ())
	privs, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	fmt.Println("no new privileges", privs)
	for range 8 { // on whatever threads
		done := make(chan string)
		go func() {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var data [2]unix.CapUserData
			err := unix.Capget(&header, &data[0])
			ambient, _ := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, unix.CAP_SYS_CHROOT, 0, 0)
			done <- fmt.Sprint(err, data[0].Effective|data[0].Permitted, data[1].Effective|data[1].Permitted, ambient, unix.Chroot("/"))
		}()
		if c := <-done; c != fmt.Sprint(nil, 0, 0, 0, unix.EPERM) {
			fmt.Println("capabilities", c)
		}
	}
	entries, err := os.ReadDir("/")
	fmt.Println("root", len(entries), err)
	_, err = os.Stat("../../../../etc/passwd")
	fmt.Println("above", err != nil)
	fmt.Println("writes", os.WriteFile("/x", nil, 0o600) == nil)
	content, err := io.ReadAll(os.NewFile(3, ""))
	fmt.Println("file", string(content), err)
	for fd := 4; fd < 64; fd++ { // Go itself holds the limits of its cgroup open
		var s unix.Stat_t
		if err := unix.Fstat(fd, &s); err == nil && (s.Mode&unix.S_IFMT == unix.S_IFDIR || s.Mode&unix.S_IFMT == unix.S_IFSOCK) {
			fmt.Printf("descriptor %d has mode %o\n", fd, s.Mode)
		}
	}
}

func place(into *int) func(int) error {
	return func(pid int) error {
		if into != nil {
			*into = pid
		}
		return nil
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: a worker is another user")
	}
}

func run(t *testing.T, act string, j Job) (said []string, err error) {
	t.Helper()
	needRoot(t)
	j.Args, j.User, j.Group = []string{"act", act}, user, group
	if j.Place == nil {
		j.Place = place(nil)
	}
	err = Run(t.Context(), j, func(l []byte) { said = append(said, string(l)) })
	return said, err
}

func TestAWorkerIsConfined(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("given"), 0); err != nil {
		t.Fatal(err)
	}
	var pid int
	said, err := run(t, "facts", Job{Files: []*os.File{file}, Input: []byte("do it"), Place: place(&pid)})
	if err != nil || pid == 0 {
		t.Errorf("process %d: %v", pid, err)
	}
	want := []string{
		"input do it",
		fmt.Sprint("user ", user, user, group, group, []int{}),
		fmt.Sprint("environment ", environment),
		"no new privileges 1",
		"root 0 readdirent /: no such file or directory", // it is gone by now,
		"above true",
		"writes false",
		"file given <nil>",
	}
	if got := strings.Join(said, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("it says\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestAWorkerFails(t *testing.T) {
	_, err := run(t, "fail", Job{})
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "no such luck") || len(err.Error()) > 2*maxTrouble {
		t.Errorf("it ends with %v", err)
	}
	if said, err := run(t, "babble", Job{}); !errors.Is(err, bufio.ErrTooLong) || len(said) > 0 {
		t.Errorf("a long line is heard: %q, %v", said, err)
	}
	refused := errors.New("no cgroup")
	said, err := run(t, "hang", Job{Place: func(int) error { return refused }})
	if !errors.Is(err, refused) || len(said) > 0 {
		t.Errorf("a worker without a place says %q and ends with %v", said, err)
	}
}

// gone waits until a process has ended.
func gone(t *testing.T, pid int) {
	t.Helper()
	env.Eventually(t, "the end of the worker", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
}

func TestAWorkerEndsWithItsContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	var pid int
	err := Run(ctx, Job{Args: []string{"act", "hang"}, User: user, Group: group, Place: place(&pid)}, func([]byte) { cancel(enough) })
	if !errors.Is(err, enough) {
		t.Errorf("it ends with %v", err)
	}
	gone(t, pid)
}

func TestAWorkerEndsWithItsParent(t *testing.T) {
	needRoot(t)
	parent := exec.CommandContext(t.Context(), os.Args[0], "act", "parent")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	pid, convErr := strconv.Atoi(string(bytes.TrimSpace(line)))
	if err := errors.Join(err, convErr); err != nil {
		t.Fatal(err)
	}
	_ = parent.Process.Kill()
	_ = parent.Wait()
	gone(t, pid)
}

func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	before, err := os.ReadDir("/dev/shm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run(t, "facts", Job{}); err != nil {
		t.Error(err)
	}
	after, err := os.ReadDir("/dev/shm")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range after[min(len(before), len(after)):] {
		if strings.HasPrefix(e.Name(), "berth-worker-") {
			t.Errorf("%s is left", e.Name())
		}
	}
}
