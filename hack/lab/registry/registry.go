// Package registry is the lab's OCI registry: plain HTTP, no accounts, contents
// in a directory that outlives its process. It never removes anything.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// BlobDir is the folder of a registry's directory that holds blobs as ALGORITHM/HEX.
const BlobDir = "blobs"

// Serve a registry on address until it fails.
func Serve(dir, address string) error {
	handler, err := newHandler(dir)
	if err != nil {
		return err
	}
	return http.ListenAndServe(address, handler)
}

// handler remembers manifests, which the library keeps in memory only.
type handler struct {
	dir  string
	next http.Handler
}

// manifest as it was put.
type manifest struct {
	Type string
	Body []byte
}

func newHandler(dir string) (http.Handler, error) {
	blobs := blobs(filepath.Join(dir, BlobDir))
	h := handler{
		dir:  filepath.Join(dir, "manifests"),
		next: registry.New(registry.WithBlobHandler(blobs), registry.Logger(log.New(io.Discard, "", 0))),
	}
	for _, d := range []string{string(blobs), h.dir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	return h, h.recall()
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
		h.next.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path := filepath.Join(h.dir, url.PathEscape(r.URL.Path))
	if raw, err := json.Marshal(manifest{r.Header.Get("Content-Type"), body}); err == nil {
		err = errors.Join(os.WriteFile(path+".part", raw, 0o644), os.Rename(path+".part", path))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInsufficientStorage)
			return
		}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	h.next.ServeHTTP(w, r)
}

// recall puts every remembered manifest again.
func (h handler) recall() error {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path, err := url.PathUnescape(e.Name())
		if err != nil || strings.HasSuffix(path, ".part") {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(h.dir, e.Name()))
		if err != nil {
			return err
		}
		var m manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("recalling %s: %w", path, err)
		}
		put := httptest.NewRequest(http.MethodPut, path, bytes.NewReader(m.Body))
		put.Header.Set("Content-Type", m.Type)
		h.next.ServeHTTP(httptest.NewRecorder(), put)
	}
	return nil
}

// blobs in a directory. Unlike the library's own it does not read a blob to tell its size.
type blobs string

func (b blobs) path(h v1.Hash) string { return filepath.Join(string(b), h.Algorithm, h.Hex) }

func (b blobs) Stat(_ context.Context, _ string, h v1.Hash) (int64, error) {
	info, err := os.Stat(b.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, registry.ErrNotFound
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (b blobs) Get(_ context.Context, _ string, h v1.Hash) (io.ReadCloser, error) {
	f, err := os.Open(b.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, registry.ErrNotFound
	}
	return f, err
}

// Put trusts the library to check the digest while it is read.
func (b blobs) Put(_ context.Context, _ string, h v1.Hash, in io.ReadCloser) error {
	out, err := os.CreateTemp(string(b), "upload-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(b.path(h)), 0o755); err != nil {
		return err
	}
	return os.Rename(out.Name(), b.path(h))
}
