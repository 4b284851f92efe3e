package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// hostile serves one image whose blob, or anything, a test spoils.
type hostile struct {
	served
	layer layer
	// blobs and manifests answer instead, if they are set.
	blobs, manifests atomic.Pointer[http.HandlerFunc]
}

func (h *hostile) onBlob(f http.HandlerFunc)     { h.blobs.Store(&f) }
func (h *hostile) onManifest(f http.HandlerFunc) { h.manifests.Store(&f) }

func newHostile(t *testing.T, o Options) *hostile {
	t.Helper()
	h := &hostile{layer: files("disk/disk.img", strings.Repeat("some bytes of a disk ", 50)).gzip()}
	h.served = serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			blob, manifest := h.blobs.Load(), h.manifests.Load()
			switch {
			case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && blob != nil:
				(*blob)(w, r)
			case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") && manifest != nil:
				(*manifest)(w, r)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}, o)
	h.push("test/disk", h.layer)
	return h
}

func (h *hostile) pull() error {
	_, err := h.disk(h.ref("test/disk"), Keychain{})
	return err
}

func TestConnectionCutAtEveryByte(t *testing.T) {
	h := newHostile(t, Options{})
	for n := range h.layer.data {
		for _, told := range []bool{true, false} {
			h.onBlob(func(w http.ResponseWriter, _ *http.Request) {
				if told {
					w.Header().Set("Content-Length", strconv.Itoa(len(h.layer.data)))
				}
				_, _ = w.Write(h.layer.data[:n])
				if told {
					panic(http.ErrAbortHandler)
				}
			})
			err := h.pull()
			if fault.ReasonOf(err) != v1alpha1.ReasonRegistryUnreachable || fault.ClassOf(err) != fault.Transient {
				t.Errorf("after %d bytes, length told %v: %s: %v", n, told, fault.ReasonOf(err), err)
			}
		}
	}
}

func TestEveryWrongByteIsFound(t *testing.T) {
	h := newHostile(t, Options{})
	for n := range h.layer.data {
		spoilt := bytes.Clone(h.layer.data)
		spoilt[n] ^= 0x40
		h.onBlob(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(spoilt) })
		if err := h.pull(); fault.ReasonOf(err) != v1alpha1.ReasonImageDigestMismatch {
			t.Errorf("byte %d: %s: %v", n, fault.ReasonOf(err), err)
		}
	}
	h.onBlob(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(bytes.Clone(h.layer.data), 0)) })
	expect(t, h.pull(), fault.User, v1alpha1.ReasonImageDigestMismatch, "push the image again")
}

