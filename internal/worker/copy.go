package worker

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// readers read, decompress and write at once.
	readers = 2
	// segment is what a reader takes at a time, and flushes before the next but one: so no more than 64 MiB wait in memory
	// for the medium.
	segment = 16 * mib
	// bufferSize is qcow2's largest cluster, so that none is decompressed twice.
	bufferSize = 2 * mib
	// grain is the least that is left out because it is zero.
	grain = 64 << 10
	// interval is how often progress is told.
	interval = time.Second
)

// isZero tells whether all bytes are zero: the first is, and each is as the one before it.
func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}

// sink is a disk that is written: nobody else sees it yet.
type sink interface {
	io.WriterAt
	// zero has n bytes read as zero.
	zero(at, n int64) error
	Fd() uintptr
}

// copy writes an image to a disk of at least its size.
func (w *worker) copy(ctx context.Context, from *source, to sink) error {
	running, ctx := errgroup.WithContext(ctx)
	c := &copying{worker: w, from: from, to: to}
	for range readers {
		running.Go(func() error { return c.run(ctx) })
	}
	return running.Wait()
}

type copying struct {
	*worker
	from *source
	to   sink
	next atomic.Int64 // where the next segment begins

	mu   sync.Mutex
	done int64
	told time.Time
}

func (c *copying) run(ctx context.Context) (err error) {
	defer recovered(&err)
	buffer := make([]byte, bufferSize)
	for last := int64(-1); ctx.Err() == nil; {
		at := c.next.Add(segment) - segment
		if at >= c.from.size {
			return nil
		}
		end := min(at+segment, c.from.size)
		if err := c.segment(buffer, at, end); err != nil {
			return err
		}
		if err := c.flush(last, at); err != nil {
			return onVolume("writing the disk", err)
		}
		last = at
		if err := c.tell(end - at); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (c *copying) segment(buffer []byte, at, end int64) error {
	for at < end {
		n, zero, err := c.from.extent(at, end-at)
		if err != nil {
			return err
		}
		if zero {
			err = c.to.zero(at, n)
		} else {
			n = min(n, bufferSize)
			if err := c.from.read(buffer[:n], at); err != nil {
				return err
			}
			err = c.write(buffer[:n], at)
		}
		if err != nil {
			return onVolume("writing the disk", err)
		}
		at += n
	}
	return nil
}

// write writes what is not zero.
func (c *copying) write(b []byte, at int64) error {
	for len(b) > 0 {
		n := min(grain, len(b))
		zero := isZero(b[:n])
		for n < len(b) && isZero(b[n:min(n+grain, len(b))]) == zero {
			n = min(n+grain, len(b))
		}
		var err error
		if zero {
			err = c.to.zero(at, int64(n))
		} else {
			_, err = c.to.WriteAt(b[:n], at)
		}
		if err != nil {
			return err
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// flush starts to write a segment to the medium, and waits for the last one's end.
func (c *copying) flush(last, at int64) error {
	fd := fdOf(c.to)
	if err := unix.SyncFileRange(fd, at, segment, unix.SYNC_FILE_RANGE_WRITE); err != nil || last < 0 {
		return err
	}
	return unix.SyncFileRange(fd, last, segment, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}

// tell tells the progress.
func (c *copying) tell(n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done += n
	if time.Since(c.told) < interval {
		return nil
	}
	c.told = time.Now()
	return c.answers.Encode(Answer{Progress: &Progress{c.done, c.from.size}})
}
