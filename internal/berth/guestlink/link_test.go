package guestlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// waitTimeout is patience with a busy machine; nothing is to take that long.
const waitTimeout = time.Minute

// sockets are the two ends of a port, as QEMU's socket has it.
func sockets(t testing.TB) (host, guest net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "port")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// changes are what a link's Changed was told.
type changes chan string

func (c changes) changed(up bool, version string) {
	if !up {
		version = "down"
	}
	select {
	case c <- version:
	default: // more than a test looks at
	}
}

func (c changes) await(t testing.TB, want string) {
	t.Helper()
	for {
		select {
		case got := <-c:
			if got == want {
				return
			}
		case <-time.After(waitTimeout):
			t.Fatalf("the link was never %q", want)
		}
	}
}

// serve runs a side until the test ends.
func serve(t testing.TB, l *Link, port io.ReadWriteCloser) changes {
	t.Helper()
	c := make(changes, 1000)
	l.Changed = c.changed
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.Serve(port)
	}()
	t.Cleanup(func() {
		_ = port.Close()
		<-done
	})
	return c
}

// client is a handler of the host's side.
type client struct {
	mu    sync.Mutex
	got   [channels]bytes.Buffer
	gate  chan struct{} // if not nil, Take waits for it
	free  int           // but for so many bytes first
	fails bool
	ended chan ending
}

type ending struct {
	code int
	err  error
}

func newClient() *client { return &client{ended: make(chan ending, 2)} }

