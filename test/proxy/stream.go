package proxy

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Fault makes, for one connection, what the server's pieces go through: it returns what goes on of a piece, and false to
// cut the connection.
type Fault func() func(piece []byte) (on []byte, alive bool)

// Pass spoils nothing.
func Pass() func([]byte) ([]byte, bool) {
	return func(piece []byte) ([]byte, bool) { return piece, true }
}

// Delay has each piece come so much later.
func Delay(by time.Duration) Fault {
	return func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			time.Sleep(by) // the fault itself
			return piece, true
		}
	}
}

// BlackHole swallows everything.
func BlackHole() func([]byte) ([]byte, bool) {
	return func([]byte) ([]byte, bool) { return nil, true }
}

// Cut ends each connection after a random number of bytes below so many.
func Cut(within int) Fault {
	return func() func([]byte) ([]byte, bool) {
		left := rand.IntN(within)
		return func(piece []byte) ([]byte, bool) {
			if len(piece) > left {
				return piece[:left], false
			}
			left -= len(piece)
			return piece, true
		}
	}
}

// Wrong changes one bit of about every so manieth byte.
func Wrong(every int) Fault {
	return func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			for i := range piece {
				if rand.IntN(every) == 0 {
					piece[i] ^= 1 << rand.IntN(8)
				}
			}
			return piece, true
		}
	}
}

// Stream is a proxy of byte streams over UNIX sockets. It spoils what the server says, and nothing at first.
type Stream struct {
	listener         net.Listener
	socket, upstream string
	given            sync.Once
	fault            atomic.Pointer[Fault]
	pieces           atomic.Int64 // that the server said since the fault is there
	mu               sync.Mutex
	conns            map[net.Conn]bool
}

// TakeOver moves a server's socket aside and listens in its place, until it is given back or the test is over. Who is
// connected stays so.
func TakeOver(t testing.TB, socket string) *Stream {
	t.Helper()
	s := &Stream{socket: socket, upstream: socket + ".real", conns: map[net.Conn]bool{}}
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(socket, s.upstream); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.GiveBack(t) })
	if s.listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	s.listener.(*net.UnixListener).SetUnlinkOnClose(false) // the real one is there then
	if err := os.Chmod(socket, info.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
	s.Spoil(Pass)
	go s.serve()
	return s
}

// GiveBack ends the proxy and its connections. The server's socket is where it was.
func (s *Stream) GiveBack(t testing.TB) {
	s.given.Do(func() {
		if err := os.Rename(s.upstream, s.socket); err != nil {
			t.Errorf("giving back the socket: %v", err)
		}
		if s.listener != nil {
			_ = s.listener.Close()
		}
		s.cut()
	})
}

// Spoil has all the server says go through a fault from now on. Connections that there are end.
func (s *Stream) Spoil(f Fault) {
	s.fault.Store(&f)
	s.pieces.Store(0)
	s.cut()
}

// Pieces is how many pieces have gone through the fault.
func (s *Stream) Pieces() int64 { return s.pieces.Load() }

func (s *Stream) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close()
	}
}

func (s *Stream) serve() {
	for {
		conn, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			go s.carry(conn)
		}
	}
}

func (s *Stream) carry(conn net.Conn) {
	up, err := net.Dial("unix", s.upstream)
	if err != nil {
		_ = conn.Close()
		return
	}
	s.note(conn, up, true)
	spoil := (*s.fault.Load())()
	var both sync.WaitGroup
	carry := func(to, from net.Conn, spoil func([]byte) ([]byte, bool)) {
		both.Go(func() {
			pump(to, from, spoil)
			_, _ = conn.Close(), up.Close() // one direction is of no use
		})
	}
	carry(up, conn, Pass())
	carry(conn, up, func(piece []byte) ([]byte, bool) {
		s.pieces.Add(1)
		return spoil(piece)
	})
	both.Wait()
	s.note(conn, up, false)
}

func (s *Stream) note(conn, up net.Conn, open bool) {
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
