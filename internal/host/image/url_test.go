package image

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// certificate is a server's own, in PEM.
func certificate(server *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
}

// web is a web server, with TLS, and a client that trusts it.
func web(t *testing.T, handler http.HandlerFunc, o Options) (s served, url string) {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	o.Registries = append(o.Registries, Registry{Host: host, CA: certificate(server)})
	o.ResumeDelay = time.Nanosecond
	return served{t, host, New(o)}, server.URL
}

func (s served) url(name string) (string, error) {
	s.t.Helper()
	ref, err := ParseReference(name)
	if err != nil {
		return "", err
	}
	return s.disk(ref, Keychain{})
}

// packed is "a disk" as xz and bzip2 pack it.
func packed(t testing.TB, encoded string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const (
	xzDisk      = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAFYSBkaXNrAAAATnUM/f5sMeAAAR4GwS+kHR+2830BAAAAAARZWg=="
	xzLargeDisk = "/Td6WFoAAATm1rRGAgAhARwAAAAQz1jMAQAFYSBkaXNrAAAATnUM/f5sMeAAAR4GwS+kHR+2830BAAAAAARZWg==" // dict=64MiB
	xzHugeDisk  = "/Td6WFoAAATm1rRGAgAhASUAAAA7eHtBAQAFYSBkaXNrAAAATnUM/f5sMeAAAR4GwS+kHR+2830BAAAAAARZWg==" // dict=1536MiB
	bzip2Disk   = "QlpoOTFBWSZTWeSSpVMAAACRgEAAJCgIACAAIYAMAVc24u5IpwoSHJJUqmA="
)

// TestURL: a file is a disk, packed in each way, and its digest is that of what the server has.
func TestURL(t *testing.T) {
	files := map[string][]byte{
		"/disk.raw": []byte("a disk"), "/disk.raw.xz": packed(t, xzDisk), "/large.xz": packed(t, xzLargeDisk), "/disk.bz2": packed(t, bzip2Disk),
		"/disk.gz": layer{data: []byte("a disk")}.gzip().data, "/disk.zst": layer{data: []byte("a disk")}.zstd().data,
		"/two.xz": append(packed(t, xzDisk), packed(t, xzDisk)...),
	}
	s, url := web(t, func(w http.ResponseWriter, r *http.Request) {
		if to := r.FormValue("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		http.ServeContent(w, r, "", time.Unix(1e9, 0), bytes.NewReader(files[r.URL.Path]))
	}, Options{})
	for path, content := range files {
		want := strings.Repeat("a disk", 1+strings.Count(path, "two"))
		for name, tt := range map[string]struct{ suffix, digest string }{
			path:              {"", digest.SHA256.FromBytes(content).String()},
			path + " sha256":  {"#sha256=" + digest.SHA256.FromBytes(content).Encoded(), digest.SHA256.FromBytes(content).String()},
			path + " sha512":  {"#sha512=" + digest.SHA512.FromBytes(content).Encoded(), digest.SHA512.FromBytes(content).String()},
			path + " led to":  {"?to=" + path, digest.SHA256.FromBytes(content).String()},
			path + " queried": {"?a=b", digest.SHA256.FromBytes(content).String()},
		} {
			ref, err := ParseReference(url + path + tt.suffix)
			must(err)
			image, err := s.client.Resolve(t.Context(), ref, Keychain{})
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			var got bytes.Buffer
			err = image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return &got, nil })
			if err != nil || got.String() != want || image.Digest != tt.digest || image.Fingerprint != Anonymous {
				t.Errorf("%s: %q as %s, %v; want %s", name, got.String(), image.Digest, err, tt.digest)
			}
		}
	}
	image, err := s.client.Resolve(t.Context(), must1(ParseReference(url+"/disk.raw")).At(digest.FromString("another disk").String()), Keychain{})
	must(err)
	err = image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return io.Discard, nil })
	expect(t, err, fault.User, v1alpha1.ReasonImageDigestMismatch, "what it serves is not sha256:")
	err = image.Files(t.Context(), map[string]File{"/boot/vmlinuz": {Name: "kernel"}}, nil)
	expect(t, err, fault.User, v1alpha1.ReasonImageNotDisk, "a single file")
}

func must1[T any](v T, err error) T {
	must(err)
	return v
}

