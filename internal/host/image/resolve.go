package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex}

// Image is an image that a registry has, and gave access to.
type Image struct {
	// Reference is what was resolved.
	Reference Reference
	// Digest is the manifest's, as sha256:…: of an index the one for our architecture. It never means other content.
	Digest string
	// Size is what its layers weigh on the wire, in bytes.
	Size int64
	// Fingerprint is the fingerprint of the credential that gave access, Anonymous if none was needed; see Keychain.Fingerprints.
	Fingerprint string

	repository *repository
	layers     []descriptor
}

// Resolve asks the registry what the reference means now. Errors: ImageInvalid, ImageNotFound, ImageUnauthorized,
// ImageDigestMismatch, ImageNotDisk, ImageTooLarge, RegistryUnreachable.
func (c *Client) Resolve(ctx context.Context, ref Reference, keys Keychain) (*Image, error) {
	var first error
	for _, with := range keys.candidates(ref) {
		image, err := c.resolve(ctx, c.repository(ref, with))
		if err == nil {
			return image, nil
		}
		if first == nil {
			first = err
		}
		// Some registries answer 404 to clients without access.
		if reason := fault.ReasonOf(err); reason != v1alpha1.ReasonImageUnauthorized && reason != v1alpha1.ReasonImageNotFound {
			return nil, err
		}
	}
	return nil, first
}

func (c *Client) resolve(ctx context.Context, r *repository) (*Image, error) {
	m, at, err := r.manifest(ctx, r.ref.tagOrDigest())
	if err != nil {
		return nil, err
	}
	if m.isIndex() {
		chosen, err := m.choose(c.options.Architecture)
		if err != nil {
			return nil, fault.NewUser(v1alpha1.ReasonImageNotFound, fmt.Errorf("image %s: %w", r.ref, err))
		}
		if m, at, err = r.manifest(ctx, chosen.String()); err != nil {
			return nil, err
		}
		if m.isIndex() {
			return nil, notDisk(r.ref, "an index inside an index: name the inner one")
		}
	}
	size, err := m.check()
	if err != nil {
		return nil, notDisk(r.ref, "%w", err)
	}
	if size > c.options.MaxBytes {
		return nil, tooLarge(r.ref, "its layers have %d bytes, the most is %d: shrink it, or raise the agent's limit", size, c.options.MaxBytes)
	}
	return &Image{Reference: r.ref, Digest: at.String(), Size: size, Fingerprint: r.fingerprint, repository: r, layers: m.Layers}, nil
}

// manifest fetches a manifest or index and checks it against its digest, where version is one.
func (r *repository) manifest(ctx context.Context, version string) (*manifest, digest.Digest, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, manifestTimeout, fmt.Errorf("no manifest for %s", manifestTimeout))
	defer cancel()
	// One line: some registries, and proxies before them, read the first alone.
	resp, err := r.get(ctx, "manifests/"+version, http.Header{"Accept": {strings.Join(acceptManifests, ", ")}})
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return nil, "", err
	}
	if len(b) > maxManifest {
		return nil, "", tooLarge(r.ref, "its manifest has more than %d bytes", maxManifest)
	}
	at := digest.FromBytes(b)
	if want, err := digest.Parse(version); err == nil && at != want {
		return nil, "", digestMismatch(r.ref, "its manifest")
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, "", notDisk(r.ref, "%w", err)
	}
	return m, at, nil
}
