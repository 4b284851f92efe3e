package registry

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func TestARegistryRemembersItsImages(t *testing.T) {
	dir := t.TempDir()
	img, err := random.Image(1024, 2)
	if err != nil {
		t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, push := range []bool{true, false} { // each time a new process, as it were
		h, err := newHandler(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewServer(h)
		ref, err := name.ParseReference(strings.TrimPrefix(s.URL, "http://")+"/a/b:c", name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if push {
			if err := remote.Write(ref, img); err != nil {
				t.Fatal(err)
			}
		}
		got, err := remote.Image(ref)
		if err != nil {
			t.Fatal(err)
		}
		if digest, err := got.Digest(); err != nil || digest != want {
			t.Errorf("got %s, %v; want %s", digest, err, want)
		}
		s.Close()
	}
}
