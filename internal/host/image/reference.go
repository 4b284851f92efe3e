package image

import (
	"cmp"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Reference names an image in a registry.
type Reference struct {
	// Registry is host[:port] as written; docker.io if none was.
	Registry string
	// Repository is the path in the registry, such as library/debian.
	Repository string
	// Tag is the tag; "latest" if neither tag nor digest was written, "" if only a digest was.
	Tag string
	// Digest pins the manifest or index, as sha256:…; "" if it does not.
	Digest string
}

// ParseReference reads a name as docker does: docker.io and latest are implied. Errors: ImageInvalid.
func ParseReference(s string) (Reference, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Reference{}, fault.NewUser(v1alpha1.ReasonImageInvalid,
			fmt.Errorf("image %q: %w: write registry/repository:tag or registry/repository@sha256:…", s, err))
	}
	named = reference.TagNameOnly(named)
	ref := Reference{Registry: reference.Domain(named), Repository: reference.Path(named)}
	if tagged, ok := named.(reference.Tagged); ok {
		ref.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		if digested.Digest().Algorithm() != digest.SHA256 {
			return Reference{}, fault.NewUser(v1alpha1.ReasonImageInvalid, fmt.Errorf("image %q: write its digest as sha256:…", s))
		}
		ref.Digest = digested.Digest().String()
	}
	return ref, nil
}

// At is the same image pinned to a digest, unless that is "".
func (r Reference) At(digest string) Reference {
	r.Digest = cmp.Or(digest, r.Digest)
	return r
}

// String is the full name, which ParseReference reads back.
func (r Reference) String() string {
	s := r.Registry + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// host is where the registry is reached.
func (r Reference) host() string {
	if r.Registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return r.Registry
}