func TestManifestOtherThanItsDigest(t *testing.T) {
	h := newHostile(t, Options{})
	h.onManifest(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"schemaVersion":2,"layers":[{"digest":"sha256:`+strings.Repeat("ab", 32)+`","size":1}]}`)
	})
	_, err := h.disk(h.ref("test/disk").At("sha256:"+strings.Repeat("cd", 32)), Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageDigestMismatch, "its manifest")
}

func TestRegistryThatStalls(t *testing.T) {
	h := newHostile(t, Options{StallTimeout: 100 * time.Millisecond})
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	wait := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-released:
		case <-r.Context().Done():
		}
	}
	h.onManifest(wait)
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "no data for")
	h.manifests.Store(nil)
	var stalls atomic.Int32
	h.onBlob(func(w http.ResponseWriter, r *http.Request) {
		stalls.Add(1)
		_, _ = w.Write(h.layer.data[:10])
		w.(http.Flusher).Flush()
		wait(w, r)
	})
	asked := stalls.Load()
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "no data for")
	if again := stalls.Load() - asked; again != 2 { // once more from where it stalled, and no longer
		t.Errorf("asked %d times", again)
	}
}

func TestCancelledPull(t *testing.T) {
	h := newHostile(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	image, err := h.client.Resolve(ctx, h.ref("test/disk"), Keychain{})
	must(err)
	cancel()
	err = image.Disk(ctx, func(string, int64) (io.Writer, error) { return io.Discard, nil })
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "canceled")
}

func TestAnswersThatAreNoImage(t *testing.T) {
	h := newHostile(t, Options{})
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	digested := `{"digest":"sha256:` + strings.Repeat("ab", 32) + `","size":1}`
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		class   fault.Class
		reason  v1alpha1.Reason
		says    string
	}{
		"404":                      {answer(404, `{"errors":[{"code":"NAME_UNKNOWN"}]}`), fault.User, v1alpha1.ReasonImageNotFound, "correct the name"},
		"401 without a challenge":  {answer(401, ""), fault.User, v1alpha1.ReasonImageUnauthorized, "imagePullSecrets"},
		"403":                      {answer(403, ""), fault.User, v1alpha1.ReasonImageUnauthorized, "imagePullSecrets"},
		"429":                      {answer(429, ""), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "429"},
		"500":                      {answer(500, strings.Repeat("x", 1<<20)), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "500"},
		"400":                      {answer(400, ""), fault.User, v1alpha1.ReasonImageInvalid, "400"},
		"204":                      {answer(204, ""), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "204"},
		"a web page":               {answer(200, "<html>"), fault.User, v1alpha1.ReasonImageNotDisk, "cannot be read"},
		"a manifest of 5 MiB":      {answer(200, strings.Repeat(" ", 5<<20)), fault.User, v1alpha1.ReasonImageTooLarge, "manifest"},
		"schema version 1":         {answer(200, `{"schemaVersion":1}`), fault.User, v1alpha1.ReasonImageNotDisk, "schema version 1"},
		"a manifest and an index":  {answer(200, `{"schemaVersion":2,"layers":[],"manifests":[]}`), fault.User, v1alpha1.ReasonImageNotDisk, "index as well"},
		"300 layers":               {answer(200, `{"schemaVersion":2,"layers":[`+strings.Repeat(digested+",", 299)+digested+`]}`), fault.User, v1alpha1.ReasonImageNotDisk, "more than 256 layers"},
		"an index of 600":          {answer(200, `{"schemaVersion":2,"manifests":[`+strings.Repeat(digested+",", 599)+digested+`]}`), fault.User, v1alpha1.ReasonImageNotDisk, "more than 512 entries"},
		"a layer of another hash":  {answer(200, `{"schemaVersion":2,"layers":[{"digest":"md5:abc","size":1}]}`), fault.User, v1alpha1.ReasonImageNotDisk, "sha256"},
		"a layer named as a path":  {answer(200, `{"schemaVersion":2,"layers":[{"digest":"../../etc/shadow","size":1}]}`), fault.User, v1alpha1.ReasonImageNotDisk, "sha256"},
		"layers of 2^63 bytes":     {answer(200, `{"schemaVersion":2,"layers":[`+strings.Repeat(strings.Replace(digested, `:1}`, `:4611686018427387904}`, 1)+",", 2)+digested+`]}`), fault.User, v1alpha1.ReasonImageNotDisk, "overflow"},
		"a layer of 1 TiB":         {answer(200, `{"schemaVersion":2,"layers":[`+strings.Replace(digested, `:1}`, `:1099511627776}`, 1)+`]}`), fault.User, v1alpha1.ReasonImageTooLarge, "raise the agent's limit"},
		"a layer of negative size": {answer(200, `{"schemaVersion":2,"layers":[`+strings.Replace(digested, `:1}`, `:-1}`, 1)+`]}`), fault.User, v1alpha1.ReasonImageNotDisk, "sha256"},
		"redirects in a circle": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"?again", http.StatusTemporaryRedirect)
		}, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "10 redirects"},
		"a redirect to the host's own services": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/latest?signature=s3cret", http.StatusTemporaryRedirect)
		}, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "plain HTTP to 169.254.169.254 is not allowed"},
		"a token server that is the host itself": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://169.254.169.254/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "realm"},
	} {
		t.Run(name, func(t *testing.T) {
			h.onManifest(c.handler)
			err := h.pull()
			expect(t, err, c.class, c.reason, c.says)
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells too much: %.2000s", err)
			}
		})
	}
	h.manifests.Store(nil)
	h.onBlob(answer(404, ""))
	expect(t, h.pull(), fault.User, v1alpha1.ReasonImageNotFound, "push it")
	h.onBlob(answer(503, ""))
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "503")
}

func TestRegistryThatIsNotThere(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := ParseReference(host + "/a")
	must(err)

	_, err = New(Options{}).Resolve(t.Context(), ref, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "127.0.0.1 is an address of the node itself or of its link: list its host in agent.registries")
	_, err = New(Options{Registries: []Registry{{Host: host}}}).Resolve(t.Context(), ref, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "serves plain HTTP: list it in agent.insecureRegistries")
	server.Close()
	_, err = New(Options{PlainHTTP: []string{host}}).Resolve(t.Context(), ref, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "connection refused")
}

func TestRegistryWithAStrangersCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	ref, err := ParseReference(host + "/a")
	must(err)
	_, err = New(Options{Registries: []Registry{{Host: host}}}).Resolve(t.Context(), ref, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "certificate")
	_, err = New(Options{Registries: []Registry{{Host: host, CA: certificate(server)}}}).Resolve(t.Context(), ref, Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageNotFound, "404")
}

// TestTokens is the dance of docker.io, quay.io and ghcr.io: a token for anybody who asks, if the image is public.
func TestTokens(t *testing.T) {
	var s served
	s = serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				user, password, basic := r.BasicAuth()
				switch scope := r.FormValue("scope"); {
				case basic && (user != "robot" || password != "s3cret"):
					w.WriteHeader(http.StatusUnauthorized)
				case scope == "repository:public/disk:pull", scope == "repository:team/disk:pull" && basic:
					_ = json.NewEncoder(w).Encode(map[string]string{"token": scope})
				default:
					_ = json.NewEncoder(w).Encode(map[string]string{"token": "of no use"})
				}
				return
			}
			name := strings.Join(strings.Split(r.URL.Path, "/")[2:4], "/")
			if r.Method == http.MethodGet && r.Header.Get("Authorization") != "Bearer repository:"+name+":pull" {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s",scope="repository:%s:pull"`, s.host, name))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, Options{})
	public, private := s.push("public/disk", files("disk/d", "public")), s.push("team/disk", files("disk/d", "private"))
	var good, bad Keychain
	must(good.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret"}}}`, s.host)))
	must(bad.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret-stale"}}}`, s.host)))

	if got, err := s.disk(public, Keychain{}); got != "public" || err != nil {
		t.Errorf("public: %q, %v", got, err)
	}
	if got, err := s.disk(private, good); got != "private" || err != nil {
		t.Errorf("private: %q, %v", got, err)
	}
	_, err := s.disk(private, Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "name a Secret")
	_, err = s.disk(private, bad)
	expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "refuses the credentials")
	if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "robot") {
		t.Errorf("the error tells a credential: %v", err)
	}
}

