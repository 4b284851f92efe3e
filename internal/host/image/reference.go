package image

import (
	"cmp"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Reference names an image in a registry, or a file on a web server.
type Reference struct {
	// Registry is host[:port] as written; docker.io if none was.
	Registry string
	// Repository is the path in the registry, such as library/debian; of a URL its path, without the slash before it.
	Repository string
	// Tag is the tag; "latest" if neither tag nor digest was written, "" if only a digest was.
	Tag string
	// Digest pins the manifest or index, as sha256:…, or the file, as sha256:… or sha512:…; "" if it does not.
	Digest string
	// URL is the file's, without its checksum; "" in a registry.
	URL string
	// Disk is the disk's name, of an artifact with several; "" if it need not be told from others. Blob pins it, as sha256:…:
	// a registry has that whatever becomes of the tag.
	Disk, Blob string
}

var disksName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,128}$`)

// ParseReference reads a name as docker does: docker.io and latest are implied, and #disk=NAME perhaps follows; or a URL, with
// #sha256=… or #sha512=… perhaps. Errors: ImageInvalid.
func ParseReference(s string) (Reference, error) {
	if strings.Contains(s, "://") {
		return parseURL(s)
	}
	image, disk, chosen := strings.Cut(s, "#disk=")
	if chosen && !disksName.MatchString(disk) {
		return invalid(s, "write the name of one of its disks behind it as #disk=NAME")
	}
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return invalid(s, "%w: write registry/repository:tag or registry/repository@sha256:…", err)
	}
	named = reference.TagNameOnly(named)
	ref := Reference{Registry: reference.Domain(named), Repository: reference.Path(named), Disk: disk}
	if tagged, ok := named.(reference.Tagged); ok {
		ref.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		if digested.Digest().Algorithm() != digest.SHA256 {
			return invalid(s, "write its digest as sha256:…")
		}
		ref.Digest = digested.Digest().String()
	}
	return ref, nil
}

// invalid says what to write instead of an image's name.
func invalid(image, advice string, args ...any) (Reference, error) {
	return Reference{}, fault.NewUser(v1alpha1.ReasonImageInvalid, fmt.Errorf("image %q: "+advice, append([]any{image}, args...)...))
}

func parseURL(s string) (Reference, error) {
	plain, checksum, pinned := strings.Cut(s, "#")
	u, err := url.Parse(plain)
	if err != nil {
		return invalid("…", "it is no URL: write https://host/file, with #sha256=… perhaps") // and may hold a password
	}
	ref := Reference{Registry: strings.ToLower(u.Host), Repository: strings.TrimPrefix(u.Path, "/"), URL: plain}
	if pinned {
		sum := digest.Digest(strings.Replace(checksum, "=", ":", 1))
		if err := sum.Validate(); err != nil || sum.Algorithm() != digest.SHA256 && sum.Algorithm() != digest.SHA512 {
			return invalid(u.Redacted(), "write its checksum behind it as #sha256=… or #sha512=…, in lower case")
		}
		ref.Digest = sum.String()
	}
	switch {
	case u.User != nil:
		return invalid(u.Redacted(), "leave the credentials out: put them into a Secret for that host, and name it in imagePullSecrets")
	case u.Scheme != "https" && u.Scheme != "http", u.Host == "":
		return invalid(u.Redacted(), "write https://host/file, with #sha256=… perhaps")
	}
	return ref, nil
}

// At is the same image pinned to a digest as Resolve returns it, unless that is "".
func (r Reference) At(digest string) Reference {
	if r.Disk != "" {
		r.Blob = cmp.Or(digest, r.Blob)
		return r
	}
	r.Digest = cmp.Or(digest, r.Digest)
	return r
}

// String is the full name, which ParseReference reads back unless a blob is pinned.
func (r Reference) String() string {
	if r.URL != "" {
		if r.Digest == "" {
			return r.URL
		}
		return r.URL + "#" + strings.Replace(r.Digest, ":", "=", 1)
	}
	s := r.Registry + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	if r.Disk != "" {
		s += "#disk=" + r.Disk
	}
	if r.Blob != "" {
		s += "@" + r.Blob
	}
	return s
}

// Source is where its content comes from, whatever version of it.
func (r Reference) Source() string { return cmp.Or(r.URL, r.Registry+"/"+r.Repository) }

// host is where the registry is reached.
func (r Reference) host() string {
	if r.Registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return r.Registry
}