// TestBadURLs are each refused, and no answer's body is told to anybody.
func TestBadURLs(t *testing.T) {
	const secret = "what only the node may read"
	const body = `{"errors":[{"code":"DENIED","message":"` + secret + `"}]}` // as a registry's, whose words are told
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	t.Cleanup(inside.Close)
	insideTLS := httptest.NewTLSServer(inside.Config.Handler)
	t.Cleanup(insideTLS.Close)
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := z.Write(make([]byte, 2<<20))
	must(err)
	must(z.Close())
	s, url := web(t, func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusOK
		switch what := strings.TrimPrefix(r.URL.Path, "/"); what {
		case "endless":
			w.(http.Flusher).Flush()
			for range 1 << 20 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		case "short":
			w.Header().Set("Content-Length", "100")
		case "huge":
			w.Header().Set("Content-Length", "9999999999")
		case "empty":
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(nil))
			return
		case "bomb":
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(bomb.Bytes()))
			return
		case "dictionary":
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(packed(t, xzHugeDisk)))
			return
		case "growing":
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(strings.Repeat("a disk", 1+len(r.Header.Get("Range")))))
			return
		case "around":
			http.Redirect(w, r, "/around", http.StatusFound)
			return
		case "to":
			http.Redirect(w, r, r.URL.RawQuery, http.StatusFound)
			return
		default:
			_, err := fmt.Sscan(what, &status)
			must(err)
			w.WriteHeader(status)
		}
		_, _ = io.WriteString(w, body)
	}, Options{MaxBytes: 1 << 20})
	port := inside.URL[strings.LastIndex(inside.URL, ":"):]
	tls := insideTLS.URL[strings.LastIndex(insideTLS.URL, ":"):]
	sum := strings.Repeat("0", 64)
	for name, tt := range map[string]struct {
		url    string
		class  fault.Class
		reason v1alpha1.Reason
		says   string
	}{
		"a password":               {"https://user:s3cret@example.com/a", fault.User, v1alpha1.ReasonImageInvalid, "leave the credentials out"},
		"a password that is none":  {"https://user:s3cret@[example.com/a", fault.User, v1alpha1.ReasonImageInvalid, "no URL"},
		"a file":                   {"file:///etc/shadow", fault.User, v1alpha1.ReasonImageInvalid, "write https://"},
		"a file by FTP":            {"ftp://example.com/a", fault.User, v1alpha1.ReasonImageInvalid, "write https://"},
		"no host":                  {"https:///a", fault.User, v1alpha1.ReasonImageInvalid, "write https://"},
		"an odd checksum":          {"https://example.com/a#md5=" + sum, fault.User, v1alpha1.ReasonImageInvalid, "#sha256="},
		"half a checksum":          {"https://example.com/a#sha256=abc", fault.User, v1alpha1.ReasonImageInvalid, "#sha256="},
		"a checksum in upper case": {"https://example.com/a#sha256=" + strings.Repeat("A", 64), fault.User, v1alpha1.ReasonImageInvalid, "in lower case"},
		"an empty checksum":        {"https://example.com/a#", fault.User, v1alpha1.ReasonImageInvalid, "#sha256="},
		"plain HTTP":               {"http://example.com/a", fault.User, v1alpha1.ReasonImageInvalid, "plain HTTP to example.com is not allowed"},
		"the node itself":          {"https://127.0.0.1" + tls + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "127.0.0.1 is an address of the node itself"},
		"the node itself by IPv6":  {"https://[::ffff:127.0.0.1]" + tls + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "127.0.0.1 is an address of the node itself"},
		"the node itself by name":  {"https://localhost" + tls + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "is an address of the node itself"},
		"the node itself by zero":  {"https://0.0.0.0" + tls + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "0.0.0.0 is an address of the node itself"},
		"a cloud's metadata":       {"https://169.254.169.254/latest/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "169.254.169.254 is an address of the node itself or of its link"},
		"led to the node itself":   {url + "/to?https://127.0.0.1" + tls + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "127.0.0.1 is an address of the node itself"},
		"led to plain HTTP":        {url + "/to?http://127.0.0.1" + port + "/", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "plain HTTP to 127.0.0.1" + port + " is not allowed"},
		"led to a file":            {url + "/to?file:///etc/shadow", fault.Transient, v1alpha1.ReasonRegistryUnreachable, ""},
		"led around":               {url + "/around", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "stopped after 10 redirects"},
		"no such file":             {url + "/404", fault.User, v1alpha1.ReasonImageNotFound, "correct the URL (404 Not Found)"},
		"a file that was there":    {url + "/410", fault.User, v1alpha1.ReasonImageNotFound, "correct the URL"},
		"no access":                {url + "/403", fault.User, v1alpha1.ReasonImageUnauthorized, "name a Secret for 127.0.0.1"},
		"a server that is broken":  {url + "/500", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "500 Internal Server Error"},
		"an endless body":          {url + "/endless", fault.User, v1alpha1.ReasonImageNotDisk, "no Content-Length"},
		"less than it said":        {url + "/short", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "the connection was cut"},
		"more than is allowed":     {url + "/huge", fault.User, v1alpha1.ReasonImageTooLarge, "it has 9999999999 bytes, the most is 1048576"},
		"an empty file":            {url + "/empty", fault.User, v1alpha1.ReasonImageNotDisk, "it is empty"},
		"a bomb":                   {url + "/bomb", fault.User, v1alpha1.ReasonImageTooLarge, "unpacks to more than 1048576 bytes"},
		"a large dictionary":       {url + "/dictionary", fault.User, v1alpha1.ReasonImageNotDisk, "cannot be unpacked: its xz dictionary is larger than 128 MiB"},
		"another length later":     {url + "/growing", fault.Transient, v1alpha1.ReasonRegistryUnreachable, "another length"},
		"another checksum":         {url + "/200#sha256=" + sum, fault.User, v1alpha1.ReasonImageDigestMismatch, "what it serves is not sha256:" + sum},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.url(tt.url)
			expect(t, err, tt.class, tt.reason, tt.says)
			if told := err.Error(); strings.Contains(told, secret) || strings.Contains(told, "s3cret") {
				t.Errorf("it tells: %s", told)
			}
		})
	}
}

