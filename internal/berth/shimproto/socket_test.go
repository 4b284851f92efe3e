package shimproto

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// self is a pidfd of this process, which is agent and shim in these tests.
func self(t *testing.T) int {
	t.Helper()
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// place puts a copy of fd where an agent looks, for the time of the test.
func place(t *testing.T, fd int) {
	t.Helper()
	if err := unix.Dup3(fd, AgentFD, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(AgentFD) })
}

// pair places the agent's end of a fresh pair and returns the shim's.
func pair(t *testing.T) int {
	t.Helper()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	place(t, ends[1])
	_ = unix.Close(ends[1])
	t.Cleanup(func() { _ = unix.Close(ends[0]) })
	return ends[0]
}

func take(t *testing.T) *Agent {
	t.Helper()
	agent, err := Take(self(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Close() })
	return agent
}

// outcome waits for what Receive returns.
func outcome(t *testing.T, agent *Agent) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- agent.Receive(func(State) {}) }()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("Receive did not return")
		return nil
	}
}

func TestTakeRefusesOtherDescriptors(t *testing.T) {
	socket := func(domain, kind int) int {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	stream, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{
		"a file":                   null,
		"a stream socket":          stream[0],
		"a UDP socket":             socket(unix.AF_INET, unix.SOCK_DGRAM),
		"a socket without a peer":  socket(unix.AF_UNIX, unix.SOCK_SEQPACKET),
		"a netlink socket":         socket(unix.AF_NETLINK, unix.SOCK_RAW),
		"the end of a stream pair": stream[1],
	} {
		t.Run(name, func(t *testing.T) {
			place(t, fd)
			_ = unix.Close(fd)
			if agent, err := Take(self(t)); err == nil || errors.Is(err, ErrAbsent) {
				t.Errorf("Take: %v, %v", agent, err)
			}
		})
	}
}

func TestTakeTellsThatThereIsNoSocket(t *testing.T) {
	if _, err := Take(self(t)); !errors.Is(err, ErrAbsent) {
		t.Errorf("nothing there: %v", err)
	}
	gone, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(gone.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := gone.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := Take(fd); !errors.Is(err, ErrAbsent) {
		t.Errorf("process ended: %v", err)
	}
}

func TestAgentGivesUpOnAShimThat(t *testing.T) {
	const valid = `{"v":1,"state":{"minor":3,"takes":["console"]}}`
	send := func(text string, times int) func(t *testing.T, shim int) {
		return func(t *testing.T, shim int) {
			for range times {
				if err := unix.Sendmsg(shim, []byte(text), nil, nil, 0); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for name, does := range map[string]func(t *testing.T, shim int){
		"sends no JSON":            send("{", 1),
		"sends an agent's message": send(`{"v":1,"hello":{}}`, 1),
		"sends too much at once":   send(string(make([]byte, MaxMessage+2)), 1),
		"sends too often":          send(valid, maxBurst+1),
		"sends odd things often":   send(`{"v":1,"dance":{}}`, maxBurst+1),
		"takes a kind twice":       send(`{"v":1,"state":{"minor":1,"takes":["console","console"]}}`, 1),
		"says nothing it takes":    send(`{"v":1,"state":{}}`, 1),
		"takes odd letters":        send(`{"v":1,"state":{"minor":1,"takes":["\u001b[2J"]}}`, 1),
		"passes a descriptor": func(t *testing.T, shim int) {
			if err := unix.Sendmsg(shim, []byte(valid), unix.UnixRights(shim), nil, 0); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			shim := pair(t)
			agent := take(t)
			does(t, shim)
			if err := outcome(t, agent); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("Receive: %v", err)
			}
			if copies(t, AgentFD) != 1 {
				t.Error("its own end stays open")
			}
			if copies(t, shim) != 1 {
				t.Error("it took the descriptor that was passed")
			}
		})
	}
}

// copies counts this process's descriptors of what fd is, fd among them.
func copies(t *testing.T, fd int) (n int) {
	t.Helper()
	const open = "/proc/self/fd"
	is, err := os.Readlink(filepath.Join(open, strconv.Itoa(fd)))
	if err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(open)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		if other, err := os.Readlink(filepath.Join(open, entry.Name())); err == nil && other == is { // some close meanwhile
			n++
		}
	}
	return n
}

func TestReceiveEndsWithTheShimAndWithClose(t *testing.T) {
	shim := pair(t)
	agent := take(t)
	_ = unix.Shutdown(shim, unix.SHUT_RDWR) // as the shim's end does
	if err := outcome(t, agent); !errors.Is(err, io.EOF) {
		t.Errorf("the shim ended: %v", err)
	}
	agent = take(t)
	_ = agent.Close()
	if err := outcome(t, agent); err != nil {
		t.Errorf("closed: %v", err)
	}
}

func TestAShimThatDoesNotReadHoldsUpNobody(t *testing.T) {
	pair(t)
	agent := take(t)
	began := time.Now()
	var err error
	for err == nil {
		err = agent.Send(t.Context(), Hello{})
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("full socket: %v", err)
	}
	// O_NONBLOCK belongs to the end, so a hostile shim can clear it.
	if err := unix.SetNonblock(AgentFD, false); err != nil {
		t.Fatal(err)
	}
	if err := agent.Send(t.Context(), Hello{}); !errors.Is(err, ErrFull) {
		t.Errorf("full socket that was made blocking: %v", err)
	}
	// So does its size, to which a message need not fit.
	if err := unix.SetsockoptInt(AgentFD, unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	if err := agent.Send(t.Context(), Hello{}); !errors.Is(err, ErrFull) {
		t.Errorf("socket without room: %v", err)
	}
	if took := time.Since(began); took > 3*time.Second { // it waited 5 s for each, once
		t.Errorf("that took %v", took)
	}
	done := make(chan error, 1)
	go func() { done <- agent.Receive(func(State) {}) }()
	_ = agent.Close()
	if err := <-done; err != nil {
		t.Errorf("closed while it waited: %v", err)
	}
}

func TestAFullSocketKeepsTheLatestState(t *testing.T) {
	shim, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shim.socket.Close(); _ = unix.Close(AgentFD) })
	const last = 100_000
	for i := range last {
		shim.Publish(State{Minor: Minor, Kinds: []Kind{KindConsole}, InstanceID: "r", TerminatingSinceNS: int64(i + 1)})
	}
	var previous int64
	fd := AgentFD
	buf := make([]byte, MaxMessage)
	for previous != last {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000); err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		m, err := decode(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		if now := m.(State).TerminatingSinceNS; now <= previous {
			t.Fatalf("state %d came after %d", now, previous)
		} else {
			previous = now
		}
	}
}

func TestDescriptorsArriveInOrderAndNonBlocking(t *testing.T) {
	shim, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(AgentFD) })
	agent := take(t)
	var files []*os.File
	for i := range MaxDescriptors {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
		files = append(files, r)
	}
	got := make(chan []*os.File)
	complaint := make(chan error, 1)
	go shim.Receive(func(_ Message, files []*os.File) { got <- files }, func(err error) { complaint <- err })
	message := HandOver{InstanceID: "r", Devices: devices(MaxDescriptors)}
	if err := agent.Send(t.Context(), message, files...); err != nil {
		t.Fatal(err)
	}
	arrived := <-got
	if len(arrived) != len(files) {
		t.Fatalf("%d descriptors of %d arrived", len(arrived), len(files))
	}
	for i, f := range arrived {
		buf := make([]byte, 1)
		if _, err := f.Read(buf); err != nil || buf[0] != byte(i) {
			t.Errorf("descriptor %d: %d, %v", i, buf, err)
		}
		if err := f.SetReadDeadline(time.Now()); err != nil {
			t.Errorf("descriptor %d is blocking: %v", i, err)
		}
		_ = f.Close()
	}
	if err := agent.Send(t.Context(), message, append(files, files[0])...); err == nil {
		t.Errorf("%d descriptors were sent", len(files)+1)
	}
	passed := int(files[0].Fd())
	before := copies(t, passed)
	tooMany := make([]int, MaxDescriptors+1)
	for i := range tooMany {
		tooMany[i] = passed
	}
	if err := unix.Sendmsg(AgentFD, []byte(`{"v":1,"hello":{}}`), unix.UnixRights(tooMany...), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := <-complaint; !errors.Is(err, errBroken) {
		t.Errorf("too many descriptors: %v", err)
	}
	if after := copies(t, passed); after != before {
		t.Errorf("%d copies of a descriptor became %d", before, after)
	}
}
