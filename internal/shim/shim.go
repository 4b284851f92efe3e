package shim

import (
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/shim/console"
	"github.com/berth-dev/berth/internal/shim/dhcp"
	"github.com/berth-dev/berth/internal/shim/guest"
	"github.com/berth-dev/berth/internal/shim/socket"
)

// flushTimeout bounds how long the end waits for somebody to read the console's rest.
const flushTimeout = 2 * time.Second

// noteInterval is the least time between two States for what the guest and its users cause: they choose how often that
// is, and an agent takes only so many.
const noteInterval = time.Second

// exitPiece is how much of what a guest writes to its exit port is read at once, in bytes.
const exitPiece = 512

// Files in the container that kubelet makes: the one in which it looks for the termination message, and the pod's resolv.conf.
const (
	terminationLog = "/dev/termination-log"
	resolvConf     = "/etc/resolv.conf"
)

// memoryLimit is what the garbage collector keeps the shim's memory to, in bytes, program text apart. 32 commands whose
// readers are stuck need 10 MiB.
const memoryLimit = 11 << 20

// deviceKinds are the kinds of devices that handOver takes.
var deviceKinds = []shimproto.Kind{
	shimproto.KindConsole, shimproto.KindDHCP, shimproto.KindGuest, shimproto.KindExit, shimproto.KindDisplay,
}

// shim is what Run knows. Only Run's goroutine touches it.
type shim struct {
	conn     *shimproto.Shim
	console  *console.Console
	sessions *guest.Sessions
	exitPort exitPort
	ports    int           // that are open: the console, and the exit port
	todo     chan func()   // what Run's goroutine is to do
	notes    chan struct{} // of size one: something is to be noted
	state    shimproto.State
	phase    shimproto.Phase // empty before the guest has started
	exit     *shimproto.Exit
}

// Run stands for a guest until the agent says how it ended, and returns the
// exit code for that. A SIGTERM is only reported: the agent ends the guest.
func Run() (int, error) {
	debug.SetMemoryLimit(memoryLimit)
	// First of all, and before there is a socket: a PID 1 that nobody tells of a SIGTERM cannot end its guest. The others
	// would end the shim, but SIGCHLD: the kernel reaps children whose parent ignores it.
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, unix.SIGTERM)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE, unix.SIGTTIN, unix.SIGTTOU, unix.SIGTSTP, unix.SIGCHLD)

	s := &shim{
		state: shimproto.State{Minor: shimproto.Minor, Kinds: deviceKinds},
		todo:  make(chan func()), notes: make(chan struct{}, 1),
	}
	s.exitPort.note = s.note
	name, err := os.Hostname()
	if err != nil {
		return 1, fmt.Errorf("reading the host's name: %w", err)
	}
	if err := confine(map[string]uint64{
		"/proc":        unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_WRITE_FILE,
		resolvConf:     unix.LANDLOCK_ACCESS_FS_READ_FILE,
		terminationLog: unix.LANDLOCK_ACCESS_FS_WRITE_FILE,
	}); err != nil {
		return 1, err
	}
	s.sessions = guest.New(name, s.note, logf)
	if s.console, err = console.New(os.Stdin, os.Stdout); err != nil {
		return 1, err
	}
	if err := s.publishState(); err != nil {
		return 1, err
	}
	if s.conn, err = shimproto.Listen(); err != nil {
		return 1, err
	}
	go s.sessions.Serve()
	notes, due := s.notes, time.NewTimer(0)
	go s.conn.Receive(
		func(m shimproto.Message, files []*os.File) { s.todo <- func() { s.receive(m, files) } },
		func(err error) { logf("ignored a message of the agent: %v", err) },
	)
	for s.exit == nil {
		select {
		case do := <-s.todo:
			do()
		case <-notes:
			notes = nil // until it is due again
			due.Reset(noteInterval)
		case <-due.C:
			notes = s.notes
			continue
		case <-terminate:
			if s.state.TerminatingSinceNS != 0 {
				continue
			}
			s.state.TerminatingSinceNS = int64(shimproto.BootTime())
		}
		facts := s.sessions.Facts()
		s.state.GuestTools, s.state.Resets, s.state.NMIs = facts.Tools, facts.Resets, facts.NMIs
		s.state.ExitText = s.exitPort.text()
		s.conn.Publish(s.state)
		if err := s.publishState(); err != nil {
			logf("%v", err)
		}
	}
	return s.finish(), nil
}

// note has the next State say what is new, soon.
func (s *shim) note() {
	select {
	case s.notes <- struct{}{}:
	default:
	}
}

