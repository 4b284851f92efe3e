package guesttools

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
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
	i.dir = cmp.Or(c.Dir, i.user.home)
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
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		at := slices.IndexFunc(i.env, func(e string) bool { return strings.HasPrefix(e, "PATH=") })
		candidates = filepath.SplitList(i.env[at][len("PATH="):])
		for n, dir := range candidates {
			candidates[n] = filepath.Join(dir, name)
		}
	} else if !filepath.IsAbs(name) {
		candidates[0] = filepath.Join(i.dir, name)
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

// user is who a command runs as.
type user struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32 // beside gid
}

// entries are the lines of a file like /etc/passwd that have so many fields at least. A guest without the file has none.
func entries(path string, fields int) (all [][]string) {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if entry := strings.Split(strings.TrimSpace(line), ":"); len(entry) >= fields {
			all = append(all, entry)
		}
	}
	return all
}

// number finds an entry by its name or the number in its third field, and returns that number. One that no entry has
// stands for itself.
func number(all [][]string, name string) (n uint32, entry []string, err error) {
	i := slices.IndexFunc(all, func(e []string) bool { return e[0] == name })
	if i < 0 {
		i = slices.IndexFunc(all, func(e []string) bool { return e[2] == name })
	}
	if i >= 0 {
		entry, name = all[i], all[i][2]
	}
	id, err := strconv.ParseUint(name, 10, 31)
	return uint32(id), entry, err
}

// findUser reads USER or USER:GROUP, by the files below etc. Empty is root.
func findUser(etc, spec string) (u user, err error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	name = cmp.Or(name, "0")
	uid, entry, err := number(entries(etc+"/passwd", 7), name)
	if err != nil {
		return u, fmt.Errorf("the guest has no user %q in /etc/passwd: name another by -u, or create it", name)
	}
	u = user{name: name, uid: uid, home: "/", shell: "/bin/sh"}
	if entry != nil {
		u.name, u.home, u.shell = entry[0], entry[5], cmp.Or(entry[6], u.shell)
		if gid, err := strconv.ParseUint(entry[3], 10, 31); err == nil {
			u.gid = uint32(gid)
		}
	}
	groups := entries(etc+"/group", 4)
	if hasGroup {
		if u.gid, _, err = number(groups, group); err != nil {
			return u, fmt.Errorf("the guest has no group %q in /etc/group: name another by -u USER:GROUP, or create it", group)
		}
		return u, nil
	}
	for _, g := range groups {
		if id, err := strconv.ParseUint(g[2], 10, 31); err == nil && slices.Contains(strings.Split(g[3], ","), u.name) {
			u.groups = append(u.groups, uint32(id))
		}
	}
	return u, nil
}
