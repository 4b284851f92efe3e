package image

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	dialTimeout    = 15 * time.Second
	defaultStall   = 60 * time.Second
	defaultMaximum = 256 << 30
	maxRedirects   = 10
	// manifestTimeout bounds the wait for a manifest, which is small, however its bytes drip.
	manifestTimeout = 5 * time.Minute
)

// Options of a Client. The zero value is usable.
type Options struct {
	// PlainHTTP lists the registries, as host[:port], that are reached without TLS. No other address is, whatever
	// a registry redirects to.
	PlainHTTP []string
	// RootCAs verify the registries; the system's by default.
	RootCAs *x509.CertPool
	// Architecture selects from an index, by Go's name; the program's own by default.
	Architecture string
	// MaxBytes is the most that one image may unpack to; 256 GiB by default.
	MaxBytes int64
	// StallTimeout is how long a registry may send nothing; 60 s by default.
	StallTimeout time.Duration
	// MinThroughput is what a registry must send of a layer, in bytes a second over each ThroughputWindow of waiting for
	// it; 16 KiB over 5 minutes by default. A pull has no other limit in time.
	MinThroughput    int64
	ThroughputWindow time.Duration
	// ResumeDelay is how long to wait before a layer that was cut off is gone on with, doubled each time that nothing
	// came; 1 s by default.
	ResumeDelay time.Duration
	// UserAgent tells registries who asks.
	UserAgent string
}

// Client speaks to registries. It is safe for concurrent use.
type Client struct {
	options   Options
	transport http.RoundTripper
	// largeWindow is taken by the one pull that may use a large zstd window.
	largeWindow sync.Mutex
	turns       *turns
}

// New makes a Client.
func New(o Options) *Client {
	o.Architecture = cmp.Or(o.Architecture, runtime.GOARCH)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaximum)
	o.StallTimeout = cmp.Or(o.StallTimeout, defaultStall)
	o.MinThroughput = cmp.Or(o.MinThroughput, 16<<10)
	o.ThroughputWindow = cmp.Or(o.ThroughputWindow, 5*time.Minute)
	o.ResumeDelay = cmp.Or(o.ResumeDelay, time.Second)
	return &Client{options: o, turns: newTurns(max(1, runtime.GOMAXPROCS(0)/2), patience), transport: plainHTTPGuard{allowed: o.PlainHTTP, next: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: o.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
		// Layers are compressed already, and a digest is of what is on the wire.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}}}
}

// plainHTTPGuard refuses to speak plain HTTP to a host that the administrator did not list: neither a redirect nor a
// token server can lead there.
type plainHTTPGuard struct {
	allowed []string
	next    http.RoundTripper
}

func (g plainHTTPGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !slices.Contains(g.allowed, req.URL.Host) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed: list it in agent.insecureRegistries", req.URL.Host)
	}
	return g.next.RoundTrip(req)
}

// repository is a repository of a registry, with one credential. It asks one question at a time.
type repository struct {
	client      *Client
	ref         Reference
	auth        *auth.Client
	talk        *conversation
	fingerprint string
}

func (c *Client) repository(ref Reference, with candidate) *repository {
	talk := &conversation{next: c.transport}
	r := &repository{client: c, ref: ref, talk: talk, fingerprint: with.fingerprint, auth: &auth.Client{
		Client: &http.Client{Transport: talk, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			return nil
		}},
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(ref.host(), with.credential),
	}}
	if c.options.UserAgent != "" {
		r.auth.SetUserAgent(c.options.UserAgent)
	}
	return r
}

// get asks for /v2/<repository>/<what> and returns the answer, if it is a 200, or a 206 to a question for a range. Its
// body ends with an error when the registry stalls. Errors are classified.
func (r *repository) get(ctx context.Context, what string, header http.Header) (*http.Response, error) {
	scheme := "https"
	if slices.Contains(r.client.options.PlainHTTP, r.ref.host()) {
		scheme = "http"
	}
	ctx = auth.WithScopesForHost(ctx, r.ref.host(), auth.ScopeRepository(r.ref.Repository, auth.ActionPull))
	ctx, cancel := context.WithCancelCause(ctx)
	limit := r.client.options.StallTimeout
	watch := &stallTimeoutBody{cancel: cancel, limit: limit, timer: time.AfterFunc(limit, func() { cancel(stallError{limit}) })}

	url := fmt.Sprintf("%s://%s/v2/%s/%s", scheme, r.ref.host(), r.ref.Repository, what)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(err)
		return nil, invalid(r.ref, err)
	}
	req.Header = header
	*r.talk = conversation{next: r.talk.next}
	resp, err := r.auth.Do(req) //nolint:bodyclose // stallTimeoutBody closes it
	if err != nil {
		watch.timer.Stop()
		err = r.classify(ctx, err)
		cancel(err)
		return nil, err
	}
	watch.repository, watch.ctx, watch.body = r, ctx, resp.Body
	if resp.StatusCode != http.StatusOK && (resp.StatusCode != http.StatusPartialContent || header.Get("Range") == "") {
		said := readWords(resp.Body) // the timer still runs
		_ = watch.Close()
		return nil, r.refusal(what, resp.StatusCode, said)
	}
	watch.timer.Stop()
	resp.Body = watch
	return resp, nil
}

// stallError is that of a registry that sends nothing.
type stallError struct{ limit time.Duration }

func (e stallError) Error() string { return fmt.Sprintf("no data for %s", e.limit) }

// stallTimeoutBody is a body whose every read has a deadline. Time that the reader spends elsewhere does not count.
type stallTimeoutBody struct {
	repository *repository
	ctx        context.Context //nolint:containedctx // it is the request's, and ends with the body
	cancel     context.CancelCauseFunc
	body       io.ReadCloser
	limit      time.Duration
	timer      *time.Timer
}

func (w *stallTimeoutBody) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && err != io.EOF { //nolint:errorlint // a body returns it bare, and a wrapped one is no end
		err = w.repository.classify(w.ctx, err)
	}
	return n, err
}

func (w *stallTimeoutBody) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}
