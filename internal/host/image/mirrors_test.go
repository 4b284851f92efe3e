package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// TestMirrors: a mirror with a certificate of its own is asked first, under its prefix, and one that fails is passed over.
func TestMirrors(t *testing.T) {
	var asked []string
	broken, spoils := "", false
	origin := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				asked = append(asked, "origin "+r.URL.Path)
			}
			next.ServeHTTP(w, r)
		})
	}, Options{})
	ref := origin.push("team/disk", files("disk/d", "a disk"))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, "mirror "+r.URL.Path)
		if broken != "" && strings.Contains(r.URL.Path, broken) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		path := strings.Replace(r.URL.Path, "/v2/of/origin/", "/v2/", 1)
		resp, err := http.Get("http://" + origin.host + path) //nolint:noctx // a test's
		must(err)
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		body := must1(io.ReadAll(resp.Body))
		if spoils && strings.Contains(r.URL.Path, "/blobs/") {
			body[0]++
		}
		_, err = w.Write(body)
		must(err)
	}))
	t.Cleanup(server.Close)
	mirrored := func() served {
		asked = nil
		return served{t, origin.host, New(Options{PlainHTTP: []string{origin.host}, Registries: []Registry{{
			Host: origin.host, Mirrors: []string{"https://127.0.0.1:1", server.URL + "/of/origin/"}, CA: certificate(server),
		}}})}
	}
	reads := func(s served, want string) {
		t.Helper()
		if got, err := s.disk(ref, Keychain{}); got != "a disk" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if first := strings.Join(asked, ", "); !strings.HasPrefix(first, want) {
			t.Errorf("asked %s; want %s", first, want)
		}
	}
	s := mirrored()
	reads(s, "mirror /v2/of/origin/team/disk/manifests/latest, origin /v2/team/disk/manifests/latest, mirror /v2/of/origin/team/disk/blobs/")

	broken = "manifests"
	s = mirrored()
	reads(s, "mirror /v2/of/origin/team/disk/manifests/latest, origin /v2/team/disk/manifests/latest, origin /v2/team/disk/blobs/")
	asked = nil
	reads(s, "origin /v2/team/disk/manifests/latest, origin") // it rests

	broken = "blobs"
	s = mirrored()
	_, err := s.disk(ref, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "from "+strings.TrimPrefix(server.URL, "https://")+" failed")
	asked = nil
	reads(s, "origin /v2/team/disk/manifests/latest, origin")

	broken, spoils = "", true
	s = mirrored()
	_, err = s.disk(ref, Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageDigestMismatch, "")
	asked = nil
	reads(s, "origin /v2/team/disk/manifests/latest, origin") // it is believed no more for a while

	spoils = false
	s = mirrored()
	ctx, cancel := context.WithCancel(t.Context())
	begun, err := s.client.Resolve(ctx, ref, Keychain{})
	must(err)
	cancel()
	if err := begun.Disk(ctx, func(string, int64) (io.Writer, error) { return io.Discard, nil }); err == nil {
		t.Error("a pull that was cancelled ends well")
	}
	asked = nil
	reads(s, "mirror /v2/of/origin/team/disk/manifests/latest") // that was not its fault

	s = mirrored()
	var keys Keychain
	must(keys.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret"}}}`, strings.TrimPrefix(server.URL, "https://"))))
	image, err := s.client.Resolve(t.Context(), ref, keys)
	must(err)
	if proofs := s.client.Fingerprints(keys, ref); image.Fingerprint == Anonymous || !slices.Contains(proofs, image.Fingerprint) {
		t.Errorf("the mirror's %q is not among %q", image.Fingerprint, proofs)
	}

	missing := must1(ParseReference(origin.host + "/team/other"))
	_, err = mirrored().disk(missing, Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageNotFound, "no such image")
}

// TestRegistries refuses what could only be a mistake.
func TestRegistries(t *testing.T) {
	for list, says := range map[string]string{
		"": "",
		`[{"host":"quay.io","mirrors":["https://mirror.example.com/quay","http://10.0.0.1:5000"]}]`: "",
		`{}`:                              "cannot unmarshal",
		`[{"host":"quay.io","mirror":1}]`: "unknown field",
		`[{"host":""}]`:                   "host or host:port",
		`[{"host":"https://quay.io"}]`:    "host or host:port",
		`[{"host":"quay.io","ca":"MII"}]`: "no certificate in PEM",
		`[{"host":"quay.io","mirrors":["mirror.example.com"]}]`:            "must be https://",
		`[{"host":"quay.io","mirrors":["https://a:b@mirror.example"]}]`:    "must be https://",
		`[{"host":"quay.io","mirrors":["https://mirror.example/?a=b"]}]`:   "must be https://",
		`[{"host":"quay.io","mirrors":["ftp://mirror.example.com/quay"]}]`: "must be https://",
	} {
		var got, again Registries
		err := got.UnmarshalText([]byte(list))
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v; want …%s…", list, err, says)
		}
		if err == nil && (again.UnmarshalText(must1(json.Marshal(got))) != nil || cmp.Diff(got, again) != "") {
			t.Errorf("%s reads back as %v", list, again)
		}
	}
}
