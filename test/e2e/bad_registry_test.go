package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/test/env"
)

// hostile is a registry that misbehaves, at the address to which the lab's agents speak plain HTTP.
type hostile struct {
	mu     sync.Mutex
	served map[string][]byte // what has been put, by path
	mended map[string]bool   // the repositories that misbehave no more
}

// password opens the repositories of the registry that are private.
const password = "s3cret"

var misbehaving = &hostile{served: map[string][]byte{}, mended: map[string]bool{}}

// listen serves the registry until the test and its subtests are over.
func (h *hostile) listen(t testing.TB) {
	t.Helper()
	listener, err := net.Listen("tcp", env.Need(t, "LAB_TEST_REGISTRY", "a lab; make lab-up, then eval \"$(make -s lab-env)\""))
	if err != nil {
		t.Fatalf("serving a registry to the lab: %v", err)
	}
	server := &http.Server{Handler: h, ReadHeaderTimeout: patience}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// put pushes an image that holds one file, which should be a disk, as latest.
func (h *hostile) put(repository, disk string) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	_ = w.WriteHeader(&tar.Header{Name: "disk/disk.img", Mode: 0o444, Size: int64(len(disk))})
	_, _ = w.Write([]byte(disk))
	_ = w.Close()
	config := []byte("{}")
	describe := func(kind string, b []byte) map[string]any {
		return map[string]any{"mediaType": "application/vnd.oci.image." + kind, "digest": digest(b), "size": len(b)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("config.v1+json", config), "layers": []any{describe("layer.v1.tar", layer.Bytes())},
	})
	if err != nil {
		panic(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.served["/v2/"+repository+"/manifests/latest"] = manifest
	h.served["/v2/"+repository+"/manifests/"+digest(manifest)] = manifest
	h.served["/v2/"+repository+"/blobs/"+digest(layer.Bytes())] = layer.Bytes()
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// mend has a repository behave from now on.
func (h *hostile) mend(repository string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mended[repository] = true
}

// ServeHTTP misbehaves as the last word of the repository's name says.
func (h *hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	repository, _, isBlob := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	repository, _, _ = strings.Cut(repository, "/manifests/")
	h.mu.Lock()
	body, found := h.served[r.URL.Path]
	mended := h.mended[repository]
	h.mu.Unlock()
	if _, given, _ := r.BasicAuth(); strings.Contains(r.URL.Path, "/private") && given != password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !found {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if !isBlob {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	switch {
	case !mended && strings.HasSuffix(repository, "/cut"):
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:rand.IntN(len(body))])
		panic(http.ErrAbortHandler)
	case isBlob && !mended && strings.HasSuffix(repository, "/corrupt"):
		body = bytes.Clone(body)
		body[len(body)/2] ^= 1
	case isBlob && !mended && strings.HasSuffix(repository, "/stall"):
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return
	}
	_, _ = w.Write(body)
}

// newDisk is a raw disk of 1 MiB that no node has seen.
func newDisk(l *lab) string {
	return (l.Name() + l.ns + strings.Repeat("\x00", 1<<20))[:1<<20]
}
