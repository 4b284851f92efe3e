package image

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("ab", 32)
	for s, want := range map[string]string{
		"debian":                                       "docker.io/library/debian:latest",
		"kubevirt/cirros:v1":                           "docker.io/kubevirt/cirros:v1",
		"quay.io/containerdisks/debian:12":             "quay.io/containerdisks/debian:12",
		"localhost/disk":                               "localhost/disk:latest",
		"registry:5000/a/b/c":                          "registry:5000/a/b/c:latest",
		"[::1]:5000/a":                                 "[::1]:5000/a:latest",
		"quay.io/a/b@sha256:" + hex:                    "quay.io/a/b@sha256:" + hex,
		"quay.io/a/b:12@sha256:" + hex:                 "quay.io/a/b:12@sha256:" + hex,
		"quay.io/a/b:12#disk=root":                     "quay.io/a/b:12#disk=root",
		"quay.io/a/b@sha256:" + hex + "#disk=data-1.x": "quay.io/a/b@sha256:" + hex + "#disk=data-1.x",
		"quay.io/a/b#disk=":                            "",
		"quay.io/a/b#disk=../x":                        "",
		"quay.io/a/b#root":                             "",
		"":                                             "",
		"Debian":                                       "",
		"https://example.com/a.qcow2?b=c":              "https://example.com/a.qcow2?b=c",
		"http://[::1]:8080/a#sha256=" + hex:            "http://[::1]:8080/a#sha256=" + hex,
		"https://example.com/a#sha512=" + hex + hex:    "https://example.com/a#sha512=" + hex + hex,
		"quay.io/a:b:c":                                "",
		"quay.io/a@sha256:abc":                         "",
		"quay.io/../a":                                 "",
		"quay.io/a b":                                  "",
		hex:                                            "",
		"quay.io/a@sha512:" + strings.Repeat(hex, 2): "",
	} {
		got, err := ParseReference(s)
		if want == "" {
			expect(t, err, fault.User, v1alpha1.ReasonImageInvalid, "write ")
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%s: %s, %v; want %s", s, got, err, want)
		}
		if again, err := ParseReference(got.String()); err != nil || again != got {
			t.Errorf("%s reads back as %s, %v", got, again, err)
		}
	}
}

func TestKeychainMatchesAsKubelet(t *testing.T) {
	for _, c := range []struct {
		key, image string
		fits       bool
	}{
		{"quay.io", "quay.io/a/b", true},
		{"https://quay.io", "quay.io/a/b", true},
		{"https://quay.io/v2/", "quay.io/a/b", true},
		{"https://index.docker.io/v1/", "debian", true},
		{"docker.io", "debian", true},
		{"quay.io/a", "quay.io/a/b", true},
		{"quay.io/a/b", "quay.io/a/b", true},
		{"*.example.com", "eu.example.com/a", true},
		{"registry:5000", "registry:5000/a", true},
		{"[::1]:5000", "[::1]:5000/a", true},
		{"quay.io/a", "quay.io/ab/c", false},
		{"quay.io/a/b/c", "quay.io/a/b", false},
		{"*.example.com", "example.com/a", false},
		{"*.example.com", "a.b.example.com/a", false},
		{"*", "quay.io/a", false},
		{"registry", "registry:5000/a", false},
		{"quay.io", "quay.io.evil.com/a", false},
		{"[", "quay.io/a", false},
		{"", "quay.io/a", false},
	} {
		var k Keychain
		must(k.Add(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, c.key, base64.StdEncoding.EncodeToString([]byte("user:pass:word")))))
		ref, err := ParseReference(c.image)
		must(err)
		found := k.candidates(ref)
		if fits := len(found) == 2; fits != c.fits {
			t.Errorf("%s for %s: %v, want %v", c.key, c.image, fits, c.fits)
		} else if fits && (found[0].credential.Username != "user" || found[0].credential.Password != "pass:word") {
			t.Errorf("%s: the credential is not what was written", c.key)
		}
	}
}

func TestKeychainTriesTheNearestFirst(t *testing.T) {
	var k Keychain
	must(k.Add([]byte(`{"auths":{"quay.io":{"username":"far"},"quay.io/a/b":{"username":"near"},"quay.io/a":{"username":"mid"}}}`)))
	ref, err := ParseReference("quay.io/a/b/c")
	must(err)
	var got []string
	for _, c := range k.candidates(ref) {
		got = append(got, c.credential.Username)
	}
	if diff := cmp.Diff([]string{"near", "mid", "far", ""}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestKeychainTellsNoSecrets(t *testing.T) {
	var k Keychain
	must(k.Add([]byte(`{"auths":{"quay.io":{"username":"robot","password":"s3cret"}}}`)))
	if s := fmt.Sprintf("%v %+v %#v %s", k, k, k, k); strings.Contains(s, "s3cret") || strings.Contains(s, "robot") {
		t.Errorf("printed as %s", s)
	}
	for _, bad := range []string{
		``, `s3cret`, `{"auths":{"quay.io":"s3cret"}}`, `{"auths":{"quay.io":{"auth":"s3cret!"}}}`, `{"auths":{"quay.io":{"auth":"czNjcmV0"}}}`, `[s3cret`,
	} {
		err := k.Add([]byte(bad))
		expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "docker configuration")
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("the error tells it: %v", err)
		}
	}
}

func FuzzReference(f *testing.F) {
	f.Add("quay.io/a/b:12")
	f.Add("https://example.com/a#sha256=" + strings.Repeat("ab", 32))
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseReference(s)
		if err != nil {
			return
		}
		if again, err := ParseReference(ref.String()); err != nil || again != ref {
			t.Errorf("%q reads back as %+v, %v; want %+v", s, again, err, ref)
		}
	})
}

func FuzzKeychain(f *testing.F) {
	f.Add([]byte(`{"auths":{"quay.io/a":{"auth":"dTpw"}}}`), "quay.io/a/b")
	f.Fuzz(func(_ *testing.T, config []byte, image string) {
		var k Keychain
		ref, err := ParseReference(image)
		if err == nil && k.Add(config) == nil {
			_ = New(Options{}).Fingerprints(k, ref)
		}
	})
}