// TestURLThatIsCut goes on only with what is the same file for sure.
func TestURLThatIsCut(t *testing.T) {
	disk := strings.Repeat("a disk of some length ", 50_000)
	sum := "#sha256=" + digest.FromString(disk).Encoded()
	var c *cut
	tag := func(string) string { return `"v1"` }
	s, url := web(t, func(w http.ResponseWriter, r *http.Request) {
		c.etag = tag(r.Header.Get("Range"))
		c.ServeHTTP(w, r)
	}, Options{})
	none := func(string) string { return "" }
	moved := func(asked string) string { return fmt.Sprintf("%q", asked) }
	for name, tt := range map[string]struct {
		suffix string
		ranges bool
		tag    func(asked string) string
		asked  []string
	}{
		"with a tag":                       {"", true, tag, []string{"bytes=0-0", "", `bytes=700000- "v1"`}},
		"with a checksum":                  {sum, true, none, []string{"bytes=0-0", "", "bytes=700000-"}},
		"with a checksum, and another tag": {sum, true, moved, []string{"bytes=0-0", "", `bytes=700000- ""`}},
		"with neither":                     {"", true, none, nil},
		"with another tag":                 {"", true, moved, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c, tag = &cut{blob: []byte(disk), after: 700_000, ranges: tt.ranges}, tt.tag
			got, err := s.url(url + "/disk" + tt.suffix)
			if tt.asked == nil {
				expect(t, err, fault.Transient, v1alpha1.ReasonRegistryUnreachable, "the connection was cut")
				return
			}
			if diff := cmp.Diff(tt.asked, c.asked); err != nil || got != disk || diff != "" {
				t.Errorf("%d bytes, %v; asked for, -want +got:\n%s", len(got), err, diff)
			}
		})
	}
}

// TestURLWithCredentials: they are those of a pull secret for the host, and prove who may have the file from the node.
func TestURLWithCredentials(t *testing.T) {
	s, url := web(t, func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("a disk"))
	}, Options{})
	ref := must1(ParseReference(url + "/team/disk.raw"))
	for password, says := range map[string]string{"s3cret": "", "stale": "refuses the credentials", "": "name a Secret for 127.0.0.1"} {
		var keys Keychain
		if password != "" {
			must(keys.Add(fmt.Appendf(nil, `{"auths":{"%s/team":{"username":"robot","password":%q}}}`, s.host, password)))
		}
		got, err := s.disk(ref, keys)
		if says != "" {
			expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, says)
		} else if got != "a disk" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
}
