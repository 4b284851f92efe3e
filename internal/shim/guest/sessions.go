package guest

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/shim/client"
	"github.com/berth-dev/berth/internal/shim/socket"
)

const (
	maxCommands = 32 // at once
	maxProbes   = 4  // besides
	maxClients  = 64 // others wait in the socket's queue

	// silence is how long a command has to be silent, at least, before it makes room for another.
	silence = time.Minute
	// startup is for how long a guest that runs is taken to start, and helloTimeout how long commands wait for the guest
	// program meanwhile.
	startup      = 2 * time.Minute
	helloTimeout = 15 * time.Second
	// openTimeout is how long a guest program that answers may take to say that it has a command.
	openTimeout = 15 * time.Second
	// actTimeout is how long a client waits for the agent.
	actTimeout = 30 * time.Second
	// endTimeout is how long the reason of a guest's end may take to come, and answerTimeout a client to tell it.
	endTimeout    = 5 * time.Second
	answerTimeout = time.Second
	// restTimeout is how long after the last session memory goes back to the machine.
	restTimeout = 5 * time.Second
)

// Sessions are the clients of one shim, and its link to the guest program.
type Sessions struct {
	name    string
	note    func()
	logf    func(format string, args ...any)
	link    guestlink.Link
	clients chan struct{} // one for each, maxClients at most
	told    sync.Once     // that a client was hung up on

	mu       sync.Mutex
	changed  chan struct{} // closed, and another one made, when any of these changes
	sessions []*session    // in the order of their begin
	facts    Facts
	up       bool
	upSince  time.Time
	started  time.Time // when the guest was first told to run, or was last reset
	direct   bool      // it boots a kernel directly
	paused   bool
	done     Facts // Resets and NMIs that are carried out
	rest     *time.Timer
}

// Facts are what the agent is to know.
type Facts struct {
	// Tools is the version of the guest program that answered last.
	Tools        string
	Resets, NMIs uint64 // that clients asked for
}

// New makes the sessions of the VM of that name. It calls note, which must neither block nor call it, when Facts has
// something new.
func New(name string, note func(), logf func(string, ...any)) *Sessions {
	s := &Sessions{name: name, note: note, logf: logf, clients: make(chan struct{}, maxClients), changed: make(chan struct{})}
	s.link.Changed = s.linkChanged
	s.rest = time.AfterFunc(restTimeout, func() {
		runtime.GC() // a pool keeps its buffers until the second time
		debug.FreeOSMemory()
	})
	return s
}

// Serve serves clients. It never returns.
func (s *Sessions) Serve() {
	socket.Serve(&unix.SockaddrUnix{Name: client.Address}, func(conn *os.File) {
		s.clients <- struct{}{}
		go func() {
			defer func() { <-s.clients }()
			defer conn.Close()
			s.serve(conn)
		}()
	}, s.logf)
}

// Attach serves the guest's port, which it owns from now on, and which is non-blocking. A guest that boots a kernel
// directly has no disk with the guest program.
func (s *Sessions) Attach(port *os.File, directKernel bool) {
	s.change(func() { s.direct = directKernel })
	go s.link.Serve(port)
}

// Running tells that the guest has started, and whether its vCPUs are paused.
func (s *Sessions) Running(paused bool) {
	s.change(func() {
		if s.paused = paused; s.started.IsZero() {
			s.started = time.Now()
		}
	})
}

// Reset tells when the guest was reset: what ran in it then is gone. A guest program that has said hello since was heard first.
func (s *Sessions) Reset(at time.Time) {
	var gone bool
	s.change(func() {
		if at.After(s.started) {
			s.started = at
		}
		gone = s.up && s.upSince.Before(at)
	})
	if gone {
		s.link.Restart()
	}
}

// Acted tells how many actions are carried out.
func (s *Sessions) Acted(resets, nmis uint64) {
	s.change(func() { s.done.Resets, s.done.NMIs = resets, nmis })
}

// Facts returns what is known now.
func (s *Sessions) Facts() Facts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.facts
}

// End tells all clients that the guest has ended, and waits a little until they have said so.
func (s *Sessions) End(message string) {
	s.mu.Lock()
	all := slices.Clone(s.sessions)
	s.mu.Unlock()
	for _, n := range all {
		n.end(client.CodeLost, message)
	}
	for late := time.Now().Add(answerTimeout); len(all) > 0 && len(s.clients) > 0 && time.Now().Before(late); {
		time.Sleep(10 * time.Millisecond)
	}
}

// change changes something under the lock, and wakes up who waits for that.
func (s *Sessions) change(something func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	something()
	close(s.changed)
	s.changed = make(chan struct{})
}

// linkChanged is called by the link.
func (s *Sessions) linkChanged(up bool, version string) {
	s.change(func() {
		if s.up = up; up {
			s.facts.Tools, s.upSince = version, time.Now()
		}
	})
	s.note()
}

// await waits until is, which is called under the lock, says yes. It gives up after the timeout and when the session ends.
func (s *Sessions) await(n *session, timeout time.Duration, is func() bool) bool {
	late := time.NewTimer(timeout)
	defer late.Stop()
	for {
		s.mu.Lock()
		yes, changed := is(), s.changed
		s.mu.Unlock()
		if yes {
			return true
		}
		select {
		case <-changed:
		case <-n.ended:
			return false
		case <-late.C:
			return false
		}
	}
}

