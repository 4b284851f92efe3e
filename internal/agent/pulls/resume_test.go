package pulls

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/test/env"
)

// halfway serves a file, of which who asks for all gets half, and then nothing more.
type halfway struct {
	content []byte
	mu      sync.Mutex
	asked   []string
}

func (h *halfway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	asked := r.Header.Get("Range")
	h.mu.Lock()
	h.asked = append(h.asked, asked)
	h.mu.Unlock()
	at, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(asked, "bytes="), "-"))
	w.Header().Set("Content-Length", strconv.Itoa(len(h.content)-at))
	if at > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(h.content)-1, len(h.content)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(h.content[at:])
		return
	}
	_, _ = w.Write(h.content[:len(h.content)/2])
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func TestAPullOutlivesTheAgentButNotTheVM(t *testing.T) {
	h := &halfway{content: make([]byte, 8*mib)}
	_, _ = rand.Read(h.content)
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	w := newWhole(t, Limits{PerNode: 1, PerNamespace: 1})
	o := w.Puller.Options
	client := image.New(image.Options{PlainHTTP: []string{strings.TrimPrefix(server.URL, "http://")}})
	o.Resolve = func(ctx context.Context, ref image.Reference, keys image.Keychain) (Resolved, error) {
		found, err := client.Resolve(ctx, ref, keys)
		if err != nil {
			return Resolved{}, err
		}
		return Resolved{Digest: func() string { return found.Digest }, Fingerprint: found.Fingerprint, Layers: found}, nil
	}
	disk := machine.Image{For: "root", Reference: fmt.Sprintf("%s/disk.img#sha256=%x", server.URL, sha256.Sum256(h.content))}
	agent := func(ctx context.Context) *Puller {
		w.Puller = New(ctx, o)
		return w.Puller
	}
	half := func() {
		t.Helper()
		env.Eventually(t, "half of it to have come", func() bool {
			return strings.HasPrefix(w.state(t, web, disk, none).Progress, "4 MiB")
		})
	}

	agent(t.Context()).Start(web, "default", disk, none)
	half()
	w.Retain(web, nil)
	env.Eventually(t, "it to be gone with the VM", func() bool { return len(w.entries(t)) == 0 })

	ctx, stop := context.WithCancel(t.Context())
	agent(ctx).Start(web, "default", disk, none)
	half()
	stop()
	<-w.woken
	if kept := w.entries(t); len(kept) != 1 {
		t.Fatalf("kept %q", kept)
	}
	agent(t.Context()).Start(web, "default", disk, none)
	<-w.woken
	if got := w.state(t, web, disk, none); got.State != plan.ImageReady {
		t.Errorf("got %+v", got)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	const isThere = "bytes=0-0" // which resolves the URL
	if want := []string{isThere, "", isThere, "", isThere, "", fmt.Sprintf("bytes=%d-", 4*mib)}; !slices.Equal(h.asked, want) {
		t.Errorf("asked for %q, want %q", h.asked, want)
	}
	if left := w.entries(t); slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, ".") }) {
		t.Errorf("left %q", left)
	}
}
