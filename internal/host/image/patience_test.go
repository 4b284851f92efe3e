package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// cut serves a blob whose connection breaks after so many bytes each time.
type cut struct {
	blob   []byte
	after  int
	ranges bool   // whether it honours Range
	etag   string // that If-Range must have
	asked  []string
}

func (c *cut) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at := 0
	c.asked = append(c.asked, strings.TrimSpace(r.Header.Get("Range")+" "+r.Header.Get("If-Range")))
	if c.etag != "" {
		w.Header().Set("ETag", c.etag)
	}
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && c.ranges {
		at, _ = strconv.Atoi(strings.TrimSuffix(from, "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(c.blob)-1, len(c.blob)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(c.blob)-at))
	if at > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(c.blob[at:min(at+c.after, len(c.blob))])
	if at+c.after < len(c.blob) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// TestADownloadThatIsCutGoesOn: a disk is the largest thing that anybody pulls, and proxies end long answers.
func TestADownloadThatIsCutGoesOn(t *testing.T) {
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for name, c := range map[string]struct {
		cut   cut
		asked []string // for which ranges; nil fails
	}{
		"once":                        {cut{after: 700_000, ranges: true}, []string{"", "bytes=700000-"}},
		"again and again":             {cut{after: 150_000, ranges: true}, []string{"", "bytes=150000-", "bytes=300000-", "bytes=450000-", "bytes=600000-", "bytes=750000-", "bytes=900000-"}},
		"with a tag of its version":   {cut{after: 700_000, ranges: true, etag: `"v1"`}, []string{"", `bytes=700000- "v1"`}},
		"with a weak tag":             {cut{after: 700_000, ranges: true, etag: `W/"v1"`}, []string{"", "bytes=700000-"}},
		"each time after a few bytes": {cut{after: 1000, ranges: true}, nil},
		"without ranges":              {cut{after: 700_000}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t, Options{})
			ref := h.push("test/cut", layer{mediaType: "application/vnd.acme.disk", data: noise})
			c.cut.blob = noise
			h.onBlob(c.cut.ServeHTTP)
			got, err := h.disk(ref, Keychain{})
			if c.asked == nil {
				expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "unexpected EOF")
				if len(c.cut.asked) != maxInterruptions {
					t.Errorf("asked %d times", len(c.cut.asked))
				}
				return
			}
			if err != nil || got != string(noise) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if diff := cmp.Diff(c.asked, c.cut.asked); diff != "" {
				t.Errorf("asked for, -want +got:\n%s", diff)
			}
		})
	}
}

// TestAnotherRangeThanAskedFor must not be joined to what is there.
func TestAnotherRangeThanAskedFor(t *testing.T) {
	h := newHostile(t, Options{})
	h.onBlob(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(h.layer.data)-1, len(h.layer.data)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(h.layer.data[:10])
	})
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "it sends \"bytes 7-")
}

