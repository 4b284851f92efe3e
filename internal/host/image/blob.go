package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/internal/fault"
)

const (
	// maxInterruptions is how often in a row a layer may be cut off that has brought less than minProgress bytes since:
	// with the delays between, a minute.
	maxInterruptions = 7
	minProgress      = 64 << 10
)

// blob reads the bytes of a layer, and no more, through as many answers as that takes: proxies and bad lines cut long
// downloads. It hashes them on their way.
type blob struct {
	repository *repository
	ctx        context.Context //nolint:containedctx // it is the pull's, and ends with the layer
	layer      descriptor
	turn       turn
	verifier   digest.Verifier

	body          io.ReadCloser // nil before the first answer and between two
	at            int64         // how many bytes have come
	etag          string
	resumedAt     int64
	interruptions int
	// received and waited tell the throughput of the window that goes on. Time that the reader spends elsewhere does not
	// count.
	received int64
	waited   time.Duration
	// err is why reading failed. A decompressor may hide it.
	err error
}

// open asks for the layer from its beginning.
func (r *repository) open(ctx context.Context, layer descriptor) (*blob, error) {
	b := &blob{repository: r, ctx: ctx, layer: layer, turn: turn{turns: r.client.turns}, verifier: layer.Digest.Verifier()}
	return b, b.ask()
}

// ask asks for what has not come yet.
func (b *blob) ask() error {
	header := http.Header{}
	if b.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", b.at))
		if b.etag != "" {
			header.Set("If-Range", b.etag)
		}
	}
	resp, err := b.repository.get(b.ctx, "blobs/"+b.layer.Digest.String(), header)
	if err != nil {
		return err
	}
	b.body, b.resumedAt = resp.Body, b.at
	if tag := resp.Header.Get("ETag"); !strings.HasPrefix(tag, "W/") {
		b.etag = tag
	}
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
	_, _ = b.verifier.Write(p[:n]) // it never fails
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
	if b.ctx.Err() != nil || fault.ClassOf(err) == fault.User || RetryAfter(err) > 0 || b.interruptions >= maxInterruptions {
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

// verify reads what is left and compares the digest.
func (b *blob) verify() error {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	var more [1]byte
	if n, _ := io.ReadFull(b.body, more[:]); n > 0 || !b.verifier.Verified() {
		return b.repository.ref.mismatch("layer " + b.layer.Digest.String())
	}
	return nil
}

func (b *blob) close() {
	if b.body != nil {
		_ = b.body.Close()
	}
	b.body = nil
}
