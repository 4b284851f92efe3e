package image

import (
	"bytes"
	"io"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

// reader is a function as a reader.
type reader func([]byte) (int, error)

func (r reader) Read(b []byte) (int, error) { return r(b) }

// during reads what is to be unpacked as a blob does.
func during(own *turn, wire io.Reader) reader {
	return func(b []byte) (n int, err error) {
		own.wait(func() { n, err = wire.Read(b) })
		return n, err
	}
}

// TestUnpackingTakesTurns: of many streams no more unpack at once than have a turn, and one that waits for its registry
// holds up none.
func TestUnpackingTakesTurns(t *testing.T) {
	const turns, streams = 2, 8
	all := newTurns(turns, patience)
	stream := func(wire io.Reader, unpack func(wire io.Reader) reader) io.Reader {
		own, remaining := &turn{turns: all}, int64(math.MaxInt64)
		return unpacking{own, unpack(during(own, wire)), &remaining}
	}
	var stalled sync.WaitGroup
	answer := make(chan struct{})
	for range turns {
		stalled.Add(1)
		said := make(chan struct{})
		silent := reader(func([]byte) (int, error) { close(said); <-answer; return 0, io.EOF })
		go func() {
			defer stalled.Done()
			_, _ = io.ReadAll(stream(silent, func(wire io.Reader) reader { return wire.Read }))
		}()
		<-said
	}

	var at, most atomic.Int32
	var rest sync.WaitGroup
	for range streams {
		rest.Go(func() {
			wire := bytes.NewReader(make([]byte, 1000))
			n, err := io.Copy(io.Discard, stream(wire, func(wire io.Reader) reader {
				return func(b []byte) (int, error) {
					n, err := wire.Read(b[:1]) // asked for again and again
					if now := at.Add(1); now > most.Load() {
						most.Store(now)
					}
					runtime.Gosched()
					at.Add(-1)
					return n, err
				}
			}))
			if n != 1000 || err != nil {
				t.Errorf("a stream has %d bytes, %v", n, err)
			}
		})
	}
	rest.Wait()
	if n := most.Load(); n > turns {
		t.Errorf("%d streams unpacked at once, want %d at most", n, turns)
	}
	close(answer)
	stalled.Wait()
	if n := len(all.free); n > 0 {
		t.Errorf("%d turns are not given back", n)
	}
}

// TestUnpackingIsHeldBack while something more urgent goes on, and no longer than that or than its patience lasts.
func TestUnpackingIsHeldBack(t *testing.T) {
	read := func(all *turns) (done <-chan struct{}) {
		ended := make(chan struct{})
		go func() {
			_, _ = unpacking{&turn{turns: all}, bytes.NewReader(nil), new(int64)}.Read(nil)
			close(ended)
		}()
		return ended
	}
	all := newTurns(1, time.Hour)
	first, second := all.holdBack(), all.holdBack()
	ended := read(all)
	first()
	env.Steadily(t, "nothing to be unpacked", 20*time.Millisecond, func() bool {
		select {
		case <-ended:
			return false
		default:
			return true
		}
	})
	second()
	<-ended
	<-read(all)

	impatient := newTurns(1, time.Millisecond)
	defer impatient.holdBack()()
	<-read(impatient)
}
