package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Create opens the place where a file of an image goes. size is the file's size in bytes, 0 if that is not known. Its
// errors, and those of the writer, are returned as they are.
type Create = func(name string, size int64) (io.Writer, error)

// DiskName is what Disk calls the disk to Create.
const DiskName = diskDir

// maxLinks is how many links may follow each other. Each takes another run over the layers.
const maxLinks = 4

// File is where a file of an image goes.
type File struct {
	// Name is what Create is given.
	Name string
	// MaxBytes is the most that it may have, 0 for no limit of its own.
	MaxBytes int64
}

// Disk streams the image's disk: the one file in /disk of a containerDisk, or the one blob of an artifact that is a
// disk, decompressed. What was written counts only when it returns nil: only then has every byte matched its digest.
// It does not inspect the disk itself. Errors: as Resolve.
func (i *Image) Disk(ctx context.Context, create Create) error {
	p := &pull{image: i, create: create, remaining: i.repository.client.options.MaxBytes}
	if i.isArtifact() {
		blob, err := i.artifact()
		if err != nil {
			return notDisk(i.Reference, "%w", err)
		}
		return p.layer(ctx, blob, func(r io.Reader, plain bool) error {
			size := int64(0)
			if plain {
				size = blob.Size
			}
			return p.write(DiskName, size, r)
		})
	}
	s, err := p.find(ctx, &search{dir: diskDir, write: p.write})
	if err == nil && s.found == 0 {
		err = notDisk(i.Reference, "it has no file in /%s: use a containerDisk, or an artifact with one disk", s.dir)
	}
	return err
}

// Files streams files out of the image's layers, by their paths, such as /boot/vmlinuz. What was written counts only
// when it returns nil. Errors: as Resolve.
func (i *Image) Files(ctx context.Context, paths map[string]File, create Create) error {
	if i.isArtifact() {
		return notDisk(i.Reference, "it is a single file: use an image with the kernel in it")
	}
	p := &pull{image: i, create: create}
	files := map[string]File{}
	for name, file := range paths {
		files[strings.TrimPrefix(path.Clean("/"+name), "/")] = file
	}
	_, err := p.find(ctx, &search{files: files, write: p.write})
	return err
}

// isArtifact: the image's blobs are files, and no file system: by their media types, or by the names that oras gives
// to files that it pushes as layers.
func (i *Image) isArtifact() bool {
	return !slices.ContainsFunc(i.layers, func(blob descriptor) bool {
		archive := strings.HasPrefix(blob.MediaType, "application/vnd.oci.image.layer.") ||
			strings.HasPrefix(blob.MediaType, "application/vnd.docker.image.rootfs.")
		named := blob.Annotations.Title != "" && blob.Annotations.Unpack != "true"
		return archive && !named
	})
}

// artifact returns the blob that is the disk.
func (i *Image) artifact() (descriptor, error) {
	if len(i.layers) == 1 {
		return i.layers[0], nil
	}
	var disks []descriptor
	for _, blob := range i.layers {
		if namesDisk(blob.MediaType) || namesDisk(blob.Annotations.Title) {
			disks = append(disks, blob)
		}
	}
	if len(disks) != 1 {
		return descriptor{}, fmt.Errorf("it has %d blobs, of which %d are named as disks (.qcow2, .raw, .img): push the disk alone", len(i.layers), len(disks))
	}
	return disks[0], nil
}

// namesDisk: a media type, or the name of a file, tells that it is a disk.
func namesDisk(name string) bool {
	name = strings.ToLower(name)
	for _, compression := range []string{".gz", ".zst", "+gzip", "+zstd"} {
		name = strings.TrimSuffix(name, compression)
	}
	return strings.HasSuffix(name, "qcow2") || strings.HasSuffix(name, ".raw") || strings.HasSuffix(name, ".img")
}

// pull is one run over an image's layers.
type pull struct {
	image  *Image
	create Create
	// remaining is how many more bytes the layers may unpack to.
	remaining int64
	// followed tells which link was followed last, for messages.
	followed string
	// sinkErr is the error of whoever writes the files, which must not be mistaken for one of the image.
	sinkErr error
}

