package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Start makes the machine and returns when its PID 1 has begun to start services.
// The calling program must hand its arguments to Init when the first is InitVerb.
func Start(dir Dir, spec Spec) (err error) {
	if pid := dir.Pid(); pid != 0 {
		return fmt.Errorf("%s runs already, as process %d", spec.Name, pid)
	}
	for _, path := range spec.Private {
		if err := os.MkdirAll(dir.PrivatePath(path), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(dir.LogPath("init")), 0o755); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir.specPath(), raw, 0o600); err != nil {
		return err
	}
	if len(spec.QEMU) > 0 {
		return startEmulated(dir, spec)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(dir.LogPath("init"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// PID 1 waits for a byte on this pipe before it looks around.
	gate, open, err := os.Pipe()
	if err != nil {
		return err
	}
	defer open.Close()
	up, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer up.Close()
	cmd := exec.Command(self, InitVerb, string(dir))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{gate, ready}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWNET,
	}
	err = cmd.Start()
	gate.Close()
	ready.Close()
	if err != nil {
		return fmt.Errorf("making namespaces for %s: %w", spec.Name, err)
	}
	pid := cmd.Process.Pid
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	id, err := identify(pid)
	if err != nil {
		return err
	}
	if err := os.WriteFile(dir.pidPath(), []byte(id.String()), 0o644); err != nil {
		return err
	}
	if err := joinCgroups(spec.Name, pid); err != nil {
		return err
	}
	if err := plug(spec.Name, pid); err != nil {
		return err
	}
	if _, err := open.Write([]byte{1}); err != nil {
		return fmt.Errorf("starting %s: %w", spec.Name, err)
	}
	_ = up.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := up.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("starting %s: its init gave up, see %s", spec.Name, dir.LogPath("init"))
	}
	return cmd.Process.Release()
}

// Stop switches the machine off and removes all but its directory. It does the
// same for one that is half made, dead, or gone.
func Stop(dir Dir) error {
	name := filepath.Base(string(dir))
	if pid := dir.Pid(); pid != 0 {
		if err := kill(pid); err != nil {
			return fmt.Errorf("switching off %s: %w", name, err)
		}
	}
	if err := unplug(name); err != nil {
		return err
	}
	if err := removeCgroups(name); err != nil {
		return fmt.Errorf("removing the cgroups of %s: %w", name, err)
	}
	err := os.Remove(dir.pidPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// kill ends a PID 1 and waits until the kernel has ended all other processes of its namespace.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("process %d does not end; a process of its own may hang in the kernel", pid)
		default:
			return nil
		}
	}
}

// Exec replaces this process by a command inside the machine.
func Exec(dir Dir, args []string) error {
	pid := dir.Pid()
	if pid == 0 {
		return fmt.Errorf("%s is not running", filepath.Base(string(dir)))
	}
	spec, err := dir.read()
	if err != nil {
		return err
	}
	if len(spec.QEMU) > 0 {
		return execEmulated(spec, args)
	}
	if err := joinCgroups(filepath.Base(string(dir)), os.Getpid()); err != nil {
		return err
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	argv := []string{"nsenter", "-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--wdns=" + wd, "--"}
	return syscall.Exec(nsenter, append(argv, args...), os.Environ())
}

// Service starts, stops or restarts one service of a running machine.
func (d Dir) Service(verb, service string) error {
	spec, err := d.read()
	if err != nil {
		return err
	}
	if len(spec.QEMU) > 0 {
		return Exec(d, []string{"systemctl", verb, service})
	}
	for _, s := range spec.Services {
		if s.Name == service {
			return d.control(verb, service)
		}
	}
	var names []string
	for _, s := range spec.Services {
		names = append(names, s.Name)
	}
	return fmt.Errorf("%s has no service %q; it has %s", spec.Name, service, strings.Join(names, " "))
}

// Restart starts a machine that was stopped, as it was.
func Restart(dir Dir) error {
	spec, err := dir.read()
	if err != nil {
		return err
	}
	return Start(dir, spec)
}