// receive acts on one message. Whatever it is, State answers it.
func (s *shim) receive(m shimproto.Message, files []*os.File) {
	switch m := m.(type) {
	case shimproto.HandOver:
		s.handOver(m, files)
	case shimproto.Running:
		s.phase = m.Phase
		s.sessions.Running(m.Phase == shimproto.PhasePaused)
		if m.LastResetNS != 0 {
			s.sessions.Reset(time.Now().Add(time.Duration(m.LastResetNS) - shimproto.BootTime()))
		}
		if s.state.RunningSinceNS == 0 && m.Phase == shimproto.PhaseRunning {
			s.state.RunningSinceNS = int64(shimproto.BootTime())
		}
	case shimproto.Acted:
		s.state.ResetsDone = max(s.state.ResetsDone, min(m.Resets, s.state.Resets))
		s.state.NMIsDone = max(s.state.NMIsDone, min(m.NMIs, s.state.NMIs))
		s.sessions.Acted(s.state.ResetsDone, s.state.NMIsDone)
	case shimproto.Exit:
		s.exit = &m
	case shimproto.Hello, shimproto.State: // one asks for no more than the answer, the other is never sent to us
	}
	shimproto.CloseAll(files)
}

// handOver takes over the guest's devices, and out of files what they need.
func (s *shim) handOver(h shimproto.HandOver, files []*os.File) {
	switch {
	case s.state.InstanceID == h.InstanceID:
		return // again, by an agent that could not know
	case s.state.InstanceID != "":
		logf("refused instance %s: this container is instance %s", h.InstanceID, s.state.InstanceID)
		return
	}
	for _, d := range h.Devices {
		if d.FD >= len(files) {
			logf("refused instance %s: %s %s names descriptor %d, %d were sent", h.InstanceID, d.Kind, d.Name, d.FD, len(files))
			return
		}
	}
	s.state.InstanceID = h.InstanceID
	for _, d := range h.Devices {
		switch d.Kind {
		case shimproto.KindConsole:
			s.ports++
			s.console.Attach(files[d.FD], s.portClosed)
		case shimproto.KindDHCP:
			go serveDHCP(files[d.FD], *d.Lease)
		case shimproto.KindGuest:
			s.sessions.Attach(files[d.FD], h.DirectKernel)
		case shimproto.KindExit:
			s.ports++
			go s.followExit(files[d.FD])
		case shimproto.KindDisplay:
			go serveScreen(files[d.FD])
		default:
			logf("skipped device %s %s: this shim does not support the kind", d.Kind, d.Name)
			continue
		}
		files[d.FD] = nil
	}
}

func (s *shim) portClosed() {
	s.todo <- func() {
		s.ports--
		s.state.ConsoleClosed = s.ports == 0
	}
}

// followExit reads until QEMU closes its end, as fast as the guest writes.
func (s *shim) followExit(port *os.File) {
	socket.Copy(&s.exitPort, port, exitPiece)
	_ = port.Close()
	s.portClosed()
}

// serveDHCP serves a lease. If it ends, the guest lives on with the lease that it has.
func serveDHCP(socket *os.File, lease shimproto.Lease) {
	resolv, err := os.ReadFile(resolvConf)
	if err != nil {
		logf("DHCP names no servers to the guest: %v", err)
	}
	logf("DHCP server ended: %v", dhcp.Serve(socket, lease, string(resolv), logf))
}

// publishState makes the state visible to Started.
func (s *shim) publishState() error {
	state := stateWaiting
	switch {
	case s.exit != nil || s.state.ConsoleClosed || s.state.TerminatingSinceNS != 0:
		state = stateEnding
	case s.phase == shimproto.PhaseRunning:
		state = stateRunning
	case s.phase == shimproto.PhasePaused:
		state = statePaused
	}
	if err := os.WriteFile(ownCommPath, []byte(state), 0); err != nil {
		return fmt.Errorf("writing state %s to /proc/self/comm: %w", state, err)
	}
	return nil
}

// finish writes the termination message and returns the exit code.
func (s *shim) finish() int {
	message := s.exit.TerminationMessage()
	// Only where kubelet has made the file: the root file system is read-only.
	log, err := os.OpenFile(terminationLog, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		_, err = log.WriteString(message)
		_ = log.Close()
	}
	if err != nil {
		logf("writing the termination message %q: %v", message, err)
	}
	s.sessions.End("the guest has ended: " + message)
	s.console.Flush(flushTimeout)
	return s.exit.Code
}

// logf writes to stderr, and so into the console's log, what is out of the ordinary.
func logf(format string, args ...any) {
	go fmt.Fprintf(os.Stderr, "berth: "+format+"\r\n", args...) // stderr may be stuck
}
