package shimproto

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sendBuffer holds some 20 States while there is no agent: the next one takes maxBurst of them at once, and no more.
const sendBuffer = 8 << 10

// Shim is the shim's end of the socket pair.
type Shim struct {
	socket  *os.File
	pending chan State // of size one: only the latest counts
}

// Listen makes the pair and puts the agent's end at AgentFD, where it stays: so
// the connection never breaks while the shim lives, whatever becomes of agents.
func Listen() (*Shim, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making the socket pair: %w", err)
	}
	s, err := pollable(ends[0], "shim's end")
	if err != nil {
		return nil, fmt.Errorf("making the socket pair: %w", err)
	}
	if err := unix.Dup3(ends[1], AgentFD, unix.O_CLOEXEC); err != nil {
		return nil, fmt.Errorf("placing the agent's end at %d: %w", AgentFD, err)
	}
	err = cmp.Or(unix.Close(ends[1]), unix.SetsockoptInt(ends[0], unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer))
	if err != nil {
		return nil, fmt.Errorf("making the socket pair: %w", err)
	}
	shim := &Shim{socket: s, pending: make(chan State, 1)}
	go shim.send()
	return shim, nil
}

// Publish sends the state. It never blocks: while the socket is full, only the
// latest state waits. It is called from one goroutine.
func (s *Shim) Publish(state State) {
	select {
	case <-s.pending:
	default:
	}
	s.pending <- state
}

func (s *Shim) send() {
	for state := range s.pending {
		data, err := encode(state)
		if err != nil {
			continue // cannot be: the shim made it of checked parts
		}
		_, _ = s.socket.Write(data) // waits while the socket is full; both ends are ours; what is lost, the next Hello asks for
	}
}

// Receive calls handle with each message and the descriptors that came with it, which are handle's to close, and complain
// with why a message was left out. It never returns: without its socket the shim would be lost, and its guest with it.
func (s *Shim) Receive(handle func(Message, []*os.File), complain func(error)) {
	data, rights := make([]byte, MaxMessage+1), make([]byte, unix.CmsgSpace(4*MaxDescriptors))
	for {
		n, files, _, err := ReadPacket(s.socket, data, rights)
		if err != nil {
			complain(fmt.Errorf("receiving: %w", err))
			if !errors.Is(err, errBroken) {
				time.Sleep(time.Second) // the machine lacks memory, say
			}
			continue
		}
		m, err := decode(data[:n])
		if err != nil {
			CloseAll(files)
			complain(err)
			continue
		}
		handle(m, files)
	}
}
