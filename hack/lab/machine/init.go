package machine

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InitVerb is the first argument of a machine's PID 1, followed by its directory.
const InitVerb = "machine-init"

const (
	gateFD  = 3
	readyFD = 4
	// restartDelay keeps a service that fails at once from eating the processor.
	restartDelay = time.Second
	// insideCgroups says that this is the second life of PID 1.
	insideCgroups = "LAB_INSIDE_CGROUPS=1"
)

// Init is a machine's PID 1. It returns only when the machine cannot start.
func Init(dir Dir) error {
	spec, err := dir.read()
	if err != nil {
		return err
	}
	if os.Getenv("LAB_INSIDE_CGROUPS") == "" {
		return enterCgroups()
	}
	if err := unix.Sethostname([]byte(spec.Name)); err != nil {
		return err
	}
	if err := mountAll(dir, spec); err != nil {
		return err
	}
	if err := configureInside(spec); err != nil {
		return err
	}
	i := initd{dir: dir, byPid: map[int]*running{}}
	if err := i.listen(); err != nil {
		return err
	}
	for _, s := range spec.Services {
		r := &running{Service: s, wanted: true}
		i.all = append(i.all, r)
		go i.start(r)
	}
	ready := os.NewFile(readyFD, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	ready.Close()
	i.reap()
	return nil
}

// enterCgroups waits until the machine is put into its cgroups, makes them the
// root of what it sees, and begins again: a namespace entered by one thread
// holds for the whole process only after exec.
func enterCgroups() error {
	gate := os.NewFile(gateFD, "gate")
	if n, err := gate.Read(make([]byte, 1)); n == 0 {
		return fmt.Errorf("waiting for the machine to be made: %w", err)
	}
	gate.Close()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a cgroup namespace: %w", err)
	}
	if _, err := unix.FcntlInt(readyFD, unix.F_SETFD, 0); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), insideCgroups))
}

// initd starts services and waits for every process of the machine.
type initd struct {
	dir Dir
	all []*running

	mu    sync.Mutex
	byPid map[int]*running
}

// running is a service with what is known of it.
type running struct {
	Service
	wanted bool
	pid    int
	// ended is closed when the process is.
	ended chan struct{}
}

func (i *initd) start(r *running) {
	waitFor(r.After)
	i.mu.Lock()
	defer i.mu.Unlock()
	if !r.wanted || r.pid != 0 {
		return
	}
	if err := i.spawn(r); err != nil {
		fmt.Fprintf(os.Stderr, "%s: starting %s: %v\n", stamp(), r.Name, err)
		time.AfterFunc(restartDelay, func() { i.start(r) })
	}
}

func (i *initd) spawn(r *running) error {
	log, err := os.OpenFile(i.dir.LogPath(r.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	path, err := exec.LookPath(r.Args[0])
	if err != nil {
		return err
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=/root"}
	// Not os/exec: every child is waited for in one place.
	pid, err := syscall.ForkExec(path, r.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(env, r.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s: started %s as %d\n", stamp(), r.Name, pid)
	r.pid, r.ended = pid, make(chan struct{})
	i.byPid[pid] = r
	return nil
}

// reap waits for children, own and orphaned, for ever.
func (i *initd) reap() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.ECHILD) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			continue
		}
		i.mu.Lock()
		if r := i.byPid[pid]; r != nil {
			delete(i.byPid, pid)
			r.pid = 0
			close(r.ended)
			fmt.Fprintf(os.Stderr, "%s: %s ended (code %d, signal %d)\n", stamp(), r.Name, status.ExitStatus(), status.Signal())
			time.AfterFunc(restartDelay, func() { i.start(r) })
		}
		i.mu.Unlock()
	}
}

func stamp() string { return time.Now().UTC().Format(time.RFC3339) }

// waitFor returns when something answers at the address, unix:PATH or tcp:HOST:PORT.
func waitFor(address string) {
	network, where, found := strings.Cut(address, ":")
	if !found {
		return
	}
	for {
		conn, err := net.DialTimeout(network, where, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// listen answers one line "VERB SERVICE" for each connection, from the machine's root only.
func (i *initd) listen() error {
	l, err := net.Listen("unix", controlPath)
	if err != nil {
		return err
	}
	if err := os.Chmod(controlPath, 0o600); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				continue
			}
			go i.answer(conn)
		}
	}()
	return nil
}

func (i *initd) answer(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	verb, name, _ := strings.Cut(strings.TrimSpace(line), " ")
	for _, r := range i.all {
		if r.Name != name {
			continue
		}
		if verb != "start" {
			i.stop(r)
		}
		if verb != "stop" {
			i.mu.Lock()
			r.wanted = true
			i.mu.Unlock()
			i.start(r)
		}
	}
	fmt.Fprintln(conn, "done")
}

// stop ends a service for good: it is asked, and after 5 seconds made to.
func (i *initd) stop(r *running) {
	i.mu.Lock()
	r.wanted = false
	pid, ended := r.pid, r.ended
	i.mu.Unlock()
	if pid == 0 {
		return
	}
	_ = syscall.Kill(pid, syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(pid, syscall.SIGKILL)
		<-ended
	}
}

// control asks a machine's init from outside.
func (d Dir) control(verb, service string) error {
	pid := d.Pid()
	if pid == 0 {
		return errors.New("the machine is not running")
	}
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", pid, controlPath))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, verb, service); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}
