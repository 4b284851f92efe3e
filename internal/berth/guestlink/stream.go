package guestlink

import (
	"cmp"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
)

// The channels of a stream.
const (
	Stdin = iota
	Stdout
	Stderr
	channels
)

var errEnded = errors.New("the command has ended")

// Handler is what a side has at its end of a stream: the host's side a client, the guest's a process.
type Handler interface {
	// Take takes bytes of Stdin, or of Stdout and Stderr, and nil at the end of Stdin. It may block: only its channel waits
	// for it, and what comes meanwhile is at most a Window. After an error the rest of the channel is dropped.
	Take(channel int, b []byte) error
	// Ended is called once, on a goroutine of its own: on the host's side with the command's exit code, once all that came
	// is taken, or with an error, perhaps while a Take blocks. On the guest's side it is the hang-up, if it comes before Exit.
	Ended(code int, err error)
	// Resize and Signal are for the guest's side alone.
	Resize(size Size)
	Signal(number int)
}

// Stream is one command. Its methods, but for Write, never block.
type Stream struct {
	link    *Link
	id      uint16
	handler Handler
	err     error // why nothing more comes or goes

	pending [kinds][]byte // to be written; nil: nothing
	sent    sync.Cond     // something of that is
	credit  int           // bytes that the other side takes

	window   int                // bytes that it may send
	taken    int                // bytes for which no credit was given yet
	queues   [channels][][]byte // what was not taken
	busy     [channels]bool     // a goroutine empties the queue
	dropped  [channels]bool     // nobody takes it any more
	finished bool               // Stdin: nil is the last in its queue
	heard    chan struct{}      // closed once anything came
	exited   bool
	code     int
}

// Write writes to a channel, one call at a time for each, and waits while the other side does not take it.
func (s *Stream) Write(channel int, b []byte) error {
	k := kindStdin + kind(channel) //nolint:gosec // 0 to 2
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	if s.err == nil && len(b) > 0 {
		s.send(k, b)
	}
	for s.pending[k] != nil && s.err == nil && !s.exited {
		s.sent.Wait()
	}
	s.pending[k] = nil
	if s.exited {
		return cmp.Or(s.err, errEnded)
	}
	return s.err
}

// Splicer is a port that takes a pipe's bytes without a copy of them in this program.
type Splicer interface {
	// Splice writes what a pipe has now, at most so many bytes, as frames of at most MaxFrame bytes, each behind the header of
	// its length. It does not wait for the pipe, and returns 0 at its end. If there are bytes and an error, the port is broken.
	Splice(pipe, most int, header func(length int) []byte) (n int, err error)
}

// Splice is a Write of what a pipe has now, at most so many bytes, on the guest's side, to a port that is a Splicer.
func (s *Stream) Splice(channel, pipe, most int) (n int, err error) {
	l, k := s.link, kindStdin+kind(channel) //nolint:gosec // 0 to 2
	l.mu.Lock()
	defer l.mu.Unlock()
	for s.err == nil && (s.credit == 0 || l.writing) {
		l.changed.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	l.writing = true
	most = min(most, s.credit)
	l.mu.Unlock()
	n, err = l.port.(Splicer).Splice(pipe, most, func(length int) []byte {
		l.mu.Lock()
		defer l.mu.Unlock()
		s.credit -= length // before they are sent: new credit may come at once
		return header(nil, k, s.id, length)
	})
	l.mu.Lock()
	l.writing = false
	l.changed.Broadcast()
	l.mu.Unlock()
	runtime.Gosched() // to who waited for the port: this stream may have more at once
	l.mu.Lock()
	if n > 0 && err != nil {
		_ = l.port.Close() // as after a Write that fails
	}
	return n, err
}

// Heard is closed as soon as anything came of the stream: the guest's side says at once that it has it.
func (s *Stream) Heard() <-chan struct{} { return s.heard }

// CloseStdin is the end of what is written to Stdin.
func (s *Stream) CloseStdin() { s.tell(kindEnd) }

// Resize tells the size of the terminal. Of several the last one counts.
func (s *Stream) Resize(size Size) {
	s.tell(kindWindowSize, byte(size.Rows>>8), byte(size.Rows), byte(size.Columns>>8), byte(size.Columns)) //nolint:gosec // big endian
}

// Signal sends the command a signal. Of several the last one may be all that arrives.
func (s *Stream) Signal(number byte) { s.tell(kindSignal, number) }

// Exit ends the guest's side, behind all that was written.
func (s *Stream) Exit(code byte) { s.tell(kindExit, code) }

func (s *Stream) tell(k kind, b ...byte) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	if s.err == nil {
		s.send(k, append([]byte{}, b...))
	}
}

// Reset ends the stream and hangs the command up.
func (s *Stream) Reset() {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	s.abort(ErrReset)
}

