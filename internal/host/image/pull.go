package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Create opens the place where a file of an image goes. size is the file's size in bytes, 0 if that is not known. Its
// errors, and those of the writer, are returned as they are.
type Create = func(name string, size int64) (io.Writer, error)

// Resumer is a writer of Create's that keeps what it is given even if this process is killed.
type Resumer interface {
	io.Writer
	// Resume returns what it kept of the same file for an earlier process, from the file's beginning on; empty if that is
	// nothing. All of the file is written again, whatever it has.
	Resume() (*io.SectionReader, error)
}

// DiskName is what Disk calls the disk to Create.
const DiskName = "disk"

// diskDir is where a containerDisk has its disk.
const diskDir = "disk"

// maxLinks is how many links may follow each other. Each takes another run over the layers.
const maxLinks = 4

// File is where a file of an image goes.
type File struct {
	// Name is what Create is given.
	Name string
	// MaxBytes is the most that it may have, 0 for no limit of its own.
	MaxBytes int64
}

// Disk streams the image's disk: the one file in /disk of a containerDisk, the one blob of an artifact that is a disk,
// or a URL's file, decompressed. What was written counts only when it returns nil: only then has every byte matched its digest.
// It does not inspect the disk itself. Errors: as Resolve.
func (i *Image) Disk(ctx context.Context, create Create) error {
	p := &pull{image: i, create: create, remaining: i.repository.client.options.MaxBytes}
	if !i.isArtifact() {
		return p.find(ctx, map[string]*want{diskDir: {path: diskDir, inDirectory: true, file: File{Name: DiskName}}})
	}
	disk, err := i.artifact()
	if err != nil {
		return err
	}
	return p.layer(ctx, disk, func(r io.Reader, plain *blob) error {
		if plain == nil {
			return p.write(DiskName, 0, r)
		}
		w, err := create(DiskName, plain.layer.Size)
		if resumer, ok := w.(Resumer); ok && err == nil {
			var had *io.SectionReader
			if had, err = resumer.Resume(); err == nil {
				r = plain.goOn(r, had, &p.remaining)
			}
		}
		return copyTo(w, r, err)
	})
}

// Files streams files out of the image's layers, by their paths, such as /boot/vmlinuz. What was written counts only
// when it returns nil. Errors: as Resolve.
func (i *Image) Files(ctx context.Context, paths map[string]File, create Create) error {
	if i.isArtifact() {
		return i.Reference.notDisk("it is a single file: use an image with the kernel in it")
	}
	wants := map[string]*want{}
	for name, file := range paths {
		name = path.Clean("/" + name)[1:]
		wants[name] = &want{path: name, file: file}
	}
	return (&pull{image: i, create: create}).find(ctx, wants)
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
	disks := slices.DeleteFunc(slices.Clone(i.layers), func(blob descriptor) bool {
		return !namesDisk(blob.MediaType) && !namesDisk(blob.Annotations.Title)
	})
	if len(disks) != 1 {
		return descriptor{}, i.Reference.notDisk(
			"it has %d blobs, of which %d are named as disks (.qcow2, .raw, .img): push the disk alone, or name it behind the image as #disk=NAME", len(i.layers), len(disks))
	}
	return disks[0], nil
}

// namesDisk: a media type, or the name of a file, tells that it is a disk.
func namesDisk(name string) bool {
	name = strings.ToLower(name)
	for _, compression := range []string{".gz", ".zst", ".xz", ".bz2", "+gzip", "+zstd", "+xz", "+bzip2"} {
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
}

// find runs over the layers, again for what links lead to.
func (p *pull) find(ctx context.Context, wants map[string]*want) error {
	ref, followed := p.image.Reference, ""
	for range maxLinks + 1 {
		p.remaining = p.image.repository.client.options.MaxBytes
		s := &search{ref: ref, wants: wants, write: p.write, remaining: p.remaining}
		for _, l := range slices.Backward(p.image.layers) {
			if s.done() {
				break
			}
			if err := p.layer(ctx, l, func(r io.Reader, _ *blob) error { return s.layer(r) }); err != nil {
				return err
			}
		}
		wants = map[string]*want{}
		for _, name := range slices.Sorted(maps.Keys(s.wants)) {
			switch w := s.wants[name]; {
			case w.found == "" && w.inDirectory && s.bootc:
				return ref.notDisk("it holds the files of a system for bootc, and no disk: make one of it with bootc-image-builder")
			case w.found == "" && w.inDirectory:
				return ref.notDisk("it has no file in /%s: use a containerDisk, or an artifact with one disk", name)
			case w.found == "":
				return ref.notDisk("it has no file /%s%s: correct the path", printable(name), followed)
			case w.link != nil:
				wants[w.link.path] = w.link
				followed = fmt.Sprintf(", to which its /%s is a link", printable(w.found))
			}
		}
		if len(wants) == 0 {
			return nil
		}
	}
	return ref.notDisk("more than %d links follow each other%s: put the file itself there", maxLinks, followed)
}

// layer streams one layer through read, which gets the blob itself if it was not compressed, and then checks its digest.
func (p *pull) layer(ctx context.Context, l descriptor, read func(r io.Reader, plain *blob) error) error {
	client, ref := p.image.repository.client, p.image.Reference
	wire, err := p.image.repository.open(ctx, l, &p.image.received)
	if err != nil {
		p.image.repository.passOver(err)
		return err
	}
	defer wire.close()
	err = client.decompress(wire, func(r io.Reader, isPlain bool) error {
		var plain *blob
		if isPlain {
			plain = wire
		}
		return read(unpacking{&wire.turn, r, &p.remaining}, plain)
	})
	sink, isSink := errors.AsType[sinkError](err)
	switch {
	case isSink:
		return sink.error
	case wire.err != nil:
		p.image.repository.passOver(wire.err)
		return wire.err
	case errors.Is(err, errWindowTaken):
		return fault.NewTransient(v1alpha1.ReasonPullingImage, fmt.Errorf(
			"image %s: it waits, as %w: compress it with one of at most %d MiB (zstd -19, xz -6) to have it at once", ref, err, smallWindow>>20))
	}
	what := "layer " + l.Digest.String()
	if ref.URL != "" {
		what = "it"
	}
	// What is wrong is the registry's fault if the digest does not match, and the image's if it does.
	if err := wire.verify(); err != nil {
		p.image.repository.passOver(err)
		return err
	}
	p.image.Digest = cmp.Or(p.image.Digest, wire.digester.Digest().String())
	switch {
	case err == nil, fault.ClassOf(err) == fault.User:
		return err
	case errors.Is(err, errTooLarge):
		return ref.refuse(v1alpha1.ReasonImageTooLarge,
			"it unpacks to more than %d bytes: shrink it, or raise the agent's limit", client.options.MaxBytes)
	default:
		return ref.notDisk("%s cannot be unpacked: %w", what, err)
	}
}

// write copies one file to the writer that create opens for it.
func (p *pull) write(name string, size int64, r io.Reader) error {
	w, err := p.create(name, size)
	return copyTo(w, r, err)
}

// copyTo copies to a writer that was opened with err.
func copyTo(w io.Writer, r io.Reader, err error) error {
	if err != nil {
		return sinkError{err}
	}
	_, err = io.CopyBuffer(sink{w}, r, make([]byte, 256<<10))
	return err
}

// sinkError is one of whoever takes the files, which must not be mistaken for one of the image.
type sinkError struct{ error }

type sink struct{ w io.Writer }

func (t sink) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	if err != nil {
		err = sinkError{err}
	}
	return n, err
}
