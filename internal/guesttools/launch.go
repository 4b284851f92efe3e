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

// notFound is an error that a shell has exit code 127 for; others that keep a command from running have 126.
type notFound struct{ error }

// image is what to execute.
type image struct {
	path, dir string
	args, env []string
	user      user
}

// find finds out what a command means in this guest.
func find(c guestlink.Command) (i image, err error) {
	if i.user, err = findUser("/etc", c.User); err != nil {
		return i, err
	}
	i.args = c.Args
	i.env = []string{"HOME=" + i.user.home, "SHELL=" + i.user.shell, "LOGNAME=" + i.user.name, "USER=" + i.user.name, "PATH=" + defaultPath}
	if c.Terminal {
		i.env = append(i.env, "TERM=xterm")
	}
	for _, e := range c.Env {
		key, _, ok := strings.Cut(e, "=")
		if !ok || key == "" {
			return i, fmt.Errorf("%q is no KEY=VALUE for the environment", e)
		}
		i.env = append(slices.DeleteFunc(i.env, func(have string) bool { return strings.HasPrefix(have, key+"=") }), e)
	}
	if i.dir = c.Dir; c.Dir == "" {
		i.dir = i.user.home
	}
	if info, err := os.Stat(i.dir); err != nil || !info.IsDir() {
		if c.Dir != "" {
			return i, fmt.Errorf("the guest has no directory %q: name another by -w, or create it", c.Dir)
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
	err := error(notFound{fmt.Errorf("the guest has no command %q: install it there, or give its path", name)})
	for _, path := range candidates {
		switch info, e := os.Stat(path); {
		case e != nil:
		case info.Mode().IsRegular() && info.Mode()&0o111 != 0:
			return path, nil
		default:
			err = fmt.Errorf("%s in the guest is not executable: it is a directory, or has no mode x", path)
		}
	}
	if errors.As(err, &notFound{}) && name == "tar" {
		i.args = append([]string{name, "tar"}, i.args[1:]...)
		return self, nil
	}
	return "", err
}

// start starts the image as the leader of a new session.
func (i *image) start(stdio []*os.File, terminal bool) (pid int, err error) {
	attr := &syscall.ProcAttr{Dir: i.dir, Env: i.env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: terminal}}
	for _, f := range stdio {
		attr.Files = append(attr.Files, f.Fd()) // which blocks from now on, as a command wants it
	}
	if os.Geteuid() == 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: i.user.uid, Gid: i.user.gid, Groups: i.user.groups}
	}
	// A child has its thread's mask: whatever started this program may have left signals blocked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, &old); err != nil {
		return 0, err
	}
	pid, err = syscall.ForkExec(i.path, i.args, attr)
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) // as it was
	if errors.Is(err, unix.ENOENT) {
		return 0, notFound{fmt.Errorf("%s in the guest: its loader, or the interpreter that its first line names, is missing", i.path)}
	}
	if err != nil {
		return 0, fmt.Errorf("user %s cannot run %s in directory %s of the guest: %w", i.user.name, i.path, i.dir, err)
	}
	return pid, nil
}