// find runs over the layers, again for what links lead to, and returns the last search.
func (p *pull) find(ctx context.Context, s *search) (*search, error) {
	for range maxLinks + 1 {
		p.remaining = p.image.repository.client.options.MaxBytes
		s.remaining = p.remaining
		if err := p.layers(ctx, s); err != nil {
			return nil, err
		}
		if missing := slices.Sorted(maps.Keys(s.files)); len(missing) > 0 {
			return nil, notDisk(p.image.Reference, "it has no file /%s%s: correct the path", printable(missing[0]), p.followed)
		}
		if len(s.links) == 0 {
			return s, nil
		}
		p.followed = fmt.Sprintf(", to which its /%s is a link", printable(s.links[0].name))
		s = s.follow()
	}
	return nil, notDisk(p.image.Reference, "more than %d links follow each other%s: put the file itself there", maxLinks, p.followed)
}

func (p *pull) layers(ctx context.Context, s *search) error {
	for _, l := range slices.Backward(p.image.layers) {
		if s.done() {
			break
		}
		if err := p.layer(ctx, l, func(r io.Reader, _ bool) error { return s.layer(r) }); err != nil {
			return err
		}
	}
	return nil
}

// layer streams one layer through read, which is told whether it was not compressed, and then checks its digest.
func (p *pull) layer(ctx context.Context, l descriptor, read func(r io.Reader, plain bool) error) error {
	client := p.image.repository.client
	body, err := p.image.repository.open(ctx, l)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	own := &turn{turns: client.turns}
	wire := newVerifiedReader(p.image.Reference, waiting{own, body}, l)
	unpacked, plain, err := client.decompress(wire)
	if err == nil {
		err = read(&limitedReader{r: unpacking{own, unpacked}, remaining: &p.remaining}, plain)
		_ = unpacked.Close()
	}
	switch {
	case p.sinkErr != nil:
		return p.sinkErr
	case wire.err != nil:
		return wire.err
	case errors.Is(err, errWindowTaken):
		return fault.NewTransient(v1alpha1.ReasonPullingImage, fmt.Errorf(
			"image %s: it waits, as %w: compress it with one of at most %d MiB (zstd -19) to have it at once", p.image.Reference, err, smallWindow>>20))
	}
	// What is wrong is the registry's fault if the digest does not match, and the image's if it does.
	if err := wire.verify(); err != nil {
		return err
	}
	_, isContentError := errors.AsType[contentError](err)
	file, isFile := errors.AsType[fileTooLargeError](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errTooLarge):
		return tooLarge(p.image.Reference, "it unpacks to more than %d bytes: shrink it, or raise the agent's limit", client.options.MaxBytes)
	case isFile:
		return tooLarge(p.image.Reference, "%w", file)
	case isContentError:
		return notDisk(p.image.Reference, "%w", err)
	default:
		return notDisk(p.image.Reference, "layer %s cannot be unpacked: %w", l.Digest, err)
	}
}

// write copies one file to the writer that create opens for it.
func (p *pull) write(name string, size int64, r io.Reader) error {
	w, err := p.create(name, size)
	if err != nil {
		p.sinkErr = err
		return err
	}
	_, err = io.CopyBuffer(&sink{w, &p.sinkErr}, r, make([]byte, 256<<10))
	return err
}

// sink notes the errors of a writer.
type sink struct {
	w   io.Writer
	err *error
}

func (t *sink) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	if err != nil {
		*t.err = err
	}
	return n, err
}

// limitedReader ends a stream that unpacks to more than remains.
type limitedReader struct {
	r         io.Reader
	remaining *int64
}

func (l *limitedReader) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	runtime.Gosched() // what unpacks for long would keep its CPU for 10 ms at a time, from those who look after guests
	if *l.remaining -= int64(n); *l.remaining < 0 {
		return 0, errTooLarge
	}
	return n, err
}
