package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

// container runs a shell script in a PID namespace of its own, as containers do, until the test ends. It returns once the
// script has written a line.
func container(t testing.TB, script string, files ...*os.File) {
	t.Helper()
	if os.Getuid() != 0 {
		env.Missing(t, "needs root, to make PID namespaces")
	}
	cmd := exec.Command("/bin/sh", "-c", script+"\necho; sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	cmd.ExtraFiles = files
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }) // which ends all in the namespace
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// fakeQEMU is a program called as QEMU is, which runs whatever its arguments are.
func fakeQEMU(t testing.TB) string {
	t.Helper()
	program, err := os.ReadFile("/usr/bin/tail")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "qemu-x")
	if err := os.WriteFile(path, program, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// crowd runs so many of it in a container, with command lines of 20 kB that end with our UUID.
func crowd(t testing.TB, count int) {
	t.Helper()
	container(t, fmt.Sprintf(`long=$(head -c 20000 /dev/zero | tr '\0' x)
for i in $(seq %d); do %s -q -f -- /dev/null $long -uuid %s 2>/dev/null & done`, count, fakeQEMU(t), uuid))
}

// bytesRead is how many bytes this process has read since it began.
func bytesRead(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	n, err := strconv.Atoi(strings.TrimPrefix(line, "rchar: "))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAContainersProcessCostsNoRead: what a container's processes are called, and how long their command lines are, has
// nothing read of them.
func TestAContainersProcessCostsNoRead(t *testing.T) {
	find := func() int {
		before := bytesRead(t)
		if found, err := (Table{}).Find(uuid); err != nil || len(found) > 0 {
			t.Fatalf("found %v, %v", found, err)
		}
		return bytesRead(t) - before
	}
	alone := find()
	crowd(t, 50)
	if among := find(); among > alone+1000 {
		t.Errorf("among 50 processes of a container %d bytes are read, without them %d", among, alone)
	}
}

// TestAnErrorAboutAContainersProcess: a program below a path that is longer than the kernel tells has no name to be
// read. One of a container counts for nothing all the same.
func TestAnErrorAboutAContainersProcess(t *testing.T) {
	if os.Getuid() != 0 {
		env.Missing(t, "needs root, to make PID namespaces")
	}
	at, err := unix.Open(t.TempDir(), unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range 25 {
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Repeat("d", 200)
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, openErr := unix.Openat(at, name, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		_ = unix.Close(at)
		at, err = next, openErr
	}
	defer unix.Close(at)
	program, err := os.ReadFile(fakeQEMU(t))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Openat(at, "qemu-x", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	writer := os.NewFile(uintptr(fd), "qemu-x")
	if _, err := writer.Write(program); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil { // a program that somebody writes to cannot be run
		t.Fatal(err)
	}
	if fd, err = unix.Openat(at, "qemu-x", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "qemu-x")
	defer file.Close()
	container(t, "/proc/self/fd/3 -q -f -- /dev/null -uuid "+uuid+" 2>/dev/null & sleep 0.2", file)

	pids, err := listPIDs()
	if err != nil {
		t.Fatal(err)
	}
	nameless := 0
	for _, pid := range pids {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err != nil && strings.Contains(err.Error(), "too long") {
			nameless++
		}
	}
	if nameless != 1 {
		t.Fatalf("there are %d programs whose names cannot be read", nameless)
	}
	if found, err := (Table{}).Find(uuid); err != nil || len(found) > 0 {
		t.Errorf("found %v, %v", found, err)
	}
}

// BenchmarkFindAmong1000InAContainer is a hostile pod: 1 000 processes that call themselves QEMU.
func BenchmarkFindAmong1000InAContainer(b *testing.B) {
	crowd(b, 1000)
	BenchmarkFind(b)
}