func (s *Stream) abort(reason error) {
	if s.err != nil {
		return
	}
	unknown := s.pending[kindOpen] != nil || s.exited // to the other side
	if s.end(0, reason); unknown {
		delete(s.link.streams, s.id)
		return
	}
	s.send(kindReset, []byte{})
}

func (s *Stream) send(k kind, b []byte) {
	s.pending[k] = b
	s.link.changed.Broadcast()
}

// next appends the next frame to buf, if there is one.
func (s *Stream) next(buf []byte) []byte {
	for k, b := range s.pending {
		k, n, isData := kind(k), len(b), kind(k) >= kindStdin && kind(k) <= kindStderr
		if isData {
			n = min(n, s.credit, dataSize)
		}
		if b == nil || isData && n == 0 {
			continue
		}
		buf = append(header(buf, k, s.id, n), b[:n]...)
		if s.pending[k] = b[n:]; n == len(b) {
			s.pending[k] = nil
			s.sent.Broadcast()
		}
		switch {
		case isData:
			s.credit -= n
		case k == kindCredit:
			s.window, s.taken = s.window+s.taken, 0
		case k == kindExit || k == kindReset:
			delete(s.link.streams, s.id)
			s.err = cmp.Or(s.err, errEnded)
		}
		break
	}
	return buf
}

func (s *Stream) receive(k kind, b []byte) {
	select {
	case <-s.heard:
	default:
		close(s.heard)
	}
	isGuest := s.link.Accept != nil
	switch fromGuest := k == kindStdout || k == kindStderr || k == kindExit; {
	case k == kindCredit:
		n := binary.BigEndian.Uint32(b)
		if n > uint32(Window-s.credit) { //nolint:gosec // never negative
			s.abort(ErrBroken)
			return
		}
		s.credit += int(n)
		s.link.changed.Broadcast()
	case k == kindReset:
		delete(s.link.streams, s.id)
		s.end(0, ErrReset)
	case fromGuest == isGuest: // an echo, or nonsense
	case k == kindWindowSize:
		s.handler.Resize(Size{Rows: binary.BigEndian.Uint16(b), Columns: binary.BigEndian.Uint16(b[2:])})
	case k == kindSignal:
		s.handler.Signal(int(b[0]))
	case k == kindEnd && !s.finished:
		s.finished, s.queues[Stdin] = true, append(s.queues[Stdin], nil)
		s.deliver(Stdin)
	case k == kindExit:
		s.exited, s.code = true, int(b[0])
		s.sent.Broadcast()
		s.settle()
	case k >= kindStdin && k <= kindStderr && !s.exited && !s.finished:
		s.take(int(k-kindStdin), b)
	}
}

// take queues bytes in few chunks, however small the frames in which they come.
func (s *Stream) take(channel int, b []byte) {
	if len(b) > s.window {
		s.abort(ErrBroken)
		return
	}
	s.window -= len(b)
	queue := &s.queues[channel]
	for n := 0; len(b) > 0; b = b[n:] {
		if len(*queue) == 0 || len((*queue)[len(*queue)-1]) == chunkSize {
			*queue = append(*queue, make([]byte, 0, chunkSize))
		}
		last := &(*queue)[len(*queue)-1]
		n = copy((*last)[len(*last):chunkSize], b)
		*last = (*last)[:len(*last)+n]
	}
	s.deliver(channel)
}

// deliver has a channel's queue emptied. A stream at rest has no goroutine.
func (s *Stream) deliver(channel int) {
	if !s.busy[channel] {
		s.busy[channel] = true
		go s.drain(channel)
	}
}

func (s *Stream) drain(channel int) {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	for queue := &s.queues[channel]; s.err == nil && len(*queue) > 0; {
		chunk := (*queue)[0]
		(*queue)[0], *queue = nil, (*queue)[1:] // it is not to be kept
		if !s.dropped[channel] {
			s.link.mu.Unlock()
			err := s.handler.Take(channel, chunk)
			s.link.mu.Lock()
			s.dropped[channel] = err != nil
		}
		if s.taken += len(chunk); s.taken >= batch && s.err == nil && !s.exited {
			s.send(kindCredit, binary.BigEndian.AppendUint32(nil, uint32(s.taken))) //nolint:gosec // at most Window
		}
	}
	s.busy[channel] = false
	s.settle()
}

// settle ends a stream whose command has ended, once all that it wrote is taken.
func (s *Stream) settle() {
	if s.exited && s.busy == [channels]bool{} && s.err == nil {
		delete(s.link.streams, s.id)
		s.end(s.code, nil)
	}
}

func (s *Stream) end(code int, err error) {
	if s.err != nil {
		return
	}
	if s.pending[kindExit] == nil {
		go s.handler.Ended(code, err)
	}
	s.err = cmp.Or(err, errEnded)
	s.pending, s.queues = [kinds][]byte{}, [channels][][]byte{}
	s.sent.Broadcast()
	s.link.changed.Broadcast()
}
