package image

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

const (
	// smallWindow is the zstd window, or the dictionary of xz, that every pull may use: what zstd -19, xz -6 and the
	// builders of images need at most.
	smallWindow = 8 << 20
	// maxWindow is that of one pull at a time: what zstd --ultra and --long need, and xz -9.
	maxWindow = 128 << 20
	// xzHeaders is the most that the headers before the first compressed byte have, and tell the size of the dictionary:
	// https://tukaani.org/xz/xz-file-format.txt sections 2.1.1 and 3.1.
	xzHeaders = 12 + 1024 + 64
)

// errWindowTaken: another pull has the memory for a large window.
var errWindowTaken = errors.New("another pull uses the memory for large windows and dictionaries")

// decompress has read get what gzip, zstd, xz or bzip2 hold, detected by their first bytes, as media types are unreliable;
// or, if r is none of them, all of it, which is plain.
func (c *Client) decompress(r io.Reader, read func(r io.Reader, plain bool) error) error {
	buffered := bufio.NewReaderSize(r, 64<<10)
	for skipped := false; ; skipped = true {
		head, err := buffered.Peek(zstd.HeaderMaxSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		var h zstd.Header
		err = h.Decode(head)
		switch {
		case err == nil && h.Skippable: // a zstd stream may begin with such frames, RFC 8878 section 3.1.2
			if _, err := io.CopyN(io.Discard, buffered, int64(h.HeaderSize)+int64(h.SkippableSize)); err != nil {
				return err
			}
		case err == nil:
			return c.decompressZstd(buffered, h, read)
		case skipped:
			return errors.New("no zstd frame follows its skippable frames")
		case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
			unpacked, err := gzip.NewReader(buffered)
			if err != nil {
				return err
			}
			return read(unpacked, false)
		case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
			return c.decompressXZ(buffered, read)
		case bytes.HasPrefix(head, []byte("BZh")):
			return read(bzip2.NewReader(buffered), false)
		default:
			return read(buffered, true)
		}
	}
}

// decompressZstd counts the memory that the window of the first frame takes. Further frames get no larger one.
func (c *Client) decompressZstd(r io.Reader, h zstd.Header, read func(r io.Reader, plain bool) error) error {
	window := max(h.WindowSize, smallWindow)
	if h.SingleSegment {
		window = max(h.FrameContentSize, smallWindow)
	}
	if window > maxWindow {
		return fmt.Errorf("its zstd window has %d MiB: compress it with one of at most %d MiB", window>>20, maxWindow>>20)
	}
	if window > smallWindow {
		if !c.largeWindow.TryLock() {
			return errWindowTaken
		}
		defer c.largeWindow.Unlock()
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer d.Close()
	return read(d, false)
}

// decompressXZ counts the memory that the dictionary of the first block takes. Further blocks get no larger one.
func (c *Client) decompressXZ(r *bufio.Reader, read func(r io.Reader, plain bool) error) error {
	head, err := r.Peek(xzHeaders)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	dictionary := uint32(smallWindow)
	if _, err := xz.NewReader(bytes.NewReader(head), dictionary); errors.Is(err, xz.ErrMemlimit) {
		if !c.largeWindow.TryLock() {
			return errWindowTaken
		}
		defer c.largeWindow.Unlock()
		dictionary = maxWindow
	}
	d, err := xz.NewReader(r, dictionary)
	if err == nil {
		err = read(d, false)
	}
	if errors.Is(err, xz.ErrMemlimit) {
		return fmt.Errorf("its xz dictionary is larger than %d MiB: compress it with xz -9 at most", maxWindow>>20)
	}
	return err
}

// patience is how long a stream is held back at each read: a node on which guests start all the time pulls slowly, but pulls.
const patience = 200 * time.Millisecond

// turns are rights to unpack, which needs a CPU and little else. There are half as many as the agent has CPUs: what unpacks
// to much for few bytes, as images of hostile tenants do, leaves the others to who looks after guests.
type turns struct {
	free     chan struct{} // has one for each that is taken
	patience time.Duration

	mu     sync.Mutex
	urgent int           // how many HoldBack
	calm   chan struct{} // closed when there is none
}

func newTurns(n int, patience time.Duration) *turns {
	calm := make(chan struct{})
	close(calm)
	return &turns{free: make(chan struct{}, n), patience: patience, calm: calm}
}

// HoldBack has little unpacked until done is called: something more urgent wants the CPUs.
func (c *Client) HoldBack() (done func()) { return c.turns.holdBack() }

func (t *turns) holdBack() (done func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.urgent++; t.urgent == 1 {
		t.calm = make(chan struct{})
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.urgent--; t.urgent == 0 {
			close(t.calm)
		}
	}
}

// turn is a stream's.
type turn struct {
	*turns
	has bool
}

func (t *turn) take() {
	t.mu.Lock()
	calm := t.calm
	t.mu.Unlock()
	select {
	case <-calm:
	case <-time.After(t.patience):
	}
	t.free <- struct{}{}
	t.has = true
}

func (t *turn) give() {
	t.has = false
	<-t.free
}

// wait does what may take long, such as to wait for what is to be unpacked: the turn is another's meanwhile.
func (t *turn) wait(long func()) {
	if t.has {
		t.give()
		defer t.take()
	}
	long()
}

// errTooLarge tells that files have more bytes than remain.
var errTooLarge = errors.New("too large")

// unpacking reads what is unpacked, in its turn, and ends with errTooLarge once that is more than remains.
type unpacking struct {
	*turn
	r         io.Reader
	remaining *int64
}

func (u unpacking) Read(b []byte) (int, error) {
	u.take()
	n, err := u.r.Read(b)
	u.give()
	runtime.Gosched() // what unpacks for long would keep its CPU for 10 ms at a time, from those who look after guests
	if *u.remaining -= int64(n); *u.remaining < 0 {
		return 0, errTooLarge
	}
	return n, err
}
