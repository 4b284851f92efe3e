package guestlink

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

// Why a stream does not begin, or ended before its command.
var (
	ErrDown      = errors.New("the other side does not answer")
	ErrFull      = errors.New("the link has as many streams as it may")
	ErrRestarted = errors.New("the other side began anew")
	ErrBroken    = errors.New("the other side broke the protocol")
	ErrReset     = errors.New("the stream was reset")
	ErrClosed    = errors.New("the link has ended")
)

// Link is one side of a link. Its methods, and its streams', may be called from several goroutines. What it calls must
// neither block nor call it, if not said otherwise.
type Link struct {
	Version string // of this side's program: at most 32 printable ASCII characters
	// Changed is told each time that the link comes up, with the other side's version, and each time that it goes down. How
	// often that is, the other side can choose.
	Changed func(up bool, version string)
	// Accept makes this the guest's side: it is told of each stream that is opened.
	Accept func(*Stream, Command) Handler

	mu          sync.Mutex
	port        io.ReadWriteCloser
	changed     sync.Cond // what may be written, or has been
	streams     map[uint16]*Stream
	last        uint16 // number of the stream opened last
	nonce, peer uint64 // ours, and the last that was read
	greet       bool   // a hello is to be written
	writing     bool   // somebody does, without the lock: a frame stays whole
	up, closed  bool
}

// Serve reads and writes until the port ends, of which it is the only user; then it closes it. It may be called once.
func (l *Link) Serve(port io.ReadWriteCloser) error {
	l.mu.Lock()
	l.port, l.changed.L, l.streams = port, &l.mu, map[uint16]*Stream{}
	l.restart(nil)
	l.mu.Unlock()
	var writer sync.WaitGroup
	writer.Go(func() {
		l.write(port)
		_ = port.Close() // ends the reader
	})
	in := bufio.NewReaderSize(port, headerSize+MaxFrame)
	var err error
	for err == nil {
		err = l.read(in)
	}
	l.mu.Lock()
	l.down(ErrClosed)
	l.closed = true
	l.mu.Unlock()
	_ = port.Close()
	writer.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.writing { // a Splice may be under way
		l.changed.Wait()
	}
	return err
}

// Open starts an encoded Command, on the host's side.
func (l *Link) Open(command []byte, handler Handler) (*Stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case !l.up:
		return nil, ErrDown
	case len(l.streams) >= MaxStreams:
		return nil, ErrFull
	}
	for l.last++; l.streams[l.last] != nil; l.last++ {
	}
	s := l.stream(l.last)
	s.handler = handler
	s.send(kindOpen, command)
	return s, nil
}

func (l *Link) stream(id uint16) *Stream {
	s := &Stream{link: l, id: id, credit: Window, window: Window, heard: make(chan struct{})}
	s.sent.L = &l.mu
	l.streams[id] = s
	return s
}

// Restart ends all streams: the other side has begun anew, and has not said so yet.
func (l *Link) Restart() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restart(ErrRestarted)
}

// Leave ends all streams, and returns once the other side can know of it.
func (l *Link) Leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.restart(ErrClosed); (l.greet || l.writing) && !l.closed && l.streams != nil; {
		l.changed.Wait()
	}
}

// restart begins anew, with another nonce.
func (l *Link) restart(reason error) {
	l.down(reason)
	l.nonce, l.peer, l.greet = rand.Uint64()|1, 0, true //nolint:gosec // it tells a stale hello from a new one, no more
}

func (l *Link) down(reason error) {
	for _, s := range l.streams {
		s.end(0, reason)
	}
	clear(l.streams)
	if l.up {
		l.Changed(false, "")
	}
	l.up = false
	l.changed.Broadcast()
}

// read reads a frame, or skips a byte that begins no hello while the link is down.
func (l *Link) read(in *bufio.Reader) error {
	head, err := in.Peek(headerSize)
	if err != nil {
		return err
	}
	k, id, length := kind(head[1]), binary.BigEndian.Uint16(head[2:]), int64(binary.BigEndian.Uint32(head[4:]))
	l.mu.Lock()
	switch size, fixed := sizes[k]; {
	case l.up && head[0] == padding:
		l.restart(ErrRestarted)
	case l.up && (head[0] != magic || length > MaxFrame || fixed && length != int64(size)):
		l.restart(ErrBroken)
	}
	up := l.up
	l.mu.Unlock()
	if !up {
		if start, err := in.Peek(len(helloStart)); err != nil || !bytes.Equal(start, helloStart) {
			_, _ = in.Discard(1)
			return err
		}
	}
	whole, err := in.Peek(headerSize + int(length))
	if err == nil {
		l.receive(k, id, whole[headerSize:])
		_, err = in.Discard(len(whole))
	}
	return err
}

func (l *Link) receive(k kind, id uint16, b []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.streams[id]
	switch {
	case k == kindHello:
		l.hear(b)
	case k == kindOpen && l.Accept != nil:
		c, err := ParseCommand(b)
		if err != nil || s != nil || len(l.streams) >= MaxStreams {
			l.restart(ErrBroken)
			return
		}
		s = l.stream(id)
		s.send(kindCredit, make([]byte, sizes[kindCredit])) // of nothing, but heard
		s.handler = l.Accept(s, c)
	case s != nil && s.err == nil:
		s.receive(k, b)
	}
}

func (l *Link) hear(b []byte) {
	nonce, echo, version, ok := parseHello(b)
	switch {
	case !ok:
		l.restart(ErrBroken)
		return
	case nonce != l.peer:
		l.down(ErrRestarted)
		l.peer, l.greet = nonce, true
	}
	if !l.up && echo == l.nonce {
		l.up = true
		l.Changed(true, version)
	}
}

// write writes what is due, until the port ends.
func (l *Link) write(port io.Writer) {
	buf := bytes.Repeat([]byte{padding}, headerSize+MaxFrame)
	_, err := port.Write(buf)
	l.mu.Lock()
	defer l.mu.Unlock()
	for err == nil && !l.closed {
		var frame []byte
		if !l.writing { // else a Splice is
			frame = l.next(buf[:0])
		}
		if len(frame) == 0 {
			l.changed.Wait()
			continue
		}
		l.writing = true
		l.mu.Unlock()
		_, err = port.Write(frame)
		l.mu.Lock()
		l.writing = false
		l.changed.Broadcast()
	}
}

// next makes the next frame of any stream: Go's maps have no order, and let none wait for ever.
func (l *Link) next(buf []byte) []byte {
	if l.greet {
		l.greet = false
		return appendHello(buf, l.nonce, l.peer, l.Version)
	}
	for _, s := range l.streams {
		if buf = s.next(buf); len(buf) > 0 {
			break
		}
	}
	return buf
}
