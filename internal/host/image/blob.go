package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/fault"
)

const (
	// maxInterruptions is how often in a row a layer may be cut off that has brought less than minProgress bytes since:
	// with the delays between, a minute.
	maxInterruptions = 7
	minProgress      = 64 << 10
)

// blob reads a layer, through as many answers as that takes: proxies and bad lines cut long downloads.
type blob struct {
	repository *repository
	ctx        context.Context //nolint:containedctx // it is the pull's, and ends with the layer
	layer      descriptor

	body          io.ReadCloser // nil before the first answer and between two
	at            int64         // how many bytes have come
	etag          string
	resumedAt     int64
	interruptions int
	speed         throughput
}

// open asks for the layer from its beginning.
func (r *repository) open(ctx context.Context, layer descriptor) (*blob, error) {
	b := &blob{repository: r, ctx: ctx, layer: layer, speed: throughput{options: &r.client.options}}
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
			return unreachable(b.repository.ref, fmt.Errorf("asked for the bytes from %d on, it sends %q", b.at, printable(got)))
		}
		return nil
	}
	_, err = io.CopyN(io.Discard, b.body, b.at) // it sends all from the beginning
	return err
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		began := time.Now()
		n, err := b.read(p)
		b.at += int64(n)
		if slow := b.speed.add(int64(n), time.Since(began)); slow != nil {
			return n, unreachable(b.repository.ref, slow)
		}
		if n > 0 || err == nil {
			return n, nil // the error comes again
		}
		if b.at >= b.layer.Size {
			return 0, io.EOF
		}
		if err := b.interrupted(err); err != nil {
			return 0, err
		}
	}
}

func (b *blob) read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.ask(); err != nil {
			return 0, err
		}
	}
	return b.body.Read(p)
}

// interrupted waits until the layer may be asked for again, or returns why it may not.
func (b *blob) interrupted(err error) error {
	_ = b.Close()
	b.body = nil
	if errors.Is(err, io.EOF) {
		err = unreachable(b.repository.ref, io.ErrUnexpectedEOF)
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
	b.speed.waited += delay
	select {
	case <-b.ctx.Done():
		return err
	case <-time.After(delay):
		return nil
	}
}

func (b *blob) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// throughput finds registries that send a little now and then, so that they never stall. Time that the reader spends
// elsewhere does not count.
type throughput struct {
	options *Options
	bytes   int64
	waited  time.Duration
}

func (t *throughput) add(n int64, waited time.Duration) error {
	t.bytes += n
	if t.waited += waited; t.waited < t.options.ThroughputWindow {
		return nil
	}
	bytes, took := t.bytes, t.waited
	t.bytes, t.waited = 0, 0
	if float64(bytes) < float64(t.options.MinThroughput)*took.Seconds() {
		return fmt.Errorf("it sent %d bytes in %s, which is less than %d a second", bytes, took.Round(time.Second), t.options.MinThroughput)
	}
	return nil
}
