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
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxLine bounds a line that a worker may say, and maxTrouble what is kept of its standard error, in bytes.
	maxLine    = 4 << 10
	maxTrouble = 1 << 10
	// patience is how long a killed worker may take to end, which it does not while it waits for a device.
	patience = 5 * time.Second
)

// environment is all that a worker has. Its memory is charged to its guest's berth.
var environment = []string{"GOMEMLIMIT=24MiB", "GOMAXPROCS=2"}

// Job is one run of this binary.
type Job struct {
	// Args are its arguments. What they lead to calls Enter before anything else.
	Args []string
	// User and Group are what it runs as.
	User, Group int
	// Files are its descriptors from 3 on. None may be a directory that has a parent: it would lead out.
	Files []*os.File
	// Place moves it into its cgroup, before it hears anything.
	Place func(pid int) error
	// Input is its standard input.
	Input []byte
}

// Run runs a job to its end and calls line with each line of its standard output, of at most 4 KiB, on this goroutine. The
// worker is killed when ctx ends, when it says a longer line, and when this process ends. If it is killed and yet does
// not end, because it waits for a device, Run tells so and leaves it: its cgroup holds it. It needs CAP_SETUID,
// CAP_SETGID and CAP_SYS_CHROOT.
func Run(ctx context.Context, j Job, line func([]byte)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // whoever still speaks is heard no more
	lines, done := make(chan []byte), make(chan error, 1)
	go func() {
		// Without Unlock: this thread has promised to gain no privileges, and ends with the worker. The kernel kills the
		// worker when its parent thread ends, so it has to be one that ends no sooner.
		runtime.LockOSThread()
		done <- j.run(ctx, lines)
	}()
	ended := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case l := <-lines:
			line(l)
		case err := <-done:
			return err
		case <-ended:
			ended, late = nil, time.After(patience)
		case <-late:
			return fmt.Errorf("worker was killed and does not end, because it waits for a device or a server: %w", context.Cause(ctx))
		}
	}
}

// run runs a job on this thread.
func (j Job) run(ctx context.Context, lines chan<- []byte) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	// POSIX shared memory: a place that can be written on every Linux, and in every container.
	empty, err := os.MkdirTemp("/dev/shm", "berth-worker-")
	if err == nil {
		defer os.Remove(empty)
		err = os.Chmod(empty, 0o555) //nolint:gosec // another user is to enter it
	}
	if err != nil {
		return fmt.Errorf("making an empty directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", j.Args...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = environment, empty, j.Files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(j.User), Gid: uint32(j.Group)}, //nolint:gosec // their numbers
		AmbientCaps: []uintptr{unix.CAP_SYS_CHROOT},                                 // for Enter, which drops it
		Pdeathsig:   syscall.SIGKILL,
		Setpgid:     true,
	}
	trouble := &head{}
	cmd.Stderr, cmd.WaitDelay = trouble, patience
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting worker: %w", err)
	}
	_ = os.Remove(empty) // it is in there, and nothing can be made in a directory that is gone
	err = j.speak(ctx, cmd.Process.Pid, stdin, stdout, lines)
	if err != nil {
		_ = cmd.Process.Kill()
	}
	ended := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("worker was killed: %w", context.Cause(ctx))
	case err != nil:
		return err
	case ended != nil:
		return fmt.Errorf("worker ended with %w: %q", ended, trouble.text)
	}
	return nil
}

// speak places a worker, tells it its input and hears it to its end.
func (j Job) speak(ctx context.Context, pid int, stdin io.WriteCloser, stdout io.Reader, lines chan<- []byte) error {
	if err := j.Place(pid); err != nil {
		return fmt.Errorf("placing worker: %w", err)
	}
	_, err := stdin.Write(j.Input)
	if err := errors.Join(err, stdin.Close()); err != nil && !errors.Is(err, unix.EPIPE) { // why it ended, Wait tells
		return fmt.Errorf("telling worker what to do: %w", err)
	}
	said := bufio.NewScanner(stdout)
	said.Buffer(make([]byte, maxLine), maxLine)
	for said.Scan() {
		select {
		case lines <- bytes.Clone(said.Bytes()):
		case <-ctx.Done():
			return nil
		}
	}
	if err := said.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("hearing worker: %w", err)
	}
	return nil
}

// head keeps the beginning of what is written: the trouble itself, where Go adds all goroutines.
type head struct{ text []byte }

func (t *head) Write(b []byte) (int, error) {
	t.text = append(t.text, b[:min(len(b), maxTrouble-len(t.text))]...)
	return len(b), nil
}

// Enter confines this process for good, and is the first that a worker does: it was started as its user, with the one
// capability that this takes.
func Enter() error {
	if err := unix.Chroot("."); err != nil { // of all threads, in the empty directory that it was started in
		return fmt.Errorf("changing root: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	// Each thread has capabilities of its own. What is not permitted is not ambient either.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0)
	if errno != 0 {
		return fmt.Errorf("dropping capabilities: %w", errno)
	}
	return nil
}