func (c *client) Take(channel int, b []byte) error {
	c.mu.Lock()
	c.free -= len(b)
	isStuck := c.gate != nil && c.free < 0
	c.mu.Unlock()
	if isStuck {
		<-c.gate
	}
	if c.fails {
		return io.ErrClosedPipe
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got[channel].Write(b)
	return nil
}
func (c *client) Ended(code int, err error) { c.ended <- ending{code, err} }
func (c *client) Resize(Size)               { panic("the host has no terminal") }
func (c *client) Signal(int)                { panic("the host has no process") }

func (c *client) text(channel int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.got[channel].String()
}

// begun waits for output.
func (c *client) begun() {
	for c.text(Stdout) == "" {
		runtime.Gosched()
	}
}

func (c *client) await(t testing.TB) ending {
	t.Helper()
	select {
	case e := <-c.ended:
		return e
	case <-time.After(waitTimeout):
		t.Fatal("the stream never ended")
		return ending{}
	}
}

func (c *client) expect(t testing.TB, code int, err error) {
	t.Helper()
	if e := c.await(t); e.code != code || !errors.Is(e.err, err) {
		t.Fatalf("ended with code %d, %v; want %d, %v", e.code, e.err, code, err)
	}
}

// program is a handler of the guest's side: a process that is a function.
type program struct {
	stream *Stream
	Command
	in    chan []byte // closed at the end of stdin
	size  chan Size
	sigs  chan int
	hup   chan error
	delay chan struct{}
}

func (p *program) Take(channel int, b []byte) error {
	if channel != Stdin {
		panic("a guest takes stdin alone")
	}
	if p.delay != nil {
		<-p.delay
	}
	if b == nil {
		close(p.in)
		return nil
	}
	p.in <- bytes.Clone(b)
	return nil
}
func (p *program) Ended(_ int, err error) { p.hup <- err }
func (p *program) Resize(s Size)          { p.size <- s }
func (p *program) Signal(n int)           { p.sigs <- n }

// guest is a guest's side whose commands are functions.
func guest(run func(*program)) *Link {
	return &Link{Version: "v1", Accept: func(s *Stream, c Command) Handler {
		p := &program{stream: s, Command: c, in: make(chan []byte, 1000), size: make(chan Size, 10), sigs: make(chan int, 10), hup: make(chan error, 1)}
		go run(p)
		return p
	}}
}

// cat writes stdin to stdout, and then ends with the number of its arguments.
func cat(p *program) {
	for b := range p.in {
		if p.stream.Write(Stdout, b) != nil {
			return
		}
	}
	p.stream.Exit(byte(len(p.Args)))
}

func encode(t testing.TB, c Command) []byte {
	t.Helper()
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, l *Link, c *client, args ...string) *Stream {
	t.Helper()
	s, err := l.Open(encode(t, Command{Args: args}), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pair is both sides, up.
func pair(t testing.TB, run func(*program)) (host, guestSide *Link) {
	t.Helper()
	a, b := sockets(t)
	host, guestSide = &Link{Version: "shim"}, guest(run)
	atHost, atGuest := serve(t, host, a), serve(t, guestSide, b)
	atHost.await(t, "v1")
	atGuest.await(t, "shim")
	return host, guestSide
}

func TestCommandsArriveAsTheyWere(t *testing.T) {
	for name, c := range map[string]Command{
		"the smallest":            {Args: []string{""}},
		"all fields":              {Args: []string{"sh", "-c", "echo \xff\n", ""}, Env: []string{"A=b c", "B="}, User: "web:www", Dir: "/srv/x y", Terminal: true, Size: Size{50, 65535}},
		"without stdio":           {Args: []string{"true"}, Detached: true},
		"arguments like a header": {Args: []string{"true true 1 2 3"}, User: "false 9"},
	} {
		b, err := c.Encode()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := ParseCommand(b)
		if len(got.Env) == 0 {
			got.Env = nil
		}
		if diff := cmp.Diff(c, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
}

func TestWhatIsNoCommandIsRefused(t *testing.T) {
	for name, c := range map[string]Command{
		"without arguments":          {User: "root"},
		"NUL in an argument":         {Args: []string{"a\x00b"}},
		"NUL in the user":            {Args: []string{"a"}, User: "r\x00x"},
		"a mebibyte of arguments":    {Args: []string{"echo", strings.Repeat("x", 1<<20)}},
		"a million empty arguments":  {Args: make([]string, 1<<20)},
		"one byte more than a frame": {Args: []string{strings.Repeat("x", MaxFrame-len("false false 0 0 1")-2)}},
	} {
		if _, err := c.Encode(); err == nil {
			t.Errorf("%s is encoded", name)
		}
	}
	for _, text := range []string{"", "\x00\x00\x00", "false false 0 0 0\x00\x00\x00x", "false false 0 0 -1\x00\x00\x00x", "false false 0 0 2\x00\x00\x00x", "maybe false 0 0 1\x00\x00\x00x", "false false 0 70000 1\x00\x00\x00x"} {
		if c, err := ParseCommand([]byte(text)); err == nil {
			t.Errorf("%q is parsed: %+v", text, c)
		}
	}
}

func TestACommandIsServed(t *testing.T) {
	host, _ := pair(t, func(p *program) {
		for b := range p.in {
			_ = p.stream.Write(Stdout, bytes.ToUpper(b))
			_ = p.stream.Write(Stderr, []byte(fmt.Sprint(p.Args, p.User)))
		}
		n, size := <-p.sigs, <-p.size
		_ = p.stream.Write(Stdout, fmt.Appendf(nil, " signal %d size %v", n, size))
		p.stream.Exit(3)
	})
	c := newClient()
	s, err := host.Open(encode(t, Command{Args: []string{"up"}, User: "web"}), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(Stdin, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	s.CloseStdin()
	c.begun()
	s.CloseStdin() // once more, for nothing
	s.Signal(15)
	s.Resize(Size{24, 80})
	c.expect(t, 3, nil)
	if got := c.text(Stdout) + "|" + c.text(Stderr); got != "HELLO signal 15 size {24 80}|[up]web" {
		t.Errorf("got %q", got)
	}
	if err := s.Write(Stdin, []byte("x")); !errors.Is(err, errEnded) {
		t.Errorf("writing to a command that has ended: %v", err)
	}
	s.Reset()
	if len(c.ended) != 0 {
		t.Errorf("a second end: %v", <-c.ended)
	}
}

func TestABigStreamIsWholeAndInOrder(t *testing.T) {
	host, _ := pair(t, cat)
	c := newClient()
	s := open(t, host, c, "cat", "x")
	want := make([]byte, 5<<20+7)
	for i := range want {
		want[i] = byte(i * i >> 8)
	}
	if err := s.Write(Stdin, want); err != nil {
		t.Fatal(err)
	}
	s.CloseStdin()
	c.expect(t, 2, nil)
	if got := c.text(Stdout); got != string(want) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(want))
	}
}

func TestOneStuckReaderHoldsUpNobodyElse(t *testing.T) {
	host, _ := pair(t, cat)
	stuck := newClient()
	stuck.gate = make(chan struct{})
	s := open(t, host, stuck, "cat")
	text := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	go func() {
		_ = s.Write(Stdin, text)
		s.CloseStdin()
	}()
	var others sync.WaitGroup
	for i := range 31 {
		others.Go(func() {
			c := newClient()
			s := open(t, host, c, make([]string, i+1)...)
			if err := s.Write(Stdin, text); err != nil {
				t.Error(err)
			}
			s.CloseStdin()
			c.expect(t, i+1, nil)
			if c.text(Stdout) != string(text) {
				t.Errorf("stream %d got %d bytes, or others", i, len(c.text(Stdout)))
			}
		})
	}
	others.Wait()
	if len(stuck.ended) != 0 {
		t.Fatal("the stuck stream has ended")
	}
	close(stuck.gate)
	stuck.expect(t, 1, nil)
	if stuck.text(Stdout) != string(text) {
		t.Errorf("the stuck stream got %d bytes, or others", len(stuck.text(Stdout)))
	}
}

func TestAReaderThatFailsHoldsUpNoCommand(t *testing.T) {
	host, _ := pair(t, cat)
	c := newClient()
	c.fails = true
	s := open(t, host, c, "cat", "", "")
	if err := s.Write(Stdin, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	s.CloseStdin()
	c.expect(t, 3, nil)
}

func TestAResetHangsUp(t *testing.T) {
	hup := make(chan error, 1)
	host, _ := pair(t, func(p *program) {
		_ = p.stream.Write(Stdout, []byte("begun"))
		hup <- <-p.hup
	})
	c := newClient()
	s := open(t, host, c, "sleep")
	c.begun()
	s.Reset()
	c.expect(t, 0, ErrReset)
	if err := <-hup; !errors.Is(err, ErrReset) {
		t.Errorf("hung up for %v", err)
	}
	if err := s.Write(Stdin, []byte("x")); !errors.Is(err, ErrReset) {
		t.Errorf("writing then: %v", err)
	}
}

func TestMoreStreamsThanALinkHasAreRefused(t *testing.T) {
	release := make(chan struct{})
	host, _ := pair(t, func(p *program) { <-release; p.stream.Exit(7) })
	var clients []*client
	for range MaxStreams {
		clients = append(clients, newClient())
		open(t, host, clients[len(clients)-1], "sleep")
	}
	if _, err := host.Open(encode(t, Command{Args: []string{"x"}}), newClient()); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v, want %v", err, ErrFull)
	}
	close(release)
	for _, c := range clients {
		c.expect(t, 7, nil)
	}
	c := newClient()
	open(t, host, c, "sleep")
	c.expect(t, 7, nil)
}

func TestBeforeAHelloAndAfterTheEndNothingIsOpened(t *testing.T) {
	a, b := sockets(t)
	host := &Link{}
	if _, err := host.Open(encode(t, Command{Args: []string{"x"}}), newClient()); !errors.Is(err, ErrDown) {
		t.Errorf("before Serve: %v", err)
	}
	host.Leave()
	up := serve(t, host, a)
	if _, err := host.Open(encode(t, Command{Args: []string{"x"}}), newClient()); !errors.Is(err, ErrDown) {
		t.Errorf("before a hello: %v", err)
	}
	serve(t, guest(func(*program) {}), b)
	up.await(t, "v1")
	c := newClient()
	open(t, host, c, "sleep")
	_ = b.Close()
	c.expect(t, 0, ErrClosed)
	up.await(t, "down")
	if _, err := host.Open(encode(t, Command{Args: []string{"x"}}), newClient()); !errors.Is(err, ErrDown) {
		t.Errorf("after the end: %v", err)
	}
}

func TestAGuestThatLeavesEndsItsStreamsAtOnce(t *testing.T) {
	hup := make(chan error, 1)
	host, guestSide := pair(t, func(p *program) {
		_ = p.stream.Write(Stdout, []byte("begun"))
		hup <- <-p.hup
	})
	c := newClient()
	open(t, host, c, "sleep")
	c.begun()
	guestSide.Leave()
	c.expect(t, 0, ErrRestarted)
	if err := <-hup; !errors.Is(err, ErrClosed) {
		t.Errorf("hung up for %v", err)
	}
}

// raw is a guest's side by hand.
type raw struct {
	t    testing.TB
	conn net.Conn
	id   uint16 // of the stream that was opened
}

// rawGuest is up, with one stream.
func rawGuest(t testing.TB, c Handler) (*raw, *Link, changes) {
	t.Helper()
	a, b := sockets(t)
	host := &Link{}
	up := serve(t, host, a)
	r := &raw{t: t, conn: b}
	r.hello()
	up.await(t, "raw")
	s, err := host.Open(encode(t, Command{Args: []string{"x"}}), c)
	if err != nil {
		t.Fatal(err)
	}
	r.id = s.id
	r.until(kindOpen)
	return r, host, up
}

func (r *raw) hello() {
	r.t.Helper()
	r.write(appendHello(nil, 42, 0, ""))
	for {
		nonce, echo, _, _ := parseHello(r.until(kindHello))
		if echo == 42 {
			r.write(appendHello(nil, 42, nonce, "raw"))
			return
		}
	}
}

func (r *raw) write(b []byte) {
	r.t.Helper()
	if err := r.conn.SetWriteDeadline(time.Now().Add(waitTimeout)); err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) frame(k kind, id uint16, payload string) {
	r.t.Helper()
	r.write(append(header(nil, k, id, len(payload)), payload...))
}

// until reads frames until one of a kind, and returns what it carries.
func (r *raw) until(k kind) []byte {
	r.t.Helper()
	if err := r.conn.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		r.t.Fatal(err)
	}
	head := make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(r.conn, head[:1]); err != nil {
			r.t.Fatal(err)
		}
		if head[0] == padding {
			continue
		}
		if _, err := io.ReadFull(r.conn, head[1:]); err != nil {
			r.t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(r.conn, b); err != nil {
			r.t.Fatal(err)
		}
		if kind(head[1]) == k {
			return b
		}
	}
}

func TestHostileGuests(t *testing.T) {
	data := strings.Repeat("x", MaxFrame)
	for _, c := range []struct {
		name string
		do   func(*raw)
		want error
		down bool // the link, too
	}{
		{"a length beyond the limit", func(r *raw) { r.write(header(nil, kindStdout, r.id, MaxFrame+1)) }, ErrBroken, true},
		{"a length of 4 GiB", func(r *raw) { r.write(header(nil, kindStdout, r.id, 1<<32-1)) }, ErrBroken, true},
		{"an unknown type of 4 GiB", func(r *raw) { r.write(header(nil, 99, r.id, 1<<32-1)) }, ErrBroken, true},
		{"no magic byte", func(r *raw) { r.write([]byte("12345678")) }, ErrBroken, true},
		{"a credit of two bytes", func(r *raw) { r.frame(kindCredit, r.id, "12") }, ErrBroken, true},
		{"an exit without a code", func(r *raw) { r.frame(kindExit, r.id, "") }, ErrBroken, true},
		{"a hello without its marker", func(r *raw) { r.frame(kindHello, 0, data[:helloSize]) }, ErrBroken, true},
		{"a hello with control characters", func(r *raw) { r.write(appendHello(nil, 42, 7, "\x1b[2J")) }, ErrBroken, true},
		{"more than the window", func(r *raw) {
			for range Window/MaxFrame + 1 {
				r.frame(kindStdout, r.id, data)
			}
		}, ErrBroken, false},
		{"more than the window by turns", func(r *raw) {
			for i := range kind(Window/MaxFrame + 1) {
				r.frame(kindStdout+i%2, r.id, data)
			}
		}, ErrBroken, false},
		{"credit for what was never sent", func(r *raw) { r.frame(kindCredit, r.id, "\x00\x00\x00\x01") }, ErrBroken, false},
		{"4 GiB of credit", func(r *raw) { r.frame(kindCredit, r.id, "\xff\xff\xff\xff") }, ErrBroken, false},
		{"a reset", func(r *raw) { r.frame(kindReset, r.id, "") }, ErrReset, false},
		{"a new hello", func(r *raw) { r.write(appendHello(nil, 43, 0, "raw")) }, ErrRestarted, true},
		{"the end", func(r *raw) { _ = r.conn.Close() }, ErrClosed, true},
		{"the end in mid frame", func(r *raw) { r.write(header(nil, kindStdout, r.id, 9)); _ = r.conn.Close() }, ErrClosed, true},
		{"nonsense and echoes first", func(r *raw) {
			for _, k := range []kind{kindOpen, kindStdin, kindCredit + 50, 0, 255} {
				r.frame(k, r.id, "zz")
			}
			r.frame(kindEnd, r.id, "")
			r.frame(kindWindowSize, r.id, "1234")
			r.frame(kindSignal, r.id, "1")
			r.frame(kindReset, r.id, "")
		}, ErrReset, false},
		{"ten thousand unknown streams first", func(r *raw) {
			for i := range 10_000 {
				r.frame(kindStdout+kind(i%2), r.id+uint16(i)+1, "x")
			}
			r.frame(kindReset, r.id, "")
		}, ErrReset, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			stuck := newClient()
			stuck.gate = make(chan struct{})
			t.Cleanup(func() { close(stuck.gate) })
			r, host, up := rawGuest(t, stuck)
			c.do(r)
			stuck.expect(t, 0, c.want)
			if c.down {
				up.await(t, "down")
			}
			if errors.Is(c.want, ErrClosed) {
				return
			}
			if c.down { // it is heard again once it says hello
				r.hello()
				up.await(t, "raw")
			}
			next := newClient()
			s := open(t, host, next, "again")
			r.frame(kindExit, s.id, "\x09")
			next.expect(t, 9, nil)
			if n := streams(host); n != 0 && errors.Is(c.want, ErrReset) {
				t.Errorf("%d streams are left", n)
			}
		})
	}
}

func streams(l *Link) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.streams)
}

func TestEndlessHellosAreAnsweredByBoundedWork(t *testing.T) {
	c := newClient()
	r, host, up := rawGuest(t, c)
	var hellos []byte
	for i := range 10_000 { // nobody reads the answers
		hellos = appendHello(hellos, uint64(100+i), 0, "raw")
	}
	before := runtime.NumGoroutine()
	r.write(hellos)
	c.expect(t, 0, ErrRestarted)
	r.hello()
	up.await(t, "raw")
	if n := runtime.NumGoroutine(); n > before+2 {
		t.Errorf("%d goroutines, before %d", n, before)
	}
	next := newClient()
	s := open(t, host, next, "again")
	r.frame(kindExit, s.id, "\x00")
	next.expect(t, 0, nil)
}

func TestAGuestThatNeverReadsHoldsNothingUp(t *testing.T) {
	a, b := sockets(t)
	host := &Link{}
	up := serve(t, host, a)
	r := &raw{t: t, conn: b}
	r.hello()
	up.await(t, "raw")
	for range 10 { // more than any socket holds, were each of them kept
		var clients []*client
		var all []*Stream
		for {
			c := newClient()
			s, err := host.Open(encode(t, Command{Args: []string{strings.Repeat("x", MaxFrame-100)}}), c)
			if err != nil {
				break
			}
			go func() { _ = s.Write(Stdin, make([]byte, Window)) }()
			clients, all = append(clients, c), append(all, s)
		}
		for i, s := range all {
			s.Reset()
			clients[i].expect(t, 0, ErrReset)
		}
	}
	if n := streams(host); n > MaxStreams {
		t.Errorf("%d streams", n)
	}
}

func TestHalfAFrameOfAKilledProgramDoesNoHarm(t *testing.T) {
	for n := 1; n < headerSize+MaxFrame; n = n*5/2 + 1 {
		c := newClient()
		r, host, up := rawGuest(t, c)
		half := append(header(nil, kindStdout, r.id, MaxFrame), make([]byte, MaxFrame)...)
		r.write(half[:n])
		next := guest(cat)
		serve(t, next, r.conn)
		if e := c.await(t); !errors.Is(e.err, ErrRestarted) && (n >= headerSize || !errors.Is(e.err, ErrBroken)) {
			t.Errorf("after %d bytes: %+v", n, e)
		}
		up.await(t, "v1")
		again := newClient()
		s := open(t, host, again, "cat")
		if err := s.Write(Stdin, []byte("hello")); err != nil {
			t.Error(err)
		}
		s.CloseStdin()
		again.expect(t, 1, nil)
		if again.text(Stdout) != "hello" {
			t.Errorf("after %d bytes got %q", n, again.text(Stdout))
		}
	}
}

func TestStuckSessionsHoldTheirWindowsAndNoMore(t *testing.T) {
	for _, c := range []struct{ sessions, size int }{{32, MaxFrame}, {2, 1}} {
		t.Run(fmt.Sprintf("%d by frames of %d bytes", c.sessions, c.size), func(t *testing.T) {
			stuck := newClient()
			stuck.gate = make(chan struct{})
			r, host, _ := rawGuest(t, stuck)
			ids := []uint16{r.id}
			for range c.sessions - 1 {
				ids = append(ids, open(t, host, stuck, "x").id)
			}
			before := heap()
			for _, id := range ids {
				var frames []byte
				for i := range Window / c.size {
					frames = append(append(frames, header(nil, kindStdout+kind(i%2), id, c.size)...), make([]byte, c.size)...)
				}
				r.write(frames)
			}
			last := newClient()
			s := open(t, host, last, "last")
			r.frame(kindExit, s.id, "\x00")
			last.expect(t, 0, nil)
			limit := c.sessions * (Window + 4*chunkSize)
			if used := heap() - before; used > limit {
				t.Errorf("stuck sessions hold %d bytes, more than %d", used, limit)
			}
			for _, id := range ids {
				r.frame(kindReset, id, "")
			}
			for range ids {
				stuck.expect(t, 0, ErrReset)
			}
			if used := heap() - before; used > c.sessions*4*chunkSize {
				t.Errorf("they leave %d bytes behind", used)
			}
			close(stuck.gate)
		})
	}
}

func TestWhatIsTakenIsGivenBack(t *testing.T) {
	c := newClient()
	c.gate, c.free = make(chan struct{}), Window-chunkSize
	r, _, _ := rawGuest(t, c)
	before := heap()
	for range Window / MaxFrame {
		r.frame(kindStdout, r.id, strings.Repeat("x", MaxFrame))
	}
	for len(c.text(Stdout)) < Window-chunkSize {
		runtime.Gosched()
	}
	c.mu.Lock()
	c.got[Stdout] = bytes.Buffer{}
	c.mu.Unlock()
	if used := heap() - before; used > Window/4 {
		t.Errorf("%d bytes are held for a client that has taken all but %d", used, chunkSize)
	}
	close(c.gate)
}

func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// splicer is a port whose host reads nothing for a while.
type splicer struct {
	net.Conn
	at, gate chan struct{}
}

func (p splicer) Splice(_, _ int, header func(int) []byte) (int, error) {
	frame := append(header(3), "abc"...)
	close(p.at)
	<-p.gate
	_, err := p.Write(frame)
	return 3, err
}

func TestASpliceIsWholeAndHoldsUpNoReset(t *testing.T) {
	a, b := sockets(t)
	port := splicer{b, make(chan struct{}), make(chan struct{})}
	host := &Link{}
	up := serve(t, host, a)
	begun, results := make(chan struct{}, 2), make(chan error, 2)
	serve(t, guest(func(p *program) {
		begun <- struct{}{}
		_, err := p.stream.Splice(Stdout, 0, Window)
		results <- err
		p.stream.Exit(7)
	}), port)
	up.await(t, "v1")
	first, second := newClient(), newClient()
	open(t, host, first, "x")
	<-port.at
	s := open(t, host, second, "x")
	<-begun
	<-begun
	s.Reset()
	if err := <-results; !errors.Is(err, ErrReset) {
		t.Errorf("a stream that waits for the port ended by %v", err)
	}
	close(port.gate)
	if err := <-results; err != nil {
		t.Error(err)
	}
	first.expect(t, 7, nil)
	if got := first.text(Stdout); got != "abc" {
		t.Errorf("got %q", got)
	}
}