// TestCredentialsStayWithTheRegistry: a redirect to a store of blobs must not carry them.
func TestCredentialsStayWithTheRegistry(t *testing.T) {
	var seen string
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Get("Authorization")
		_, _ = w.Write(files("disk/d", "disk").data)
	}))
	t.Cleanup(store.Close)
	// The same address by another name is another host.
	elsewhere := strings.Replace(store.URL, "127.0.0.1", "localhost", 1)
	s := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); r.Method == http.MethodGet && password != "s3cret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				http.Redirect(w, r, elsewhere+"/blob", http.StatusTemporaryRedirect)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, Options{PlainHTTP: []string{strings.TrimPrefix(elsewhere, "http://")}})
	ref := s.push("team/disk", files("disk/d", "disk"))
	var keys Keychain
	must(keys.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret"}}}`, s.host)))
	if got, err := s.disk(ref, keys); got != "disk" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if seen != "" {
		t.Error("the store of blobs was given the credentials")
	}
}

// FuzzLayer reads hostile archives: nothing panics, and no more than the limit comes out.
func FuzzLayer(f *testing.F) {
	f.Add(files("disk/d", "disk").data, true)
	f.Add(files("boot/vmlinuz", "K", "boot/.wh.initrd", "", ".wh..wh..opq", "").data, false)
	f.Add(sparseTar(1<<40), true)
	f.Add(sparseTar(1<<10), true)
	f.Fuzz(func(t *testing.T, b []byte, disk bool) {
		const limit = 1 << 16
		written := int64(0)
		s := &search{remaining: limit, wants: map[string]*want{diskDir: {path: diskDir, inDirectory: true}}, write: func(_ string, _ int64, r io.Reader) error {
			n, err := io.Copy(io.Discard, r)
			written += n
			return err
		}}
		if !disk {
			s.wants = map[string]*want{
				"boot/vmlinuz": {path: "boot/vmlinuz", file: File{Name: "kernel"}}, "boot/initrd": {path: "boot/initrd", file: File{Name: "initrd"}},
			}
		}
		if s.layer(bytes.NewReader(b)) == nil && !s.done() {
			_ = s.layer(bytes.NewReader(b))
		}
		if written > limit {
			t.Errorf("%d bytes came out", written)
		}
	})
}

// FuzzManifest holds that what is read is within the limits.
func FuzzManifest(f *testing.F) {
	d := digest.FromString("x")
	for _, b := range []string{
		`{"schemaVersion":2,"layers":[{"digest":"` + d.String() + `","size":1}]}`,
		`{"schemaVersion":2,"manifests":[{"digest":"` + d.String() + `","platform":{"os":"linux","architecture":"amd64"}}]}`,
		`{"schemaVersion":2,"manifests":[{"digest":"` + d.String() + `","artifactType":"application/vnd.diskimage.qcow2"},{"annotations":{"vnd.docker.reference.type":"x"}}]}`,
	} {
		f.Add([]byte(b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseManifest(b)
		if err != nil {
			return
		}
		if m.isIndex() {
			if chosen, err := m.choose("amd64"); err == nil && chosen.Validate() != nil {
				t.Errorf("chose %q", chosen)
			}
			return
		}
		if size, err := m.check(); err == nil && (size < 0 || len(m.Layers) == 0 || len(m.Layers) > maxLayers) {
			t.Errorf("%d layers of %d bytes", len(m.Layers), size)
		}
	})
}