// TestADripIsNoDownload: a byte now and then never stalls, and would hold memory and a place for ever.
func TestADripIsNoDownload(t *testing.T) {
	h := newHostile(t, Options{MinThroughput: 1 << 20, ThroughputWindow: 200 * time.Millisecond})
	h.onBlob(func(w http.ResponseWriter, r *http.Request) {
		for _, b := range h.layer.data {
			_, _ = w.Write([]byte{b})
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "which is less than 1048576 a second")
}

// TestTheReadersTimeDoesNotCount: a slow disk of ours is not the registry's fault.
func TestTheReadersTimeDoesNotCount(t *testing.T) {
	s := serve(t, nil, Options{MinThroughput: 2 << 20, ThroughputWindow: time.Second})
	image, err := s.client.Resolve(t.Context(), s.push("test/disk", files("disk/d", strings.Repeat(content, 2))), Keychain{})
	must(err)
	must(image.Disk(t.Context(), func(string, int64) (io.Writer, error) {
		return writerFunc(func(b []byte) (int, error) {
			time.Sleep(150 * time.Millisecond) // the slowness is the input, not a wait
			return len(b), nil
		}), nil
	}))
}

// TestOneLineOfAccept: some registries, and proxies before them, read the first alone.
func TestOneLineOfAccept(t *testing.T) {
	h := newHostile(t, Options{})
	var lines []string
	h.onManifest(func(w http.ResponseWriter, r *http.Request) {
		lines = r.Header.Values("Accept")
		w.WriteHeader(http.StatusNotFound)
	})
	_ = h.pull()
	if len(lines) != 1 || strings.Count(lines[0], ", ") != len(acceptManifests)-1 || !strings.Contains(lines[0], "image.index") {
		t.Errorf("%q", lines)
	}
}

// TestTheRegistrySaysWhy: its own words stand in the message, and the advice fits them.
func TestTheRegistrySaysWhy(t *testing.T) {
	h := newHostile(t, Options{})
	long := strings.Repeat("very ", 1000) + "long"
	for name, c := range map[string]struct {
		status     int
		code, text string
		blob       bool
		class      fault.Class
		reason     v1alpha1.Reason
		says       []string
	}{
		"a limit of pulls": {
			429, "TOOMANYREQUESTS", "pull rate limit reached: sign in for more", false, fault.Transient, v1alpha1.ReasonRegistryUnreachable,
			[]string{"429 Too Many Requests: TOOMANYREQUESTS: pull rate limit reached: sign in for more"},
		},
		"taken down":          {451, "DENIED", "this image was taken down", false, fault.User, v1alpha1.ReasonImageUnauthorized, []string{"use another image", "DENIED: this image was taken down"}},
		"over its quota":      {403, "DENIED", "project is over quota", false, fault.User, v1alpha1.ReasonImageUnauthorized, []string{"imagePullSecrets", "DENIED: project is over quota"}},
		"unknown":             {404, "MANIFEST_UNKNOWN", "manifest unknown", false, fault.User, v1alpha1.ReasonImageNotFound, []string{"correct the name, or push it", "MANIFEST_UNKNOWN: manifest unknown"}},
		"gone":                {410, "GONE", "it was here", false, fault.User, v1alpha1.ReasonImageNotFound, []string{"push it", "it was here"}},
		"a malformed name":    {400, "NAME_INVALID", "invalid repository name", false, fault.User, v1alpha1.ReasonImageInvalid, []string{"correct it", "invalid repository name"}},
		"a malformed request": {400, "UNSUPPORTED", "no", false, fault.User, v1alpha1.ReasonImageInvalid, []string{"is an OCI registry", "UNSUPPORTED: no"}},
		"no such method":      {405, "UNSUPPORTED", "read only", false, fault.Transient, v1alpha1.ReasonRegistryUnreachable, []string{"405 Method Not Allowed: UNSUPPORTED: read only"}},
		"not acceptable":      {406, "", "", false, fault.Transient, v1alpha1.ReasonRegistryUnreachable, []string{"406 Not Acceptable"}},
		"a range it has not":  {416, "", "", true, fault.Transient, v1alpha1.ReasonRegistryUnreachable, []string{"416 "}},
		"a layer unknown":     {404, "BLOB_UNKNOWN", "blob unknown to registry", true, fault.User, v1alpha1.ReasonImageNotFound, []string{"has its manifest, but not its layer sha256:", "push it again", "blob unknown"}},
		"control characters":  {500, "E\x1b[2J", "a\nb\x00c\u202ed", false, fault.Transient, v1alpha1.ReasonRegistryUnreachable, []string{"E [2J: a b c d"}},
		"many words":          {500, "X", long, false, fault.Transient, v1alpha1.ReasonRegistryUnreachable, []string{"X: very very", "…"}},
	} {
		t.Run(name, func(t *testing.T) {
			answer := func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				if c.code != "" {
					_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": c.code, "message": c.text}}})
				}
			}
			h.manifests.Store(nil)
			h.blobs.Store(nil)
			if c.blob {
				h.onBlob(answer)
			} else {
				h.onManifest(answer)
			}
			err := h.pull()
			for _, says := range c.says {
				expect(t, err, c.class, c.reason, says)
			}
			if named := strings.Contains(err.Error(), "correct the name"); named && c.status != 404 && c.status != 410 || len(err.Error()) > 600 {
				t.Errorf("it says %v", err)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	h := newHostile(t, Options{})
	for value, want := range map[string]time.Duration{
		"600": 600 * time.Second, "": 0, "soon": 0, "-5": 0, "99999999": maxRetryAfter, "99999999999999999999": 0,
		"Thu, 01 Jan 1970 00:00:00 GMT": 0,
	} {
		for _, status := range []int{429, 503} {
			h.onManifest(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", value)
				w.WriteHeader(status)
			})
			if err := h.pull(); RetryAfter(err) != want || fault.ReasonOf(err) != v1alpha1.ReasonRegistryUnreachable {
				t.Errorf("%d, %q: %s: %v", status, value, RetryAfter(err), err)
			}
		}
	}
	in := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if got := parseRetryAfter("Thu, 01 Jan 2026 00:10:00 GMT", in); got != 10*time.Minute {
		t.Errorf("by a date: %s", got)
	}
	// Within a download it is the end of it.
	asked := atomic.Int32{}
	h.manifests.Store(nil)
	h.onBlob(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) > 1 {
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		_, _ = w.Write(h.layer.data[:10])
	})
	if err := h.pull(); RetryAfter(err) != time.Minute || asked.Load() != 2 {
		t.Errorf("asked %d times: %v", asked.Load(), err)
	}
}

func TestChallenges(t *testing.T) {
	const bearer, basic = `Bearer realm="https://auth.example.com/token?a=b,c",service="s, \"t\""`, `Basic realm="registry"`
	for name, c := range map[string]struct {
		values  []string
		chosen  string
		schemes []string
	}{
		"one":                      {[]string{basic}, basic, nil},
		"in two lines":             {[]string{"Negotiate", basic}, basic, nil},
		"in one line":              {[]string{"Negotiate, " + basic}, basic, nil},
		"with a token":             {[]string{"Negotiate abc==, " + basic + ", NTLM"}, basic, nil},
		"a token's first":          {[]string{basic + ", " + bearer}, bearer, nil},
		"with spaces around =":     {[]string{`Digest realm = "x", nonce="y", ` + basic}, basic, nil},
		"in lower case":            {[]string{strings.ToLower(basic)}, strings.ToLower(basic), nil},
		"none that we speak":       {[]string{"Negotiate", `NTLM, Digest realm="a, Basic realm=b"`}, "", []string{"Negotiate", "NTLM", "Digest"}},
		"nothing":                  {nil, "", nil},
		"commas":                   {[]string{" , ,, " + basic + " ,"}, basic, nil},
		"a parameter of no scheme": {[]string{`realm="x"`, basic}, basic, nil},
	} {
		t.Run(name, func(t *testing.T) {
			chosen, schemes := chooseChallenge(c.values)
			if chosen != c.chosen || !slices.Equal(schemes, c.schemes) {
				t.Errorf("%q, %q; want %q, %q", chosen, schemes, c.chosen, c.schemes)
			}
		})
	}
}

// TestTheSecretIsSentWhicheverPlaceItsChallengeHas: registries behind Kerberos offer Basic as well.
func TestTheSecretIsSentWhicheverPlaceItsChallengeHas(t *testing.T) {
	var challenges []string
	s := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, password, _ := r.BasicAuth(); r.Method == http.MethodGet && password != "s3cret" {
				w.Header()["Www-Authenticate"] = challenges
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, Options{})
	ref := s.push("team/disk", files("disk/d", "disk"))
	var keys Keychain
	must(keys.Add(fmt.Appendf(nil, `{"auths":{%q:{"username":"robot","password":"s3cret"}}}`, s.host)))
	for _, challenges = range [][]string{{"Negotiate", `Basic realm="registry"`}, {`Negotiate, Basic realm="registry"`}} {
		if got, err := s.disk(ref, keys); got != "disk" || err != nil {
			t.Errorf("%q: %q, %v", challenges, got, err)
		}
	}
	challenges = []string{"Negotiate"}
	_, err := s.disk(ref, keys)
	expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "wants credentials by Negotiate alone")
}

// TestATokenServerThatFailsIsNamed: it is another server than the registry, and somebody else's.
func TestATokenServerThatFailsIsNamed(t *testing.T) {
	var token http.HandlerFunc
	var s served
	s = serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				token(w, r)
			case r.Method == http.MethodGet:
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="s"`, s.host))
				w.WriteHeader(http.StatusUnauthorized)
			default:
				next.ServeHTTP(w, r)
			}
		})
	}, Options{})
	ref := s.push("public/disk", files("disk/d", "disk"))
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "30")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, c := range map[string]struct {
		token  http.HandlerFunc
		class  fault.Class
		reason v1alpha1.Reason
		says   string
	}{
		"down":       {answer(500, `{"errors":[{"code":"UNKNOWN","message":"no database"}]}`), fault.Transient, v1alpha1.ReasonRegistryUnreachable, ": 500 Internal Server Error: UNKNOWN: no database"},
		"busy":       {answer(429, ""), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "retrying after 30s, as it says: token server"},
		"a web page": {answer(200, "<html>"), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "its answer holds no token"},
		"no token":   {answer(200, "{}"), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "its answer holds no token"},
		"refused":    {answer(403, ""), fault.User, v1alpha1.ReasonImageUnauthorized, "403 Forbidden"},
		"not there":  {answer(404, ""), fault.Transient, v1alpha1.ReasonRegistryUnreachable, "404 Not Found"},
		"gone":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			token = c.token
			_, err := s.disk(ref, Keychain{})
			expect(t, err, c.class, c.reason, c.says)
			expect(t, err, c.class, c.reason, "token server "+s.host+": ")
		})
	}
}

// TestAStoreOfBlobsThatRefusesIsNamed: its answer says nothing about the Secret.
func TestAStoreOfBlobsThatRefusesIsNamed(t *testing.T) {
	status := http.StatusForbidden
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
	t.Cleanup(store.Close)
	host := strings.TrimPrefix(store.URL, "http://")
	h := newHostile(t, Options{PlainHTTP: []string{host}})
	h.onBlob(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, store.URL+"/blob?signature=s3cret", http.StatusTemporaryRedirect)
	})
	for _, status = range []int{401, 403, 404, 500} {
		err := h.pull()
		expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, fmt.Sprintf("%s, where it redirects to: %d ", host, status))
		if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("it tells the signature: %v", err)
		}
	}
	store.Close()
	expect(t, h.pull(), fault.Transient, v1alpha1.ReasonRegistryUnreachable, host+", where it redirects to: ")
}

// FuzzChallenges: what a registry says never ends the agent.
func FuzzChallenges(f *testing.F) {
	f.Add(`Negotiate, Basic realm="a, \"b"`)
	f.Add(`Bearer realm="https://x/token",scope="a b", Digest x = y`)
	f.Fuzz(func(t *testing.T, value string) {
		chosen, schemes := chooseChallenge([]string{value})
		if chosen != "" && len(schemes) > 0 || len(chosen) > len(value) {
			t.Errorf("%q, %q", chosen, schemes)
		}
	})
}

// FuzzWords: a refusal's words are short and printable.
func FuzzWords(f *testing.F) {
	f.Add([]byte(`{"errors":[{"code":"DENIED","message":"no\u0007"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if text := readWords(bytes.NewReader(body)).text; len(text) > maxWords+len("…") || strings.ContainsAny(text, "\n\r\x1b\x00") {
			t.Errorf("%q", text)
		}
	})
}
