package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Keychain holds the credentials of pull secrets.
type Keychain []entry

// entry is a credential for the images whose names it fits.
type entry struct {
	host, path  string // host may hold globs, path is the beginning of a repository's path
	credential  auth.Credential
	fingerprint string // for one of the images
}

// Anonymous is the fingerprint of an image that needs no credentials.
const Anonymous = ""

// String keeps the credentials out of whatever prints a Keychain.
func (Keychain) String() string { return "(credentials)" }

// GoString does so for %#v.
func (Keychain) GoString() string { return "(credentials)" }

// Add reads a docker configuration, the content of a Secret of type kubernetes.io/dockerconfigjson. Its error,
// ImageUnauthorized, tells nothing of the content.
func (k *Keychain) Add(config []byte) error {
	var file struct {
		Auths map[string]struct {
			Username string `json:"username"`
			Password string `json:"password"`
			Auth     string `json:"auth"`
		} `json:"auths"`
	}
	malformed := fault.NewUser(v1alpha1.ReasonImageUnauthorized,
		errors.New("the pull secret holds no docker configuration: make it with `kubectl create secret docker-registry`"))
	if json.Unmarshal(config, &file) != nil {
		return malformed
	}
	for key, a := range file.Auths {
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			username, password, ok := strings.Cut(string(plain), ":")
			if err != nil || !ok {
				return malformed
			}
			a.Username, a.Password = username, password
		}
		e := entry{credential: auth.Credential{Username: a.Username, Password: a.Password}}
		e.host, e.path = splitKey(key)
		*k = append(*k, e)
	}
	// The longest path first, as kubelet; the rest only makes the order certain.
	slices.SortStableFunc(*k, func(a, b entry) int {
		return cmp.Or(cmp.Compare(len(b.path), len(a.path)), cmp.Compare(b.host, a.host))
	})
	return nil
}

// splitKey reads a key of auths: a host, or a URL, with a path perhaps. Docker itself writes
// https://index.docker.io/v1/ for its hub, and the API's version is no path.
func splitKey(key string) (host, repository string) {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, repository, _ = strings.Cut(key, "/")
	repository = strings.Trim(repository, "/")
	if repository == "v1" || repository == "v2" {
		repository = ""
	}
	switch host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		host = "docker.io"
	}
	return host, repository
}

// candidates are the credentials to try, in order, as kubelet does; without any at last, so that a stale secret
// does not block a public image.
func (k Keychain) candidates(ref Reference) []entry {
	var found []entry
	for _, e := range k {
		// A path ends at a slash, so that the credentials of team do not go to team-of-somebody-else.
		inPath := e.path == "" || strings.HasPrefix(ref.Repository+"/", e.path+"/")
		if !inPath || !hostMatches(e.host, ref.Registry) {
			continue
		}
		sum := sha256.Sum256([]byte(ref.Registry + "\x00" + e.credential.Username + "\x00" + e.credential.Password))
		e.fingerprint = hex.EncodeToString(sum[:])
		found = append(found, e)
	}
	return append(found, entry{fingerprint: Anonymous})
}

// hostMatches compares label by label, so that *.example.com is one label and never a suffix.
func hostMatches(pattern, host string) bool {
	if pattern == host { // an IPv6 address has no labels
		return true
	}
	pattern, patternPort, _ := strings.Cut(pattern, ":")
	host, hostPort, _ := strings.Cut(host, ":")
	slashed := strings.NewReplacer(".", "/") // a * ends at a slash
	ok, err := path.Match(slashed.Replace(pattern), slashed.Replace(host))
	return err == nil && ok && patternPort == hostPort && strings.Count(pattern, ".") == strings.Count(host, ".")
}
