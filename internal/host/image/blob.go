package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	// maxInterruptions is how often in a row a layer may be cut off that has brought less than minProgress bytes since:
	// with the delays between, a minute.
	maxInterruptions = 7
	minProgress      = 64 << 10
)

// changedError tells why what is left would not fit what is there.
type changedError string

func (e changedError) Error() string { return string(e) }

// blob reads the bytes of a layer, and no more, through as many answers as that takes: proxies and bad lines cut long
// downloads. It hashes them on their way.
type blob struct {
	repository *repository
	ctx        context.Context //nolint:containedctx // it is the pull's, and ends with the layer
	layer      descriptor
	turn       turn
	digester   digest.Digester

	body          io.ReadCloser // nil before the first answer and between two
	at            int64         // how many bytes have come
	count         *atomic.Int64 // those of all layers
	mark          string        // of what is served: an ETag, or a date
	resumedAt     int64
	interruptions int
	goesOn        bool // where an earlier process was
	// received and waited tell the throughput of the window that goes on. Time that the reader spends elsewhere does not
	// count.
	received int64
	waited   time.Duration
	// err is why reading failed. A decompressor may hide it.
	err error
}

// open asks for the layer from its beginning. What comes of it is added to count.
func (r *repository) open(ctx context.Context, layer descriptor, count *atomic.Int64) (*blob, error) {
	b := &blob{repository: r, ctx: ctx, layer: layer, count: count, turn: turn{turns: r.client.turns}, digester: digest.SHA256.Digester()}
	if layer.Digest != "" {
		b.digester = layer.Digest.Algorithm().Digester()
	}
	return b, b.ask()
}

// ask asks for what has not come yet.
func (b *blob) ask() error {
	header := http.Header{}
	if b.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
		if b.mark != "" {
			header.Set("If-Range", b.mark)
		}
	}
	resp, err := b.repository.get(b.ctx, "blobs/"+b.layer.Digest.String(), header)
	if err != nil {
		return err
	}
	b.body, b.resumedAt = resp.Body, b.at
	mark := resp.Header.Get("Last-Modified")
	if tag := resp.Header.Get("ETag"); tag != "" && !strings.HasPrefix(tag, "W/") {
		mark = tag
	}
	changed := changedError("")
	switch {
	case b.repository.ref.URL != "" && length(resp) != b.layer.Size:
		changed = "the file has another length now"
	case b.layer.Digest == "" && b.at > 0 && (mark == "" || mark != b.mark): // nothing else tells that two answers are of one file
		changed = "the connection was cut, and the server does not tell (by ETag or Last-Modified) that what follows is of the same file"
	}
	if changed != "" {
		b.close()
		return b.repository.unreachable(changed)
	}
	b.mark = mark
	if resp.StatusCode == http.StatusPartialContent {
		if got := resp.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", b.at)) {
			return b.repository.unreachable(fmt.Errorf("asked for the bytes from %d on, it sends %q", b.at, printable(got)))
		}
		return nil
	}
	_, err = io.CopyN(io.Discard, b.body, b.at) // it sends all from the beginning
	return err
}

func (b *blob) Read(p []byte) (n int, err error) {
	if b.at == b.layer.Size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), b.layer.Size-b.at)]
	b.turn.wait(func() {
		for n == 0 && b.err == nil {
			n, b.err = b.receive(p)
		}
	})
	b.at += int64(n)
	b.count.Add(int64(n))
	_, _ = b.digester.Hash().Write(p[:n]) // it never fails
	return n, b.err
}

// receive reads what comes next. It returns nothing when it was interrupted and may go on.
func (b *blob) receive(p []byte) (n int, err error) {
	began := time.Now()
	if b.body == nil {
		err = b.ask()
	}
	if err == nil {
		n, err = b.body.Read(p)
	}
	b.received += int64(n)
	b.waited += time.Since(began)
	if o := &b.repository.client.options; b.waited >= o.ThroughputWindow {
		if float64(b.received) < float64(o.MinThroughput)*b.waited.Seconds() {
			return n, b.repository.unreachable(fmt.Errorf("it sent %d bytes in %s, which is less than %d a second",
				b.received, b.waited.Round(time.Second), o.MinThroughput))
		}
		b.received, b.waited = 0, 0
	}
	if n > 0 || err == nil {
		return n, nil // the error comes again
	}
	return 0, b.interrupted(err)
}

// interrupted waits until the layer may be asked for again, or returns why it may not.
func (b *blob) interrupted(err error) error {
	b.close()
	if errors.Is(err, io.EOF) {
		err = b.repository.unreachable(io.ErrUnexpectedEOF)
	}
	if b.at-b.resumedAt >= minProgress {
		b.interruptions = 0
	}
	b.interruptions++
	if _, stalled := errors.AsType[stallError](err); stalled && b.at == b.resumedAt { // it was asked anew, and sent nothing
		return err
	}
	_, changed := errors.AsType[changedError](err)
	if b.ctx.Err() != nil || fault.ClassOf(err) == fault.User || RetryAfter(err) > 0 || changed || b.interruptions >= maxInterruptions {
		return err
	}
	b.resumedAt = b.at
	delay := b.repository.client.options.ResumeDelay << (b.interruptions - 1)
	b.waited += delay
	select {
	case <-b.ctx.Done():
		return err
	case <-time.After(delay):
		return nil
	}
}

// goOn reads what r, which begins with all that has come, then what an earlier process had behind that, and then what is
// asked for behind that. At least one byte is, as an answer's end is part of the proof.
func (b *blob) goOn(r io.Reader, had *io.SectionReader, remaining *int64) io.Reader {
	came, end := b.at, min(had.Size(), b.layer.Size-1)
	if end <= came {
		return r
	}
	b.close()
	b.at, b.goesOn = end, true
	b.count.Add(end - came)
	again := io.TeeReader(kept{io.NewSectionReader(had, came, end-came)}, b.digester.Hash())
	return io.MultiReader(io.LimitReader(r, came), unpacking{&b.turn, again, remaining}, r)
}

// kept reads what was kept, where an error is not one of the image.
type kept struct{ io.Reader }

func (k kept) Read(p []byte) (int, error) {
	n, err := k.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = sinkError{err}
	}
	return n, err
}

// verify reads what is left and compares the digest, if one is known.
func (b *blob) verify() error {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	var more [1]byte
	n, _ := io.ReadFull(b.body, more[:])
	switch {
	case n == 0 && (b.layer.Digest == "" || b.layer.Digest == b.digester.Digest()):
		return nil
	case b.goesOn:
		return fault.NewTransient(v1alpha1.ReasonPullingImage, fmt.Errorf(
			"image %s: what was kept of a pull that was interrupted, and the rest, are not %s: it begins anew", b.repository.ref, b.layer.Digest))
	case b.repository.ref.URL != "":
		return b.repository.ref.refuse(v1alpha1.ReasonImageDigestMismatch,
			"what it serves is not %s: correct the checksum, or serve that file again; nothing of it was kept", b.layer.Digest)
	default:
		return b.repository.ref.mismatch("layer " + b.layer.Digest.String())
	}
}

func (b *blob) close() {
	if b.body != nil {
		_ = b.body.Close()
	}
	b.body = nil
}
