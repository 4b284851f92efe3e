package guestlink

import (
	"bufio"
	"bytes"
	"testing"
)

// seeds are what a link may read.
func seeds(f *testing.F) {
	frame := func(k kind, id uint16, payload string) []byte {
		return append(header(nil, k, id, len(payload)), payload...)
	}
	command, err := Command{Args: []string{"sh"}, Terminal: true}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(appendHello(nil, 43, 42, "v"))
	f.Add(bytes.Join([][]byte{frame(99, 1, "?"), {padding}, []byte("junk"), appendHello(nil, 43, 42, "v"), frame(kindStdout, 1, "x")}, nil))
	f.Add(bytes.Join([][]byte{frame(kindOpen, 9, string(command)), frame(kindStdin, 9, "in"), frame(kindEnd, 9, ""), frame(kindReset, 9, "")}, nil))
	f.Add(bytes.Join([][]byte{frame(kindSignal, 1, "\x0f"), frame(kindWindowSize, 1, "1234"), frame(kindCredit, 1, "\x00\x00\x00\x01")}, nil))
	var opens []byte // more than a link has streams
	for id := range uint16(2 * MaxStreams) {
		opens = append(opens, frame(kindOpen, 100+id, string(command))...)
	}
	f.Add(opens)
	f.Add(bytes.Join([][]byte{frame(kindStdout, 1, "out"), frame(kindStderr, 1, "err"), frame(kindExit, 1, "\x03"), frame(kindStdout, 1, "more")}, nil))
}

// feed has a link that is up, with streams 1 (stuck) and 2, read bytes, and looks at what that left behind.
func feed(t *testing.T, l *Link, stuck, free Handler, data []byte) {
	l.changed.L, l.streams, l.nonce, l.peer, l.up = &l.mu, map[uint16]*Stream{}, 42, 42, true
	l.Changed = func(bool, string) {}
	all := []*Stream{l.stream(1), l.stream(2)}
	all[0].handler, all[1].handler = stuck, free
	in := bufio.NewReaderSize(bytes.NewReader(data), headerSize+MaxFrame)
	for l.read(in) == nil {
		l.mu.Lock()
		if frame := l.next(nil); len(frame) > headerSize+MaxFrame {
			t.Errorf("a frame of %d bytes", len(frame))
		}
		l.mu.Unlock()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.streams) > MaxStreams {
		t.Errorf("%d streams", len(l.streams))
	}
	for id, s := range l.streams {
		all = append(all, s)
		if s.id != id || s.err != nil && s.pending[kindReset] == nil {
			t.Errorf("stream %d is kept as %d: %v", s.id, id, s.err)
		}
	}
	for _, s := range all {
		held := 0
		for _, q := range s.queues {
			for _, chunk := range q {
				held += cap(chunk)
			}
		}
		if s.window < 0 || s.window > Window || s.credit < 0 || s.credit > Window || held > Window+2*chunkSize {
			t.Errorf("stream %d: window %d, credit %d, %d bytes held", s.id, s.window, s.credit, held)
		}
	}
}

func FuzzHost(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		stuck := newClient()
		stuck.gate = make(chan struct{})
		defer close(stuck.gate)
		feed(t, &Link{}, stuck, newClient(), data)
	})
}

// sink is a process that takes all.
type sink struct{ gate chan struct{} }

func (s sink) Take(channel int, _ []byte) error {
	if channel != Stdin {
		panic("a guest takes stdin alone")
	}
	<-s.gate
	return nil
}
func (sink) Ended(int, error) {}
func (sink) Resize(Size)      {}
func (sink) Signal(int)       {}

func FuzzGuest(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		stuck, free := sink{make(chan struct{})}, sink{make(chan struct{})}
		defer close(stuck.gate)
		close(free.gate)
		accept := func(_ *Stream, c Command) Handler {
			if len(c.Args) == 0 {
				t.Error("a command without arguments")
			}
			return stuck
		}
		feed(t, &Link{Accept: accept}, stuck, free, data)
	})
}

func FuzzCommand(f *testing.F) {
	f.Add([]byte("true false 24 80 1\x00root\x00/\x00sh\x00A=b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseCommand(data)
		if err != nil || len(data) > MaxFrame/2 {
			return
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("%+v is not encoded: %v", c, err)
		}
		if _, err := ParseCommand(again); err != nil {
			t.Fatalf("%q is not parsed: %v", again, err)
		}
	})
}
