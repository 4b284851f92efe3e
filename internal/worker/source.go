package worker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"github.com/lima-vm/go-qcow2reader/image/qcow2"
	"github.com/lima-vm/go-qcow2reader/log"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// source is an image as a guest sees it.
type source struct {
	disk io.ReaderAt
	// length is what it has in bytes; a raw disk may be short of a sector. size is the virtual size, and zero to the end.
	length, size int64
	// next is how many of n bytes at an offset are alike, and whether they read as zero.
	next func(at, n int64) (int64, bool, error)
}

// openSource opens an image. Its format is known, never guessed.
func openSource(image *os.File, seed Seed) (s *source, err error) {
	defer recovered(&err)
	st, err := image.Stat()
	if err != nil {
		return nil, onImage(err)
	}
	switch seed.Format {
	case diskformat.Raw:
		s = &source{disk: image, length: st.Size(), next: holes(image, st.Size())}
	case diskformat.QCOW2:
		if s, err = openQCOW2(image, st.Size()); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("the image is said to be %q, want raw or qcow2", seed.Format)
	}
	s.size = (s.length + diskformat.SectorSize - 1) / diskformat.SectorSize * diskformat.SectorSize
	if s.size != seed.Size {
		return nil, unsafeImage(fmt.Errorf("it has %d bytes, and had %d when it was pulled", s.size, seed.Size))
	}
	return s, nil
}

// openQCOW2 has our own check first, of the same descriptor: the reader would open a backing file by its name.
func openQCOW2(image io.ReaderAt, size int64) (*source, error) {
	if info, err := diskformat.Inspect(image, size); err != nil {
		return nil, err
	} else if info.Format != diskformat.QCOW2 {
		return nil, unsafeImage(errors.New("it is no qcow2 disk any more"))
	}
	prepareReader()
	img, err := qcow2.Open(io.NewSectionReader(image, 0, size), nil)
	if err == nil {
		err = img.Readable()
	}
	if err != nil {
		return nil, onImage(err)
	}
	return &source{disk: img, length: img.Size(), next: func(at, n int64) (int64, bool, error) {
		extent, err := img.Extent(at, n)
		return extent.Length, extent.Zero, err
	}}, nil
}

// holes finds the holes of a raw image.
func holes(image *os.File, length int64) func(at, n int64) (int64, bool, error) {
	fd := fdOf(image)
	return func(at, n int64) (int64, bool, error) {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // a hole to the end
			return length - at, true, nil
		case err != nil:
			return 0, false, err
		case data > at:
			return data - at, true, nil
		}
		hole, err := unix.Seek(fd, at, unix.SEEK_HOLE)
		return hole - at, false, err
	}
}

// extent is how many of n bytes at an offset are alike, 1 to n, and whether they read as zero.
func (s *source) extent(at, n int64) (int64, bool, error) {
	if at >= s.length {
		return n, true, nil
	}
	n = min(n, s.length-at)
	alike, zero, err := s.next(at, n)
	if err == nil && alike <= 0 {
		err = fmt.Errorf("nothing at byte %d", at)
	}
	return min(alike, n), zero, onImage(err)
}

func (s *source) read(b []byte, at int64) error {
	n, err := s.disk.ReadAt(b, at)
	if n == len(b) {
		return nil
	}
	return onImage(fmt.Errorf("reading byte %d: %w", at+int64(n), err))
}

// head is its first bytes.
func (s *source) head() (b []byte, err error) {
	defer recovered(&err)
	b = make([]byte, min(s.size, headSize))
	return b, s.read(b[:min(int64(len(b)), s.length)], 0)
}

// onImage tells an image that makes no sense from a disk of the node that fails.
func onImage(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[unix.Errno](err); ok {
		return fault.NewTransient(v1alpha1.ReasonStoreFailed, fmt.Errorf("reading the image: %w", err))
	}
	return unsafeImage(err)
}

// recovered is deferred wherever the reader of images works, which is not ours, and reads what is hostile.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = unsafeImage(fmt.Errorf("reading it: %v", r))
	}
}

func unsafeImage(err error) error {
	return refuse(v1alpha1.ReasonImageUnsafe, "unsafe disk: %w", err)
}

// maxWindow bounds what a zstd frame may ask for, in bytes. QEMU's asks for a cluster, 2 MiB at most.
const maxWindow = 4 * mib

// prepareReader gives the reader our decompressors. They are few and used again: an image has a stream in each cluster.
var prepareReader = sync.OnceFunc(func() {
	log.SetWarnFunc(nil)
	inflaters := &sync.Pool{New: func() any {
		in := bufio.NewReaderSize(nil, grain)
		return &inflater{in, flate.NewReader(in)}
	}}
	qcow2.SetDecompressor(qcow2.CompressionTypeZlib, func(r io.Reader) (io.ReadCloser, error) {
		z := inflaters.Get().(*inflater)
		z.in.Reset(r)
		return &cluster{z.reader, z, inflaters}, z.reader.(flate.Resetter).Reset(z.in, nil)
	})
	decoders := &sync.Pool{New: func() any {
		z, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		return z // only options can be wrong, and these are not
	}}
	qcow2.SetDecompressor(qcow2.CompressionTypeZstd, func(r io.Reader) (io.ReadCloser, error) {
		z := decoders.Get().(*zstd.Decoder)
		return &cluster{z, z, decoders}, z.Reset(r)
	})
})

type inflater struct {
	in     *bufio.Reader
	reader io.Reader
}

// cluster is a compressed cluster being read.
type cluster struct {
	io.Reader
	decompressor any
	pool         *sync.Pool
}

// Read fills b: after a short read the cluster would be decompressed anew.
func (c *cluster) Read(b []byte) (int, error) { return io.ReadFull(c.Reader, b) }

func (c *cluster) Close() error {
	c.pool.Put(c.decompressor)
	return nil
}
