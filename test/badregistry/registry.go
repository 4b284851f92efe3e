package badregistry

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Password opens the repositories of a registry that are private.
const Password = "s3cret"

// requestTimeout is how long a client may take over its request.
const requestTimeout = time.Minute

// Registry misbehaves as the last word of a repository's name says, until that is repaired:
//
//	cut      each answer is cut off at some byte
//	corrupt  a byte of each blob is another
//	stall    each answer stops in its midst, and goes on once it is repaired
//	drip     each blob comes a byte a second after its first half, and goes on once it is repaired
//
// A repository with the word private in its name wants Password.
type Registry struct {
	mu       sync.Mutex
	served   map[string][]byte        // what has been put, by path
	refused  map[string]string        // the address of a client that has no answer, by repository
	repaired map[string]chan struct{} // by repository, closed once it misbehaves no more
	asked    map[string]int           // how often blobs were asked for, by repository
	sending  map[string]int           // how many answers with blobs are under way, by repository
	sent     map[string]int           // the most bytes that an answer with a blob had, by repository
}

// New makes a registry without images.
func New() *Registry {
	return &Registry{
		served: map[string][]byte{}, refused: map[string]string{}, repaired: map[string]chan struct{}{},
		asked: map[string]int{}, sending: map[string]int{}, sent: map[string]int{},
	}
}

// Serve serves the registry, and returns how to end that.
func (r *Registry) Serve(at net.Listener) (end func()) {
	server := &http.Server{Handler: r, ReadHeaderTimeout: requestTimeout}
	go func() { _ = server.Serve(at) }()
	return func() { _ = server.Close() }
}

// Push pushes an image as latest.
func (r *Registry) Push(repository string, i Image) {
	config := []byte("{}")
	describe := func(mediaType string, b []byte) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": describe("application/vnd.oci.image.config.v1+json", config), "layers": []any{describe(i.mediaType, i.layer)},
	})
	if err != nil {
		panic(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served["/v2/"+repository+"/manifests/latest"] = manifest
	r.served["/v2/"+repository+"/manifests/"+digest(manifest)] = manifest
	r.served["/v2/"+repository+"/blobs/"+digest(i.layer)] = i.layer
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// Refuse has a repository answer a client at this IP address that the service is unavailable, until it is repaired.
func (r *Registry) Refuse(repository, client string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused[repository] = client
}

// Repair has a repository behave from now on.
func (r *Registry) Repair(repository string) {
	close(r.repair(repository))
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.refused, repository)
}

// repair is what is closed once a repository is repaired.
func (r *Registry) repair(repository string) chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.repaired[repository] == nil {
		r.repaired[repository] = make(chan struct{})
	}
	return r.repaired[repository]
}

// Asked is how often the blobs of a repository were asked for.
func (r *Registry) Asked(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[repository]
}

// Sent is the most bytes that went out in one answer with a blob of a repository.
func (r *Registry) Sent(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sent[repository]
}

// Sending is how many answers with blobs are under way, of all repositories whose names begin so.
func (r *Registry) Sending(prefix string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for repository, answers := range r.sending {
		if strings.HasPrefix(repository, prefix) {
			n += answers
		}
	}
	return n
}

// ServeHTTP answers as the distribution specification has it, or as the repository's name says.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	repository, _, isBlob := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/blobs/")
	repository, _, _ = strings.Cut(repository, "/manifests/")
	if _, given, _ := req.BasicAuth(); strings.Contains(req.URL.Path, "/private") && given != Password {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	r.mu.Lock()
	body, found := r.served[req.URL.Path]
	refused := r.refused[repository]
	r.mu.Unlock()
	if client, _, _ := net.SplitHostPort(req.RemoteAddr); refused != "" && client == refused {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if !found {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	a := answer{ResponseWriter: w, body: body, gone: req.Context().Done(), repaired: r.repair(repository)}
	if isBlob {
		r.begin(repository)
		defer func() { r.end(repository, a.sent) }()
	} else {
		w.Header().Set("Content-Type", manifestType)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	a.misbehave(repository[strings.LastIndexByte(repository, '/')+1:], isBlob)
}

func (r *Registry) begin(repository string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[repository]++
	r.sending[repository]++
}

func (r *Registry) end(repository string, sent int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sending[repository]--
	r.sent[repository] = max(r.sent[repository], sent)
}

// answer is one answer.
type answer struct {
	http.ResponseWriter
	body           []byte
	sent           int
	gone, repaired <-chan struct{}
}

// misbehave sends the body as how says.
func (a *answer) misbehave(how string, isBlob bool) {
	select {
	case <-a.repaired:
		how = ""
	default:
	}
	switch {
	case how == "cut":
		a.send(rand.IntN(len(a.body))) //nolint:gosec // no secret
		panic(http.ErrAbortHandler)
	case how == "corrupt" && isBlob:
		a.body = bytes.Clone(a.body)
		a.body[len(a.body)/2] ^= 1
	case how == "stall":
		a.send(len(a.body) / 2)
		select {
		case <-a.repaired:
		case <-a.gone:
			return
		}
	case how == "drip" && isBlob:
		a.send(len(a.body) / 2)
		a.drip()
	}
	a.send(len(a.body) - a.sent)
}

// drip sends a byte a second, until that is repaired or nobody listens any more.
func (a *answer) drip() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for a.sent < len(a.body) {
		select {
		case <-a.repaired:
			return
		case <-a.gone:
			panic(http.ErrAbortHandler)
		case <-tick.C:
			a.send(1)
		}
	}
}

// chunk is how many bytes are sent before it is looked how many have gone.
const chunk = 64 << 10

// send sends so many more bytes, or ends the answer where nobody takes them.
func (a *answer) send(n int) {
	for end := a.sent + n; a.sent < end; {
		wrote, err := a.Write(a.body[a.sent:min(end, a.sent+chunk)])
		a.sent += wrote
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	_ = http.NewResponseController(a.ResponseWriter).Flush() // an error comes with the next bytes, too
}
