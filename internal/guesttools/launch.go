package guesttools

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	self        = "/proc/self/exe"
)

// Exit codes of commands that do not run, as a shell has them.
const (
	notExecutable = 126
	notFound      = 127
)

// refusal is why a command does not run.
type refusal struct {
	code byte
	text string
}

func (r refusal) Error() string { return r.text }

func refuse(code byte, format string, args ...any) error {
	return refusal{code, fmt.Sprintf(format, args...)}
}

// image is what to execute.
type image struct {
	path, dir string
	args, env []string
	user      user
}

// find finds out what a command means in this guest.
func find(c guestlink.Command) (i image, err error) {
	if i.user, err = findUser("/etc", c.User); err != nil {
		return i, refuse(notExecutable, "%v", err)
	}
	i.args = c.Args
	i.env = []string{"HOME=" + i.user.home, "SHELL=" + i.user.shell, "LOGNAME=" + i.user.name, "USER=" + i.user.name, "PATH=" + defaultPath}
	if c.Terminal {
		i.env = append(i.env, "TERM=xterm")
	}
	for _, e := range c.Env {
		key, _, _ := strings.Cut(e, "=")
		i.env = append(slices.DeleteFunc(i.env, func(have string) bool { return strings.HasPrefix(have, key+"=") }), e)
	}
	if i.dir = c.Dir; c.Dir == "" {
		i.dir = i.user.home
	}
	if info, err := os.Stat(i.dir); err != nil || !info.IsDir() {
		if c.Dir != "" {
			return i, refuse(notExecutable, "the guest has no directory %q: name another by -w, or create it", c.Dir)
		}
		i.dir = "/"
	}
	i.path, err = i.look(c.Args[0])
	return i, err
}

// look finds a command's file as a shell does.
func (i *image) look(name string) (string, error) {
	var candidates []string
	if strings.Contains(name, "/") {
		candidates = []string{name}
		if !filepath.IsAbs(name) {
			candidates[0] = filepath.Join(i.dir, name)
		}
	} else {
		at := slices.IndexFunc(i.env, func(e string) bool { return strings.HasPrefix(e, "PATH=") })
		for _, dir := range filepath.SplitList(i.env[at][len("PATH="):]) {
			candidates = append(candidates, filepath.Join(dir, name))
		}
	}
	err := refuse(notFound, "the guest has no command %q: install it there, or give its path", name)
	for _, path := range candidates {
		switch info, e := os.Stat(path); {
		case e != nil:
		case info.Mode().IsRegular() && info.Mode()&0o111 != 0:
			return path, nil
		default:
			err = refuse(notExecutable, "%s in the guest is not executable: it is a directory, or has no mode x", path)
		}
	}
	if name == "tar" && err.(refusal).code == notFound { //nolint:errorlint // ours, just made
		i.args = append([]string{name, "tar"}, i.args[1:]...)
		return self, nil
	}
	return "", err
}

// start starts the image as a leader of a new session, with three descriptors, of which a terminal is its own.
func (i *image) start(stdio [3]int, terminal bool) (pid int, err error) {
	attr := &syscall.ProcAttr{
		Dir: i.dir, Env: i.env, Files: []uintptr{uintptr(stdio[0]), uintptr(stdio[1]), uintptr(stdio[2])},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: terminal},
	}
	if i.user.uid != uint32(os.Geteuid()) || i.user.gid != uint32(os.Getegid()) || os.Geteuid() == 0 { //nolint:gosec // an ID
		attr.Sys.Credential = &syscall.Credential{Uid: i.user.uid, Gid: i.user.gid, Groups: i.user.groups}
	}
	// A child has its thread's mask: whatever started this program may have left signals blocked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, &old); err != nil {
		return 0, refuse(notExecutable, "unblocking signals: %v", err)
	}
	pid, err = syscall.ForkExec(i.path, i.args, attr)
	if e := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); e != nil {
		err = errors.Join(err, e)
	}
	switch {
	case err == nil:
		return pid, nil
	case errors.Is(err, unix.ENOENT):
		return 0, refuse(notFound, "%s in the guest: the interpreter that its first line names, or its loader, is missing", i.path)
	case errors.Is(err, unix.ENOEXEC):
		return 0, refuse(notExecutable, "%s in the guest is no program for this machine, and no script with #! in its first line", i.path)
	case errors.Is(err, unix.EACCES):
		return 0, refuse(notExecutable, "user %s may not execute %s, or not enter %s, in the guest", i.user.name, i.path, i.dir)
	default:
		return 0, refuse(notExecutable, "starting %s in the guest: %v", i.path, err)
	}
}
