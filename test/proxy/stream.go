package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// fault makes, for one connection, what the server's pieces go through: it returns what goes on of a piece, and false to
// cut the connection.
type fault func() func(piece []byte) (on []byte, alive bool)

// Names of faults.
const (
	Pass  = "pass"  // spoils nothing
	Late  = "late"  // each piece comes 200 ms later
	Lost  = "lost"  // nothing comes
	Cut   = "cut"   // each connection ends after up to a thousand bytes
	Wrong = "wrong" // one bit of about every 200th byte is another
)

var faults = map[string]fault{
	Pass: func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) { return piece, true }
	},
	Late: func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			time.Sleep(200 * time.Millisecond) // the fault itself
			return piece, true
		}
	},
	Lost: func() func([]byte) ([]byte, bool) {
		return func([]byte) ([]byte, bool) { return nil, true }
	},
	Cut: func() func([]byte) ([]byte, bool) {
		left := rand.IntN(1000)
		return func(piece []byte) ([]byte, bool) {
			if len(piece) > left {
				return piece[:left], false
			}
			left -= len(piece)
			return piece, true
		}
	},
	Wrong: func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			for i := range piece {
				if rand.IntN(200) == 0 {
					piece[i] ^= 1 << rand.IntN(8)
				}
			}
			return piece, true
		}
	},
}

// stream is a proxy of byte streams over UNIX sockets. It spoils what the server says.
type stream struct {
	upstream string
	now      atomic.Pointer[spoiling]
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

// spoiling is one order being carried out.
type spoiling struct {
	fault  string
	pieces atomic.Int64 // that went through it
}

// Serve moves a server's socket aside and listens in its place, until the end of its orders. Each order, a line, names a
// fault that all the server says goes through from then on; connections that there are end, but for those that were there
// before all. It tells, a line each, which fault has spoilt how many pieces so far: "cut 3".
func Serve(socket string, orders io.Reader, tell io.Writer) (err error) {
	s := &stream{upstream: socket + ".real", conns: map[net.Conn]bool{}}
	info, err := os.Stat(socket)
	if err != nil {
		return err
	}
	if err := os.Rename(socket, s.upstream); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, os.Rename(s.upstream, socket))
		s.cut()
	}()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // the real one is there then
	defer listener.Close()
	if err := os.Chmod(socket, info.Mode().Perm()); err != nil {
		return err
	}
	s.spoil(Pass)
	go s.serve(listener)
	done := make(chan struct{})
	defer close(done)
	go s.tell(tell, done)
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		if faults[lines.Text()] == nil {
			return fmt.Errorf("unknown fault %q", lines.Text())
		}
		s.spoil(lines.Text())
	}
	return lines.Err()
}

func (s *stream) tell(to io.Writer, done <-chan struct{}) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			now := s.now.Load()
			fmt.Fprintln(to, now.fault, now.pieces.Load())
		}
	}
}

func (s *stream) spoil(fault string) {
	s.now.Store(&spoiling{fault: fault})
	s.cut()
}

func (s *stream) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close()
	}
}

func (s *stream) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go s.carry(conn)
		}
	}
}

func (s *stream) carry(conn net.Conn) {
	up, err := net.Dial("unix", s.upstream)
	if err != nil {
		_ = conn.Close()
		return
	}
	s.note(conn, up, true)
	now := s.now.Load()
	spoil := faults[now.fault]()
	var both sync.WaitGroup
	carry := func(to, from net.Conn, spoil func([]byte) ([]byte, bool)) {
		both.Go(func() {
			pump(to, from, spoil)
			_, _ = conn.Close(), up.Close() // one direction is of no use
		})
	}
	carry(up, conn, faults[Pass]())
	carry(conn, up, func(piece []byte) ([]byte, bool) {
		now.pieces.Add(1)
		return spoil(piece)
	})
	both.Wait()
	s.note(conn, up, false)
}

func (s *stream) note(conn, up net.Conn, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range []net.Conn{conn, up} {
		if open {
			s.conns[c] = true
		} else {
			delete(s.conns, c)
		}
	}
}

func pump(to io.Writer, from io.Reader, spoil func([]byte) ([]byte, bool)) {
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		on, alive := spoil(buffer[:n])
		if _, e := to.Write(on); e != nil || err != nil || !alive {
			return
		}
	}
}
