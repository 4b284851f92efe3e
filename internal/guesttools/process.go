package guesttools

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

const (
	hangUpGrace  = 10 * time.Second // from SIGHUP to SIGKILL
	lastWords    = time.Second      // for a terminal's, if another process holds it
	terminalSize = 4 << 10          // the kernel has no more of its output at once
	pipeSize     = 128 << 10        // the command runs on while the host takes what it has written
)

// process is a command of a stream: its handler.
type process struct {
	stream  *guestlink.Stream
	command guestlink.Command
	begun   chan struct{} // what it has is there, or never will be
	hangUp  chan struct{} // nobody is at the other end any more

	mu    sync.Mutex
	size  guestlink.Size
	files [3]*os.File // our ends of its pipes, by channel; of a terminal the master, for Stdin and Stdout
	pid   int         // 0: not started, or reaped
}

// accept starts a stream's command.
func accept(s *guestlink.Stream, c guestlink.Command) guestlink.Handler {
	p := &process{stream: s, command: c, size: c.Size, begun: make(chan struct{}), hangUp: make(chan struct{})}
	go p.run()
	return p
}

func (p *process) run() {
	err := p.start()
	close(p.begun)
	if err != nil {
		closeAll(p.files[:])
		code := byte(126)
		if errors.As(err, &notFound{}) {
			code = 127
		}
		_ = p.stream.Write(guestlink.Stderr, []byte("berth: "+err.Error()+"\n"))
		p.stream.Exit(code)
		return
	}
	if p.command.Detached {
		p.stream.Exit(0)
	}
	var outputs sync.WaitGroup
	for _, channel := range []int{guestlink.Stdout, guestlink.Stderr} {
		if f := p.files[channel]; f != nil {
			outputs.Go(func() { p.copy(channel, f) })
		}
	}
	ended, said := make(chan struct{}), make(chan struct{})
	go func() {
		for errors.Is(unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		close(ended)
		late := time.Now()
		if p.command.Terminal {
			late = late.Add(lastWords)
		}
		for _, f := range p.files {
			_ = f.SetReadDeadline(late) // a process that it left behind may hold them open
		}
		outputs.Wait()
		close(said)
	}()
	select {
	case <-said:
	case <-p.hangUp:
		p.end(ended)
		<-said
	}
	p.mu.Lock()
	closeAll(p.files[:])
	code := p.reap()
	p.mu.Unlock() // the link calls with its lock held, and is not to be called with this one
	if !p.command.Detached {
		p.stream.Exit(code)
	}
}

// start makes pipes or a terminal, and starts the command on them.
func (p *process) start() error {
	image, err := find(p.command)
	if err != nil {
		return err
	}
	theirs := make([]*os.File, 3)
	defer closeAll(theirs)
	switch {
	case p.command.Detached:
		if theirs[0], err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
			return err
		}
		theirs[1], theirs[2] = theirs[0], theirs[0]
	case p.command.Terminal:
		if theirs[0], err = p.openTerminal(image.user); err != nil {
			return fmt.Errorf("making a terminal in the guest: %w; is /dev/pts mounted there?", err)
		}
		theirs[1], theirs[2] = theirs[0], theirs[0]
	default:
		for i := range theirs {
			r, w, err := os.Pipe()
			if err != nil {
				return fmt.Errorf("making pipes in the guest: %w", err)
			}
			if theirs[i], p.files[i] = w, r; i == guestlink.Stdin {
				theirs[i], p.files[i] = r, w
				continue
			}
			_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize) // else it has the kernel's size
		}
	}
	pid, err := image.start(theirs, p.command.Terminal)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // of none, too
	}
}

func (p *process) openTerminal(u user) (slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	master := os.NewFile(uintptr(fd), "terminal")
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[guestlink.Stdin], p.files[guestlink.Stdout] = master, master
	p.resize()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, errno
	}
	slave = os.NewFile(peer, "terminal")
	return slave, slave.Chown(int(u.uid), -1) // it may open its own terminal by name
}

// copy writes what a command writes to the stream: what is in a pipe without reading it.
func (p *process) copy(channel int, f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	move := func(fd, most int) (int, error) { return p.stream.Splice(channel, fd, most) }
	if p.command.Terminal {
		buf := make([]byte, terminalSize)
		move = func(fd, most int) (int, error) {
			n, err := unix.Read(fd, buf[:min(most, len(buf))])
			if n > 0 {
				err = p.stream.Write(channel, buf[:n])
			}
			return n, err
		}
	}
	for n := 1; n > 0 && err == nil; { // of a terminal EIO is the end
		ended := raw.Read(func(fd uintptr) bool {
			n, err = move(int(fd), math.MaxInt32)
			return !errors.Is(err, unix.EAGAIN)
		})
		err = cmp.Or(ended, err)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	_ = raw.Control(func(fd uintptr) { // what was there when the command ended: others may write for ever
		left, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		for n := 1; n > 0 && err == nil && left > 0; left -= n {
			n, err = move(int(fd), left)
		}
	})
}

// Take writes stdin.
func (p *process) Take(_ int, b []byte) error {
	<-p.begun
	stdin := p.files[guestlink.Stdin]
	if b == nil && !p.command.Terminal {
		return stdin.Close()
	}
	_, err := stdin.Write(b) // which fails if it is none
	return err
}

// Resize sets the size of the terminal, whose foreground processes hear of it.
func (p *process) Resize(size guestlink.Size) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = size
	p.resize()
}

func (p *process) resize() {
	if !p.command.Terminal || p.size == (guestlink.Size{}) {
		return
	}
	if raw, err := p.files[guestlink.Stdin].SyscallConn(); err == nil { // else it is not made yet
		_ = raw.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: p.size.Rows, Col: p.size.Columns})
		})
	}
}

// Signal signals the process group.
func (p *process) Signal(number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill(syscall.Signal(number))
}

func (p *process) kill(sig syscall.Signal) {
	if p.pid != 0 {
		_ = unix.Kill(-p.pid, sig) // it may have ended
	}
}

// Ended hangs the command up.
func (p *process) Ended(int, error) { close(p.hangUp) }

// end ends the command and its session. It is not reaped yet, so its number is nobody else's.
func (p *process) end(ended <-chan struct{}) {
	p.kill(unix.SIGHUP)
	p.kill(unix.SIGCONT)
	if p.command.Terminal {
		_ = p.files[guestlink.Stdin].Close()
	}
	grace := time.After(hangUpGrace)
	select {
	case <-ended:
		if len(session(p.pid)) > 0 {
			<-grace
		}
	case <-grace:
	}
	p.kill(unix.SIGKILL)
	for _, pid := range session(p.pid) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	<-ended
}

// reap lets go of the process's number, and returns its exit code.
func (p *process) reap() byte {
	var status syscall.WaitStatus
	_, _ = syscall.Wait4(p.pid, &status, 0, nil) // it waits for nothing: the process has ended
	p.pid = 0
	if status.Signaled() {
		return byte(128 + status.Signal()) //nolint:gosec // at most 64
	}
	return byte(status.ExitStatus()) //nolint:gosec // 0 to 255
}

// session lists the processes of a session beside its leader.
func session(leader int) (pids []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only for a bad pattern
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if sid, err := unix.Getsid(pid); err == nil && sid == leader && pid != leader {
			pids = append(pids, pid)
		}
	}
	return pids
}
