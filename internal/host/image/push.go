package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Push makes an image of a qcow2 disk as it was at some time, a containerDisk of one layer, and has a registry know it by its
// tag. It returns its digest, and how many bytes the layer has there. The disk is read twice, since a registry is told first what it
// gets, and nothing is kept meanwhile; sent is called with what it has of the layer. Errors: ImageUnauthorized, PushFailed.
func (c *Client) Push(ctx context.Context, ref Reference, keys Keychain, disk *os.File, at time.Time, sent func(bytes, of int64)) (manifest string, size int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sum, compressed := digest.Canonical.Digester(), &counter{ctx: ctx}
	plain, err := c.writeLayer(io.MultiWriter(sum.Hash(), compressed), disk)
	if err != nil {
		return "", 0, fmt.Errorf("compressing the disk: %w", err)
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: sum.Digest(), Size: compressed.bytes}
	config, err := json.Marshal(ocispec.Image{
		Created: &at, Platform: ocispec.Platform{Architecture: c.options.Architecture, OS: "linux"},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{plain}},
	})
	if err != nil {
		return "", 0, err
	}
	to := &remote.Repository{
		Client: c.repository(ref, ref, keys.candidates(ref)[0]).auth, PlainHTTP: slices.Contains(c.options.PlainHTTP, ref.host()),
		Reference: registry.Reference{Registry: ref.Registry, Repository: ref.Repository},
	}
	window, counted := c.options.ThroughputWindow, int64(0)
	stall := time.AfterFunc(window, func() { cancel(fmt.Errorf("it takes less than %d bytes a second", c.options.MinThroughput)) })
	defer stall.Stop()
	from, into := io.Pipe()
	defer from.Close() // and whoever writes ends
	go func() {
		_, err := c.writeLayer(into, disk)
		into.CloseWithError(err)
	}()
	made := ocispec.Descriptor{}
	err = to.Push(ctx, layer, io.TeeReader(from, &counter{ctx: ctx, each: func(bytes int64) {
		if float64(bytes-counted) >= float64(c.options.MinThroughput)*window.Seconds() {
			counted = bytes
			stall.Reset(window)
		}
		sent(bytes, layer.Size)
	}}))
	if err == nil {
		made, err = oras.PushBytes(ctx, to, ocispec.MediaTypeImageConfig, config)
	}
	if err == nil {
		made, err = oras.PackManifest(ctx, to, oras.PackManifestVersion1_1, "", oras.PackManifestOptions{ConfigDescriptor: &made, Layers: []ocispec.Descriptor{layer}})
	}
	if err == nil {
		err = to.Tag(ctx, made, ref.Tag)
	}
	return made.Digest.String(), layer.Size, ref.pushFailed(ctx, err)
}

// packing writes in its turn what is to be compressed. What is sent then waits out of turn.
type packing struct {
	*turn
	w    io.Writer
	sent bool
}

func (p packing) Write(b []byte) (n int, err error) {
	if p.sent {
		p.wait(func() { n, err = p.w.Write(b) })
		return n, err
	}
	p.take()
	defer p.give()
	return p.w.Write(b)
}

// writeLayer writes a layer that holds the disk, the same each time, and returns the digest of what is compressed in it.
func (c *Client) writeLayer(w io.Writer, disk *os.File) (digest.Digest, error) {
	st, err := disk.Stat()
	if err != nil {
		return "", err
	}
	t := &turn{turns: c.turns}
	compressed, err := zstd.NewWriter(packing{t, w, true}, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return "", err
	}
	plain := digest.Canonical.Digester()
	archive := tar.NewWriter(io.MultiWriter(compressed, plain.Hash()))
	err = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "disk/disk.qcow2", Mode: 0o444, Size: st.Size()})
	if err == nil {
		_, err = io.Copy(packing{t, archive, false}, io.NewSectionReader(disk, 0, st.Size()))
	}
	return plain.Digest(), errors.Join(err, archive.Close(), compressed.Close())
}

// counter counts what is written, until ctx ends.
type counter struct {
	ctx   context.Context //nolint:containedctx // it is the push's
	bytes int64
	each  func(bytes int64) // may be nil
}

func (c *counter) Write(b []byte) (int, error) {
	c.bytes += int64(len(b))
	if c.each != nil {
		c.each(c.bytes)
	}
	return len(b), context.Cause(c.ctx)
}

// pushFailed classifies why a registry has not taken an image.
func (r Reference) pushFailed(ctx context.Context, err error) error {
	e, refused := errors.AsType[*errcode.ErrorResponse](err)
	switch cause := context.Cause(ctx); {
	case err == nil:
		return nil
	case cause != nil:
		err = cause
	case errors.Is(err, auth.ErrBasicCredentialNotFound), refused && (e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden):
		return r.refuse(v1alpha1.ReasonImageUnauthorized, "the registry wants credentials of somebody who may push it: correct the Secret that pushSecretName names")
	case refused: // without its URL, which may hold a token
		err = fmt.Errorf("%d %s: %s", e.StatusCode, http.StatusText(e.StatusCode), wordsOf(e.Errors).text)
	}
	return fault.NewTransient(v1alpha1.ReasonPushFailed, fmt.Errorf("pushing image %s: %w", r, err))
}
