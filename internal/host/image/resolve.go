package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	maxManifest = 4 << 20
	maxEntries  = 512 // of an index
	maxLayers   = 256

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
	// Proof is the fingerprint of the credential that gave access, Anonymous if none was needed; see Keychain.Proofs.
	Proof string

	session *session
	layers  []ocispec.Descriptor
}

// Resolve asks the registry what the reference means now. Errors: ImageInvalid, ImageNotFound, ImageUnauthorized,
// ImageDigestMismatch, ImageNotDisk, ImageTooLarge, RegistryUnreachable.
func (c *Client) Resolve(ctx context.Context, ref Reference, keys Keychain) (*Image, error) {
	var first error
	for _, with := range keys.candidates(ref) {
		image, err := c.resolve(ctx, c.session(ref, with))
		if err == nil {
			return image, nil
		}
		if first == nil {
			first = err
		}
		// Some registries hide from the uninvited that they have an image.
		if reason := fault.ReasonOf(err); reason != v1alpha1.ReasonImageUnauthorized && reason != v1alpha1.ReasonImageNotFound {
			return nil, err
		}
	}
	return nil, first
}

func (c *Client) resolve(ctx context.Context, s *session) (*Image, error) {
	m, at, err := s.manifest(ctx, s.ref.version())
	if err != nil {
		return nil, err
	}
	if m.isIndex() {
		chosen, err := m.choose(c.options.Architecture)
		if err != nil {
			return nil, fault.ByUser(v1alpha1.ReasonImageNotFound, fmt.Errorf("image %s: %w", s.ref, err))
		}
		if m, at, err = s.manifest(ctx, chosen.String()); err != nil {
			return nil, err
		}
		if m.isIndex() {
			return nil, notDisk(s.ref, "an index inside an index: name the inner one")
		}
	}
	size, err := m.check()
	if err != nil {
		return nil, notDisk(s.ref, "%w", err)
	}
	if size > c.options.MaxBytes {
		return nil, tooLarge(s.ref, "its layers have %d bytes, the most is %d: shrink it, or raise the agent's limit", size, c.options.MaxBytes)
	}
	return &Image{Reference: s.ref, Digest: at.String(), Size: size, Proof: s.proof, session: s, layers: m.Layers}, nil
}

// manifest fetches a manifest or index and checks it against its digest, where version is one.
func (s *session) manifest(ctx context.Context, version string) (*manifest, digest.Digest, error) {
	body, err := s.get(ctx, "manifests/"+version, acceptManifests...)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = body.Close() }()
	b, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return nil, "", err
	}
	if len(b) > maxManifest {
		return nil, "", tooLarge(s.ref, "its manifest has more than %d bytes", maxManifest)
	}
	at := digest.FromBytes(b)
	if want, err := digest.Parse(version); err == nil && at != want {
		return nil, "", mismatch(s.ref, "its manifest")
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, "", notDisk(s.ref, "%w", err)
	}
	return m, at, nil
}

// manifest is an image's manifest or an index of some, OCI's or docker's.
type manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

func (m *manifest) isIndex() bool { return m.Manifests != nil }

func parseManifest(b []byte) (*manifest, error) {
	m := &manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, errors.New("its manifest cannot be read")
	}
	switch {
	case m.SchemaVersion != 2:
		return nil, fmt.Errorf("its manifest has schema version %d, which is no longer used: push it again", m.SchemaVersion)
	case m.Layers != nil && m.Manifests != nil:
		return nil, errors.New("its manifest claims to be an index as well") // CVE-2021-41190
	case len(m.Layers) > maxLayers:
		return nil, fmt.Errorf("it has %d layers, the most is %d", len(m.Layers), maxLayers)
	case len(m.Manifests) > maxEntries:
		return nil, fmt.Errorf("its index has %d entries, the most is %d", len(m.Manifests), maxEntries)
	}
	for _, d := range slices.Concat(m.Layers, m.Manifests) {
		if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size < 0 {
			return nil, errors.New("its manifest names something by no sha256 digest")
		}
	}
	return m, nil
}

// check returns the sum of the layers' sizes in bytes.
func (m *manifest) check() (int64, error) {
	var size int64
	for _, l := range m.Layers {
		if size += l.Size; size < 0 {
			return 0, errors.New("its layers claim an absurd size")
		}
	}
	if len(m.Layers) == 0 {
		return 0, errors.New("it has no layers: use a containerDisk, or an artifact with one disk")
	}
	return size, nil
}

// machineArch are uname's names, which podman's machine images use.
var machineArch = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// choose returns the first manifest of an index for an architecture; the only one, if it names none.
func (m *manifest) choose(arch string) (digest.Digest, error) {
	for _, d := range m.Manifests {
		p := d.Platform
		if p == nil {
			continue
		}
		have := p.Architecture
		if known, ok := machineArch[have]; ok {
			have = known
		}
		// podman's machine images have one for each hypervisor.
		if kind, ok := d.Annotations["disktype"]; ok && kind != "qemu" {
			continue
		}
		if p.OS == "linux" && have == arch {
			return d.Digest, nil
		}
	}
	if len(m.Manifests) == 1 && m.Manifests[0].Platform == nil {
		return m.Manifests[0].Digest, nil
	}
	return "", fmt.Errorf("the image index has no manifest for linux/%s: push one", arch)
}
