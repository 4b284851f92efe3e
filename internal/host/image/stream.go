package image

import (
	"bufio"
	"bytes"
	"errors"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxWindow bounds what a zstd frame can make us allocate; zstd --ultra uses 128 MiB at most.
const maxWindow = 128 << 20

// verified reads exactly the bytes that a descriptor tells of, and hashes them.
type verified struct {
	ref      Reference
	r        io.Reader
	want     ocispec.Descriptor
	verifier digest.Verifier
	left     int64
	// err is why reading failed, nil at the end. A decompressor may hide it.
	err error
}

func newVerified(ref Reference, r io.Reader, want ocispec.Descriptor) *verified {
	return &verified{ref: ref, r: r, want: want, verifier: want.Digest.Verifier(), left: want.Size}
}

func (v *verified) Read(b []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if v.left == 0 {
		return 0, io.EOF
	}
	n, err := v.r.Read(b[:min(int64(len(b)), v.left)])
	v.left -= int64(n)
	_, _ = v.verifier.Write(b[:n])
	switch {
	case errors.Is(err, io.EOF) && v.left > 0:
		v.err = unreachable(v.ref, io.ErrUnexpectedEOF)
	case err != nil && !errors.Is(err, io.EOF):
		v.err = err
	}
	return n, v.err
}

// finish reads what is left and compares the digest.
func (v *verified) finish() error {
	if _, err := io.Copy(io.Discard, v); err != nil {
		return err
	}
	var more [1]byte
	if n, _ := io.ReadFull(v.r, more[:]); n > 0 || !v.verifier.Verified() {
		return mismatch(v.ref, "layer "+v.want.Digest.String())
	}
	return nil
}

// unpack decompresses gzip and zstd, told by their first bytes: media types are not to be relied on.
func unpack(r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	head, err := buffered.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buffered)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return io.NopCloser(buffered), nil
	}
}
