package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	// smallWindow is the zstd window that every pull may use: what zstd -19 and the builders of images need at most.
	smallWindow = 8 << 20
	// maxWindow is that of one pull at a time: what zstd --ultra and --long need.
	maxWindow = 128 << 20
)

// errWindowTaken: another pull has the memory for a large zstd window.
var errWindowTaken = errors.New("another pull uses the memory for large zstd windows")

// verifiedReader reads exactly the bytes that a descriptor tells of, and hashes them.
type verifiedReader struct {
	ref       Reference
	r         io.Reader
	want      descriptor
	verifier  digest.Verifier
	remaining int64
	// err is why reading failed, nil at the end. A decompressor may hide it.
	err error
}

func newVerifiedReader(ref Reference, r io.Reader, want descriptor) *verifiedReader {
	return &verifiedReader{ref: ref, r: r, want: want, verifier: want.Digest.Verifier(), remaining: want.Size}
}

func (v *verifiedReader) Read(b []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.remaining == 0 {
		return 0, io.EOF
	}
	n, err := v.r.Read(b[:min(int64(len(b)), v.remaining)])
	v.remaining -= int64(n)
	_, _ = v.verifier.Write(b[:n])
	switch {
	case errors.Is(err, io.EOF) && v.remaining > 0:
		v.err = unreachable(v.ref, io.ErrUnexpectedEOF)
	case err != nil && !errors.Is(err, io.EOF):
		v.err = err
	}
	return n, v.err
}

// verify reads what is left and compares the digest.
func (v *verifiedReader) verify() error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	var more [1]byte
	if n, _ := io.ReadFull(v.r, more[:]); n > 0 || !v.verifier.Verified() {
		return digestMismatch(v.ref, "layer "+v.want.Digest.String())
	}
	return nil
}

// decompress decompresses gzip and zstd, detected by their first bytes: media types are unreliable. plain: it is neither.
func (c *Client) decompress(r io.Reader) (unpacked io.ReadCloser, plain bool, err error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	skipped, err := skipFrames(buffered)
	if err != nil {
		return nil, false, err
	}
	head, err := buffered.Peek(zstd.HeaderMaxSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		unpacked, err = c.decompressZstd(buffered, head)
	case skipped:
		err = errors.New("no zstd frame follows its skippable frames")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		unpacked, err = gzip.NewReader(buffered)
	default:
		return io.NopCloser(buffered), true, nil
	}
	return unpacked, false, err
}

// skipFrames skips the skippable frames, RFC 8878 section 3.1.2, that a zstd stream may begin with.
func skipFrames(r *bufio.Reader) (skipped bool, err error) {
	for {
		head, err := r.Peek(8)
		if err != nil || head[0]&0xf0 != 0x50 || !bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return skipped, err
		}
		skipped = true
		if _, err := io.CopyN(io.Discard, r, 8+int64(binary.LittleEndian.Uint32(head[4:]))); err != nil {
			return skipped, err
		}
	}
}

// decompressZstd counts the memory that the window of the first frame takes. Further frames get no larger one.
func (c *Client) decompressZstd(r io.Reader, head []byte) (io.ReadCloser, error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return nil, err
	}
	window := max(h.WindowSize, smallWindow)
	if h.SingleSegment {
		window = max(h.FrameContentSize, smallWindow)
	}
	if window > maxWindow {
		return nil, fmt.Errorf("its zstd window has %d MiB: compress it with one of at most %d MiB", window>>20, maxWindow>>20)
	}
	release := func() {}
	if window > smallWindow {
		if !c.largeWindow.TryLock() {
			return nil, errWindowTaken
		}
		release = c.largeWindow.Unlock
	}
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(window), zstd.WithDecoderLowmem(true), zstd.WithDecoderConcurrency(1))
	if err != nil {
		release()
		return nil, err
	}
	return &zstdReader{d, release}, nil
}

// zstdReader is a decoder that gives its memory back.
type zstdReader struct {
	*zstd.Decoder
	release func()
}

func (z *zstdReader) Close() error {
	z.Decoder.Close()
	z.release()
	return nil
}
