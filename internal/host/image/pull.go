package image

import (
	"context"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Create opens the place where a file of an image goes. Its errors, and those of the writer, are returned as they are.
type Create func(name string) (io.Writer, error)

// DiskName is what Disk calls the disk to Create.
const DiskName = diskDir

// Disk streams the image's disk: the one file in /disk of a containerDisk, or the one blob of an artifact,
// decompressed. What was written counts only when it returns nil: only then has every byte matched its digest.
// It does not look at the disk itself. Errors: as Resolve.
func (i *Image) Disk(ctx context.Context, create Create) error {
	p := &pull{image: i, create: create, left: i.session.client.options.MaxBytes}
	if blob, ok := i.artifact(); ok {
		return p.layer(ctx, blob, func(r io.Reader) error { return p.write(DiskName, r) })
	}
	s := &search{write: p.write, left: p.left}
	if err := p.layers(ctx, s); err != nil {
		return err
	}
	if s.found == 0 {
		return notDisk(i.Reference, "it has no file in /disk: use a containerDisk, or an artifact with one disk")
	}
	return nil
}

// Files streams files out of the image's layers: paths maps a path, such as /boot/vmlinuz, to the name that Create is
// given. What was written counts only when it returns nil. Errors: as Resolve.
func (i *Image) Files(ctx context.Context, paths map[string]string, create Create) error {
	if _, ok := i.artifact(); ok {
		return notDisk(i.Reference, "it is a single file: use an image with the kernel in it")
	}
	p := &pull{image: i, create: create, left: i.session.client.options.MaxBytes}
	files := map[string]string{}
	for name, as := range paths {
		files[strings.TrimPrefix(path.Clean("/"+name), "/")] = as
	}
	s := &search{files: files, write: p.write, left: p.left}
	if err := p.layers(ctx, s); err != nil {
		return err
	}
	if len(s.files) > 0 {
		return notDisk(i.Reference, "it has no file /%s: correct the path", slices.Sorted(maps.Keys(s.files))[0])
	}
	return nil
}

// artifact returns the blob of an image that is one file and no file system: by its media type, or by the name that
// oras gives to files that it pushes as layers.
func (i *Image) artifact() (ocispec.Descriptor, bool) {
	if len(i.layers) != 1 {
		return ocispec.Descriptor{}, false
	}
	blob := i.layers[0]
	archive := strings.HasPrefix(blob.MediaType, "application/vnd.oci.image.layer.") ||
		strings.HasPrefix(blob.MediaType, "application/vnd.docker.image.rootfs.")
	named := blob.Annotations[ocispec.AnnotationTitle] != "" && blob.Annotations["io.deis.oras.content.unpack"] != "true"
	return blob, !archive || named
}

// pull is one run over an image's layers.
type pull struct {
	image  *Image
	create Create
	// left is how many more bytes the layers may unpack to.
	left int64
	// taker is the error of who takes the files, which must not be mistaken for one of the image.
	taker error
}

func (p *pull) layers(ctx context.Context, s *search) error {
	for _, l := range slices.Backward(p.image.layers) {
		if s.done() {
			break
		}
		if err := p.layer(ctx, l, s.layer); err != nil {
			return err
		}
	}
	return nil
}

// layer streams one layer through read and then checks its digest.
func (p *pull) layer(ctx context.Context, l ocispec.Descriptor, read func(io.Reader) error) error {
	body, err := p.image.session.get(ctx, "blobs/"+l.Digest.String())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	wire := newVerified(p.image.Reference, body, l)
	unpacked, err := unpack(wire)
	if err == nil {
		defer unpacked.Close()
		err = read(&limited{r: unpacked, left: &p.left})
	}
	switch _, refused := errors.AsType[refusal](err); {
	case p.taker != nil:
		return p.taker
	case wire.err != nil:
		return wire.err
	case errors.Is(err, errTooLarge):
		return tooLarge(p.image.Reference, "it unpacks to more than %d bytes: shrink it, or raise the agent's limit",
			p.image.session.client.options.MaxBytes)
	case refused:
		return notDisk(p.image.Reference, "%w", err)
	}
	// A broken archive is the registry's fault if its digest does not match, and the image's if it does.
	if err := wire.finish(); err != nil {
		return err
	}
	if err != nil {
		return notDisk(p.image.Reference, "layer %s cannot be unpacked: %w", l.Digest, err)
	}
	return nil
}

// write copies one file to its taker.
func (p *pull) write(name string, r io.Reader) error {
	w, err := p.create(name)
	if err != nil {
		p.taker = err
		return err
	}
	_, err = io.CopyBuffer(&taking{w, &p.taker}, r, make([]byte, 1<<20))
	return err
}

// taking notes the errors of a writer.
type taking struct {
	w   io.Writer
	err *error
}

func (t *taking) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	if err != nil {
		*t.err = err
	}
	return n, err
}

// limited ends a stream that unpacks to more than is left.
type limited struct {
	r    io.Reader
	left *int64
}

func (l *limited) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if *l.left -= int64(n); *l.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}
