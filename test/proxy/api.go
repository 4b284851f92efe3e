package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// API is a proxy of the API server. It begins by spoiling nothing.
type API struct {
	reverse httputil.ReverseProxy
	spoilt  atomic.Int64 // how many answers were
	faults  atomic.Pointer[apiFaults]
}

type apiFaults struct {
	errors float64
	late   time.Duration
}

// ServeAPI serves the API server's clients at an address until the test is over: they are who their tokens say. The
// certificates are PEM files: the server's own, and the one of the authority that signed the API server's.
func ServeAPI(t testing.TB, address, server, certificate, key string, trust *tls.Config) *API {
	t.Helper()
	target, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	a := &API{}
	a.Spoil(0, 0)
	a.reverse = httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     &http.Transport{TLSClientConfig: trust, ForceAttemptHTTP2: true},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Query().Get("watch") != "" {
				r.Body = &lateBody{ReadCloser: r.Body, late: func() time.Duration { return a.faults.Load().late }}
			}
			return nil
		},
	}
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{
		Handler: a, ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the proxy of the API server: %v", err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the proxy of the API server: %v", err)
		}
	})
	return a
}

// Spoil has that part of all requests answered by an error, half of them after they were carried out, and each event
// of a watch come so much later.
func (a *API) Spoil(part float64, late time.Duration) { a.faults.Store(&apiFaults{part, late}) }

// Spoilt is how many requests were answered by an error.
func (a *API) Spoilt() int64 { return a.spoilt.Load() }

// ServeHTTP spoils an answer, or hands it on.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rand.Float64() >= a.faults.Load().errors {
		a.reverse.ServeHTTP(w, r)
		return
	}
	a.spoilt.Add(1)
	if r.URL.Query().Get("watch") == "" && rand.IntN(2) == 0 {
		a.reverse.ServeHTTP(&lost{header: http.Header{}}, r)
	}
	resource := schema.GroupResource{Resource: "anything"}
	answers := []*apierrors.StatusError{
		apierrors.NewTooManyRequests("spoilt", 1),
		apierrors.NewInternalError(io.ErrUnexpectedEOF),
		apierrors.NewServiceUnavailable("spoilt"),
		apierrors.NewServerTimeout(resource, r.Method, 1),
	}
	if r.Method != http.MethodGet {
		answers = append(answers, apierrors.NewConflict(resource, "any", nil))
	}
	status := answers[rand.IntN(len(answers))].Status()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(int(status.Code))
	_ = json.NewEncoder(w).Encode(status) // who does not read it has what it was to have: no answer
}

// lost is where an answer goes that nobody hears.
type lost struct{ header http.Header }

func (l *lost) Header() http.Header         { return l.header }
func (l *lost) Write(b []byte) (int, error) { return len(b), nil }
func (l *lost) WriteHeader(int)             {}

// lateBody hands on what it reads so much later, in order, however much there is on its way.
type lateBody struct {
	io.ReadCloser
	late  func() time.Duration
	way   chan piece
	first []byte
	err   error
}

type piece struct {
	bytes []byte
	err   error
	due   time.Time
}

func (l *lateBody) Read(b []byte) (int, error) {
	if l.way == nil {
		l.way = make(chan piece, 10_000)
		go l.read()
	}
	if len(l.first) == 0 && l.err == nil {
		p := <-l.way
		time.Sleep(time.Until(p.due)) // the fault itself
		l.first, l.err = p.bytes, p.err
	}
	n := copy(b, l.first)
	if l.first = l.first[n:]; len(l.first) > 0 || l.err == nil {
		return n, nil
	}
	return n, l.err
}

func (l *lateBody) read() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.ReadCloser.Read(buffer)
		l.way <- piece{bytes.Clone(buffer[:n]), err, time.Now().Add(l.late())}
		if err != nil {
			return
		}
	}
}
