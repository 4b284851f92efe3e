package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// manifestTimeout bounds the wait for a manifest, which is small, however its bytes drip.
const manifestTimeout = 5 * time.Minute

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerIndex}

// Image is an image that a registry has, and gave access to.
type Image struct {
	// Reference is what was resolved.
	Reference Reference
	// Digest is the manifest's, as sha256:…: of an index the one for our architecture. It never means other content. Of a
	// URL it is the file's, and "" until its bytes have come if no checksum says it; of a disk that has a name its blob's.
	Digest string
	// Fingerprint is the fingerprint of the credential that gave access, Anonymous if none was needed; see Client.Fingerprints.
	Fingerprint string

	repository *repository
	layers     []descriptor
	received   atomic.Int64
}

// Received is how many bytes have been taken of those that the registry has of it, packed as they are.
func (i *Image) Received() (taken, of int64) {
	for _, l := range i.layers {
		of += l.Size
	}
	return i.received.Load(), of
}

// Resolve asks the registry what the reference means now. Errors: ImageInvalid, ImageNotFound, ImageUnauthorized,
// ImageDigestMismatch, ImageNotDisk, ImageTooLarge, RegistryUnreachable.
func (c *Client) Resolve(ctx context.Context, ref Reference, keys Keychain) (image *Image, err error) {
	for _, at := range c.places(ref, time.Now().Add(-mirrorRest)) {
		if image, err = c.resolveAt(ctx, ref, at, keys); err == nil || ctx.Err() != nil {
			break
		}
	}
	return image, err
}

func (c *Client) resolveAt(ctx context.Context, ref, at Reference, keys Keychain) (*Image, error) {
	var first error
	for _, with := range keys.candidates(at) {
		r := c.repository(ref, at, with)
		image, err := c.resolve(ctx, r)
		if err == nil {
			return image, nil
		}
		if fault.ClassOf(err) != fault.User { // it may just not have the image
			r.passOver(err)
		}
		first = cmp.Or(first, err)
		// Some registries answer 404 to clients without access.
		if reason := fault.ReasonOf(err); reason != v1alpha1.ReasonImageUnauthorized && reason != v1alpha1.ReasonImageNotFound {
			return nil, err
		}
	}
	return nil, first
}

func (c *Client) resolve(ctx context.Context, r *repository) (*Image, error) {
	if r.ref.URL != "" || r.ref.Blob != "" {
		return c.file(ctx, r)
	}
	m, at, err := r.manifest(ctx, cmp.Or(r.ref.Digest, r.ref.Tag))
	if err != nil {
		return nil, err
	}
	if m.isIndex() {
		chosen, err := m.choose(c.options.Architecture)
		if err != nil {
			return nil, r.ref.refuse(v1alpha1.ReasonImageNotFound, "%w", err)
		}
		if m, at, err = r.manifest(ctx, chosen.String()); err != nil {
			return nil, err
		}
		if m.isIndex() {
			return nil, r.ref.notDisk("an index inside an index: name the inner one")
		}
	}
	if r.ref.Disk != "" {
		if err := m.keep(r.ref.Disk); err != nil {
			return nil, r.ref.refuse(v1alpha1.ReasonImageNotFound, "%w", err)
		}
		at = m.Layers[0].Digest
	}
	size, err := m.check()
	if err != nil {
		return nil, r.ref.notDisk("%w", err)
	}
	if size > c.options.MaxBytes {
		return nil, r.ref.refuse(v1alpha1.ReasonImageTooLarge,
			"its layers have %d bytes, the most is %d: shrink it, or raise the agent's limit", size, c.options.MaxBytes)
	}
	return &Image{Reference: r.ref, Digest: at.String(), Fingerprint: r.fingerprint, repository: r, layers: m.Layers}, nil
}

// file asks a web server for a file's first byte, or a registry for a blob's: it may be had, and is so long.
func (c *Client) file(ctx context.Context, r *repository) (*Image, error) {
	pinned := cmp.Or(r.ref.Blob, r.ref.Digest)
	if strings.HasPrefix(r.ref.URL, "http://") && !slices.Contains(c.options.PlainHTTP, r.ref.host()) {
		return nil, r.ref.refuse(v1alpha1.ReasonImageInvalid,
			"plain HTTP to %s is not allowed: write https, or have the administrator list it in agent.insecureRegistries", r.ref.host())
	}
	resp, err := r.get(ctx, "blobs/"+pinned, http.Header{"Range": {"bytes=0-0"}}) // of a URL it is the file
	if err != nil {
		return nil, err
	}
	_ = resp.Body.Close()
	size := length(resp)
	switch {
	case size == 0:
		return nil, r.ref.notDisk("it is empty")
	case size < 0:
		return nil, r.ref.notDisk("its server does not tell how long it is (no Content-Length): serve it as a file")
	case size > c.options.MaxBytes:
		return nil, r.ref.refuse(v1alpha1.ReasonImageTooLarge,
			"it has %d bytes, the most is %d: shrink it, or raise the agent's limit", size, c.options.MaxBytes)
	}
	layers := []descriptor{{Digest: digest.Digest(pinned), Size: size}}
	return &Image{Reference: r.ref, Digest: pinned, Fingerprint: r.fingerprint, repository: r, layers: layers}, nil
}

// length is that of the whole of what an answer is a part of, -1 if it does not say.
func length(resp *http.Response) int64 {
	if resp.StatusCode != http.StatusPartialContent {
		return resp.ContentLength
	}
	_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
	size, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return -1
	}
	return size
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
		return nil, "", r.ref.refuse(v1alpha1.ReasonImageTooLarge, "its manifest has more than %d bytes", maxManifest)
	}
	at := digest.FromBytes(b)
	if want, err := digest.Parse(version); err == nil && at != want {
		return nil, "", r.ref.mismatch("its manifest")
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, "", r.ref.notDisk("%w", err)
	}
	return m, at, nil
}

