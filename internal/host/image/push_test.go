package image

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// diskFile is a file of a size, of which half does not compress.
func diskFile(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	content := append([]byte("QFI\xfb"), make([]byte, size)...)
	for i := range size / 2 {
		content[4+i] = byte(rand.Uint32())
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, content
}

// protected lets in whoever has a token for what he does, or Basic's credential where there is no token server.
func protected(host *string) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, password, _ := r.BasicAuth()
			token := r.Header.Get("Authorization") == "Bearer for push"
			switch {
			case r.URL.Path == "/token" && password == "s3cret" && strings.Contains(r.FormValue("scope"), "push"):
				_, _ = io.WriteString(w, `{"token":"for push"}`)
			case r.URL.Path == "/token" && password == "s3cret":
				_, _ = io.WriteString(w, `{"token":"for pull"}`)
			case r.URL.Path == "/token":
				w.WriteHeader(http.StatusUnauthorized)
			case token || r.Method == http.MethodGet && r.Header.Get("Authorization") == "Bearer for pull":
				next.ServeHTTP(w, r)
			default:
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, *host))
				w.WriteHeader(http.StatusUnauthorized)
			}
		})
	}
}

func TestWhatIsPushedIsPulled(t *testing.T) {
	var s served
	s = serve(t, protected(&s.host), Options{})
	ref := s.ref("shop/disk")
	var keys Keychain
	must(keys.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret"}}}`, s.host)))
	file, content := diskFile(t, 3<<20)
	for range 2 { // what the registry has, it takes again
		var last, whole int64
		sum, size, err := s.client.Push(t.Context(), ref, keys, file, time.Now(), func(bytes, of int64) { last, whole = bytes, of })
		if err != nil || last != whole || size != whole || size < 3<<19 || size > 2<<20 {
			t.Fatalf("pushed %s of %d bytes, told of %d of %d: %v", sum, size, last, whole, err)
		}
		image, err := s.client.Resolve(t.Context(), ref, keys)
		if err != nil || image.Digest != sum {
			t.Fatalf("pulled %+v: %v", image, err)
		}
		var got bytes.Buffer
		if err := image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return &got, nil }); err != nil || !bytes.Equal(got.Bytes(), content) {
			t.Fatalf("%d bytes were pulled, want %d: %v", got.Len(), len(content), err)
		}
	}
}

func TestAPushIsRefused(t *testing.T) {
	down := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"quota exceeded"}]}`, http.StatusInsufficientStorage)
		})
	}
	file, _ := diskFile(t, 1<<20)
	host := ""
	for name, tt := range map[string]struct {
		before func(http.Handler) http.Handler
		reason v1alpha1.Reason
		says   string
	}{
		"no credentials": {protected(&host), v1alpha1.ReasonImageUnauthorized, "pushSecretName"},
		"no space":       {down, v1alpha1.ReasonPushFailed, "507 Insufficient Storage: DENIED: quota exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, tt.before, Options{})
			host = s.host
			_, _, err := s.client.Push(t.Context(), s.ref("shop/disk"), Keychain{}, file, time.Now(), func(int64, int64) {})
			if fault.ReasonOf(err) != tt.reason || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "http://") {
				t.Errorf("%s: %v", fault.ReasonOf(err), err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		s := serve(t, nil, Options{})
		ref := s.ref("shop/disk")
		ref.Registry = "127.0.0.1:1"
		_, _, err := s.client.Push(t.Context(), ref, Keychain{}, file, time.Now(), func(int64, int64) {})
		if fault.ReasonOf(err) != v1alpha1.ReasonPushFailed {
			t.Errorf("%s: %v", fault.ReasonOf(err), err)
		}
	})
	t.Run("a registry that hangs", func(t *testing.T) {
		release := make(chan struct{})
		s := serve(t, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release })
		}, Options{ThroughputWindow: 50 * time.Millisecond})
		t.Cleanup(func() { close(release) }) // before the server's end, which waits
		_, _, err := s.client.Push(t.Context(), s.ref("shop/disk"), Keychain{}, file, time.Now(), func(int64, int64) {})
		if !strings.Contains(fmt.Sprint(err), "less than 16384 bytes a second") || fault.ReasonOf(err) != v1alpha1.ReasonPushFailed {
			t.Errorf("%s: %v", fault.ReasonOf(err), err)
		}
	})
}