// serve serves one client until it hangs up.
func (s *Sessions) serve(conn *os.File) {
	r, command, files, err := request(conn)
	if err != nil {
		s.told.Do(func() { s.logf("hung up on a client, and will on others like it: %v", err) })
		return
	}
	n := &session{sessions: s, conn: conn, request: r, files: files, ended: make(chan struct{}), began: time.Now()}
	n.touch()
	defer n.end(client.CodeLost, "")
	if r.Kind == client.Reset || r.Kind == client.NMI {
		go s.act(n)
	} else {
		go s.run(n, command)
	}
	packet := make([]byte, 8)
	for {
		count, err := conn.Read(packet)
		if err != nil || count == 0 {
			return
		}
		if size, ok := client.ParseSize(packet[:count]); ok {
			n.resize(size)
		}
	}
}

// run opens a stream for a command.
func (s *Sessions) run(n *session, command []byte) {
	if !n.request.Detached && len(n.files) != maxFiles {
		n.end(client.CodeUsage, "this is no client: it passes no standard input, output and error")
		return
	}
	refusal := s.admit(n)
	if refusal == nil {
		refusal = s.ready(n)
	}
	if refusal == nil {
		if stream, err := s.link.Open(command, n); err == nil {
			refusal = n.begin(stream)
		} else {
			refusal = s.noProgram()
		}
	}
	if refusal != nil {
		n.end(refusal.code, refusal.message)
	}
}

// answer is one that does not come from the command.
type answer struct {
	code    int
	message string
}

// admit takes a place for a session, if need be that of the command that has been silent for longest.
func (s *Sessions) admit(n *session) *answer {
	s.mu.Lock()
	victim, refusal := s.place(n)
	if refusal == nil {
		s.sessions = append(s.sessions, n)
		s.rest.Stop()
	}
	s.mu.Unlock()
	if victim != nil {
		victim.end(client.CodeLost, fmt.Sprintf("this command was silent for %v, and made room for another: %d run in a guest at once", victim.silence().Round(time.Second), maxCommands))
	}
	return refusal
}

// place finds the session, if any, whose place another is to take.
func (s *Sessions) place(n *session) (victim *session, refusal *answer) {
	limit, isProbe := maxCommands, n.request.Kind != client.Exec
	if isProbe {
		limit = maxProbes
	}
	rivals := slices.DeleteFunc(slices.Clone(s.sessions), func(o *session) bool { return (o.request.Kind != client.Exec) != isProbe })
	switch {
	case n.isOver(): // the client has hung up: nothing would take the session out of the list any more
		return nil, &answer{}
	case len(rivals) < limit:
		return nil, nil
	}
	victim = slices.MinFunc(rivals, func(a, b *session) int { return cmp.Compare(a.active.Load(), b.active.Load()) })
	if isProbe || victim.silence() < silence {
		return nil, &answer{client.CodeRefused, fmt.Sprintf("%d commands run in this guest already: end one; the oldest, %s, runs for %v",
			limit, rivals[0].name(), time.Since(rivals[0].began).Round(time.Second))}
	}
	return victim, nil
}

// ready waits for the guest program, if that is any use. It returns nil where the command is to run.
func (s *Sessions) ready(n *session) *answer {
	s.mu.Lock()
	timeout := helloTimeout
	if n.request.Kind != client.Exec || !s.started.IsZero() && time.Since(s.started) > startup {
		timeout = 0
	}
	paused, neverUp := s.paused, s.facts.Tools == ""
	s.mu.Unlock()
	switch {
	case n.request.Kind == client.Liveness && neverUp:
		return &answer{} // it cannot be told from a guest that has no program
	case paused:
		return &answer{client.CodeRefused, "the guest is paused: kubectl vm unpause " + s.name}
	case !s.await(n, timeout, func() bool { return s.up }):
		return s.noProgram()
	}
	return nil
}

func (s *Sessions) noProgram() *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started.IsZero() {
		return &answer{client.CodeRefused, "the guest does not run yet: kubectl describe vm " + s.name + " tells why"}
	}
	if s.direct {
		return &answer{client.CodeRefused, "no guest program answers: the guest boots a kernel directly, and so has no disk with it: " +
			"put berth-guest into its initrd, and start it there (docs/exec.md)"}
	}
	return &answer{client.CodeRefused, "no guest program answers: with spec.guestTools Offered the guest has a disk with it; in the guest (kubectl attach -it " + s.name +
		", or ssh) run: mount -r LABEL=BERTH /mnt && sh /mnt/start"}
}

// act has an action carried out by the agent.
func (s *Sessions) act(n *session) {
	asked, done, word := &s.facts.Resets, &s.done.Resets, "reset"
	if n.request.Kind == client.NMI {
		asked, done, word = &s.facts.NMIs, &s.done.NMIs, "NMI"
	}
	var count uint64
	s.change(func() {
		*asked++
		count = *asked
	})
	s.note()
	if s.await(n, actTimeout, func() bool { return *done >= count }) {
		n.end(0, "")
		return
	}
	n.end(1, fmt.Sprintf("the node's agent does not answer: the %s is carried out as soon as it does", word))
}

// leave gives a session's place back.
func (s *Sessions) leave(n *session) {
	s.change(func() {
		s.sessions = slices.DeleteFunc(s.sessions, func(other *session) bool { return other == n })
		if len(s.sessions) == 0 {
			s.rest.Reset(restTimeout)
		}
	})
}

// name is a command's, for people.
func (n *session) name() string {
	const limit = 40
	text := strings.Join(n.request.Args, " ")
	if len(text) > limit {
		text = text[:limit] + "…"
	}
	return fmt.Sprintf("%+q", text)
}