const (
	maxManifest = 4 << 20
	maxEntries  = 512 // of an index
	maxLayers   = 256
)

// manifest is an image's manifest or an index of some, OCI's or docker's.
type manifest struct {
	SchemaVersion int         `json:"schemaVersion"`
	Layers        descriptors `json:"layers"`
	Manifests     descriptors `json:"manifests"`
}

// descriptor is what we read of OCI's: what is not named here takes no memory.
type descriptor struct {
	MediaType    string        `json:"mediaType"`
	ArtifactType string        `json:"artifactType"`
	Digest       digest.Digest `json:"digest"`
	Size         int64         `json:"size"`
	Annotations  struct {
		Title string `json:"org.opencontainers.image.title"`
		// Unpack is oras's: the blob is an archive of the directory that was pushed.
		Unpack string `json:"io.deis.oras.content.unpack"`
		// Disk is KubeVirt's: the disk's name.
		Disk string `json:"io.kubevirt.disk.name"`
		// DiskType is podman's, of machine images: the hypervisor.
		DiskType string `json:"disktype"`
		// Attests is buildkit's: what an entry of an index is for that is no image.
		Attests string `json:"vnd.docker.reference.type"`
	} `json:"annotations"`
	Platform struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	} `json:"platform"`
}

// descriptors is a list that is not read further than any image needs: an empty entry has two bytes, and a hundred
// times as many in memory.
type descriptors []descriptor

// UnmarshalJSON reads a list. One that is too long is cut, one entry behind the limit.
func (d *descriptors) UnmarshalJSON(b []byte) error {
	*d = nil
	list := json.NewDecoder(bytes.NewReader(b))
	if t, err := list.Token(); err != nil || t != json.Delim('[') {
		return err // null is none
	}
	*d = descriptors{}
	for list.More() && len(*d) <= maxEntries {
		var one descriptor
		if err := list.Decode(&one); err != nil {
			return err
		}
		*d = append(*d, one)
	}
	return nil
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
		return nil, fmt.Errorf("it has more than %d layers", maxLayers)
	case len(m.Manifests) > maxEntries:
		return nil, fmt.Errorf("its index has more than %d entries", maxEntries)
	}
	for _, d := range slices.Concat(m.Layers, m.Manifests) {
		if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.SHA256 || d.Size < 0 {
			return nil, errors.New("its manifest has a digest that is not sha256")
		}
	}
	return m, nil
}

// keep leaves that blob alone that is the disk of a name: as KubeVirt says it, or as the blob's file is called.
func (m *manifest) keep(disk string) error {
	var names []string
	for _, l := range m.Layers {
		title, _, _ := strings.Cut(l.Annotations.Title, ".")
		name := cmp.Or(l.Annotations.Disk, title)
		if name == disk || l.Annotations.Title == disk {
			m.Layers = descriptors{l}
			return nil
		}
		names = append(names, printable(name))
	}
	return fmt.Errorf("none of its blobs is the disk %s: they are %q", disk, names)
}

// check returns the sum of the layers' sizes in bytes.
func (m *manifest) check() (int64, error) {
	var size int64
	for _, l := range m.Layers {
		if size += l.Size; size < 0 {
			return 0, errors.New("the sizes of its layers overflow")
		}
	}
	if len(m.Layers) == 0 {
		return 0, errors.New("it has no layers: use a containerDisk, or an artifact with one disk")
	}
	return size, nil
}

// choose returns the manifest of an index that is for QEMU on an architecture: one that says to be a disk before any
// other, then one for Linux, then the first. The only one need not say what it is for.
func (m *manifest) choose(arch string) (digest.Digest, error) {
	images := slices.DeleteFunc(slices.Clone(m.Manifests), func(d descriptor) bool {
		return d.Annotations.Attests != "" || d.Platform.Architecture == "unknown" // an attestation
	})
	if len(images) > 0 {
		best := slices.MinFunc(images, func(a, b descriptor) int { return cmp.Compare(a.rank(arch), b.rank(arch)) })
		if rank := best.rank(arch); rank < unnamed || rank == unnamed && len(images) == 1 {
			return best.Digest, nil
		}
	}
	return "", fmt.Errorf("its index has no manifest for %s: push one", arch)
}

// The ranks of an index's entries: the lowest is taken.
const (
	diskForQEMU = iota
	disk
	forLinux
	forAnother
	unnamed
	notForUs
)

// unameArch are uname's names, which podman's machine images use.
var unameArch = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// rank says how well an entry of an index fits.
func (d *descriptor) rank(arch string) int {
	system, have := strings.ToLower(d.Platform.OS), d.Platform.Architecture
	if known, ok := unameArch[have]; ok {
		have = known
	}
	hypervisor := d.Annotations.DiskType
	switch {
	case have != "" && have != arch, hypervisor != "" && hypervisor != "qemu" && !namesDisk(hypervisor):
		return notForUs
	case namesDisk(d.ArtifactType), hypervisor != "", system == "qemu":
		return diskForQEMU
	case strings.Contains(d.ArtifactType, "vmdk"), strings.Contains(d.ArtifactType, "vhd"):
		return notForUs
	case strings.Contains(d.ArtifactType, "disk"):
		return disk
	case have == "":
		return unnamed
	case system == "linux":
		return forLinux
	default:
		return forAnother
	}
}
