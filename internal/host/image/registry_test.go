package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// served is a registry of its own for one test, and a client that may speak to it.
type served struct {
	t      testing.TB
	host   string
	client *Client
}

// serve runs a real registry behind what a test puts before it.
func serve(t testing.TB, before func(http.Handler) http.Handler, o Options) served {
	t.Helper()
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	if before != nil {
		handler = before(handler)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	o.PlainHTTP = append(o.PlainHTTP, host)
	o.ResumeDelay = cmp.Or(o.ResumeDelay, time.Nanosecond)
	return served{t, host, New(o)}
}

func (s served) put(method, path, mediaType string, body []byte) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://"+s.host+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	req.SetBasicAuth("writer", "writer")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		s.t.Fatalf("pushing %s: %s", path, resp.Status)
	}
}

// blob pushes a layer.
func (s served) blob(name string, l layer) ocispec.Descriptor {
	s.t.Helper()
	d := ocispec.Descriptor{MediaType: l.mediaType, Digest: digest.FromBytes(l.data), Size: int64(len(l.data)), Annotations: l.annotations}
	s.put(http.MethodPost, "/v2/"+name+"/blobs/uploads/?digest="+d.Digest.String(), "application/octet-stream", l.data)
	return d
}

// push pushes an image and returns its name.
func (s served) push(name string, layers ...layer) Reference {
	s.t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = s.blob(name, layer{mediaType: ocispec.MediaTypeImageConfig, data: []byte("{}")})
	for _, l := range layers {
		m.Layers = append(m.Layers, s.blob(name, l))
	}
	return s.manifest(name, "latest", ocispec.MediaTypeImageManifest, m)
}

func (r served) manifest(name, tag, mediaType string, m any) Reference {
	r.t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	r.put(http.MethodPut, "/v2/"+name+"/manifests/"+tag, mediaType, b)
	return r.ref(name)
}

func (s served) ref(name string) Reference {
	s.t.Helper()
	ref, err := ParseReference(s.host + "/" + name)
	if err != nil {
		s.t.Fatal(err)
	}
	return ref
}

// disk resolves an image and streams its disk.
func (s served) disk(ref Reference, keys Keychain) (string, error) {
	s.t.Helper()
	image, err := s.client.Resolve(s.t.Context(), ref, keys)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = image.Disk(s.t.Context(), func(string, int64) (io.Writer, error) { return &b, nil })
	return b.String(), err
}

func (s served) files(ref Reference, paths map[string]string) (map[string]string, error) {
	s.t.Helper()
	image, err := s.client.Resolve(s.t.Context(), ref, Keychain{})
	if err != nil {
		return nil, err
	}
	buffers := map[string]*bytes.Buffer{}
	wanted := map[string]File{}
	for path, name := range paths {
		wanted[path] = File{Name: name, MaxBytes: 1 << 20}
	}
	err = image.Files(s.t.Context(), wanted, func(name string, _ int64) (io.Writer, error) {
		buffers[name] = &bytes.Buffer{}
		return buffers[name], nil
	})
	got := map[string]string{}
	for name, b := range buffers {
		got[name] = b.String()
	}
	return got, err
}

// layer is a layer to be pushed.
type layer struct {
	mediaType   string
	data        []byte
	annotations map[string]string
}

// files makes a layer of a tar archive: names and contents by turns.
func files(namesAndContents ...string) layer {
	var entries []tar.Header
	var contents []string
	for i := 0; i < len(namesAndContents); i += 2 {
		entries = append(entries, tar.Header{Name: namesAndContents[i], Typeflag: tar.TypeReg, Size: int64(len(namesAndContents[i+1]))})
		contents = append(contents, namesAndContents[i+1])
	}
	return archive(entries, contents...)
}

func archive(entries []tar.Header, contents ...string) layer {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range entries {
		h.Mode = 0o644
		must(w.WriteHeader(&h))
		if i < len(contents) {
			_, err := io.WriteString(w, contents[i])
			must(err)
		}
	}
	must(w.Close())
	return layer{mediaType: ocispec.MediaTypeImageLayer, data: b.Bytes()}
}

func (l layer) gzip() layer {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(l.data)
	must(err)
	must(w.Close())
	l.data, l.mediaType = b.Bytes(), l.mediaType+"+gzip"
	return l
}

func (l layer) zstd() layer {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	must(err)
	_, err = w.Write(l.data)
	must(err)
	must(w.Close())
	l.data, l.mediaType = b.Bytes(), l.mediaType+"+zstd"
	return l
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// expect holds an error against its class, its reason and a part of its message.
func expect(t *testing.T, err error, class fault.Class, reason v1alpha1.Reason, says string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %s: …%s…", reason, says)
	}
	if fault.ClassOf(err) != class || fault.ReasonOf(err) != reason || !strings.Contains(err.Error(), says) {
		t.Errorf("class %d, %s: %v\nwant class %d, %s: …%s…", fault.ClassOf(err), fault.ReasonOf(err), err, class, reason, says)
	}
}
