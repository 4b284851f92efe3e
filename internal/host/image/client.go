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
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

const (
	dialTimeout    = 15 * time.Second
	defaultStall   = 60 * time.Second
	defaultMaximum = 256 << 30
	maxRedirects   = 10
)

// Options of a Client. The zero value is usable.
type Options struct {
	// PlainHTTP lists the registries, as host[:port], that are spoken to without TLS. No other address is, whatever
	// a registry redirects to.
	PlainHTTP []string
	// RootCAs verify the registries; the system's by default.
	RootCAs *x509.CertPool
	// Architecture selects from an index, by Go's name; the program's own by default.
	Architecture string
	// MaxBytes is the most that one image may unpack to; 256 GiB by default.
	MaxBytes int64
	// Stall is how long a registry may send nothing; 60 s by default. A pull has no other limit in time.
	Stall time.Duration
	// UserAgent tells registries who asks.
	UserAgent string
}

// Client speaks to registries. It is safe for concurrent use.
type Client struct {
	options Options
	http    *http.Client
}

// New makes a Client.
func New(o Options) *Client {
	o.Architecture = cmp.Or(o.Architecture, runtime.GOARCH)
	o.MaxBytes = cmp.Or(o.MaxBytes, defaultMaximum)
	o.Stall = cmp.Or(o.Stall, defaultStall)
	c := &Client{options: o}
	c.http = &http.Client{
		Transport: plainGuard{allowed: o.PlainHTTP, next: &http.Transport{
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
		}},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return fmt.Errorf("stopped after %d redirects", maxRedirects)
			}
			return nil
		},
	}
	return c
}

// plainGuard refuses to speak plain HTTP to a host that the administrator did not list: neither a redirect nor a
// token server can lead there.
type plainGuard struct {
	allowed []string
	next    http.RoundTripper
}

func (g plainGuard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !slices.Contains(g.allowed, req.URL.Host) {
		return nil, fmt.Errorf("refused to speak plain HTTP to %s", req.URL.Host)
	}
	return g.next.RoundTrip(req)
}

// session is access to one repository with one credential.
type session struct {
	client *Client
	ref    Reference
	auth   *auth.Client
	proof  string
}

func (c *Client) session(ref Reference, with candidate) *session {
	s := &session{client: c, ref: ref, proof: with.proof, auth: &auth.Client{
		Client:     c.http,
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(ref.host(), with.credential),
	}}
	if c.options.UserAgent != "" {
		s.auth.SetUserAgent(c.options.UserAgent)
	}
	return s
}

// get asks for /v2/<repository>/<what> and returns the body of a 200. The body ends with an error when the
// registry stalls. Errors are classified.
func (s *session) get(ctx context.Context, what string, accept ...string) (io.ReadCloser, error) {
	scheme := "https"
	if slices.Contains(s.client.options.PlainHTTP, s.ref.host()) {
		scheme = "http"
	}
	ctx = auth.WithScopesForHost(ctx, s.ref.host(), auth.ScopeRepository(s.ref.Repository, auth.ActionPull))
	ctx, cancel := context.WithCancelCause(ctx)
	limit := s.client.options.Stall
	watch := &watched{cancel: cancel, limit: limit, timer: time.AfterFunc(limit, func() { cancel(fmt.Errorf("no data for %s", limit)) })}

	url := fmt.Sprintf("%s://%s/v2/%s/%s", scheme, s.ref.host(), s.ref.Repository, what)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(err)
		return nil, invalid(s.ref, err)
	}
	req.Header["Accept"] = accept
	resp, err := s.auth.Do(req) //nolint:bodyclose // watched closes it
	watch.timer.Stop()
	if err != nil {
		err = s.classify(ctx, err)
		cancel(err)
		return nil, err
	}
	watch.session, watch.ctx, watch.body = s, ctx, resp.Body
	if resp.StatusCode != http.StatusOK {
		_ = watch.Close()
		return nil, s.refusal(resp.StatusCode)
	}
	return watch, nil
}

// watched is a body whose every read has a deadline. Time that the reader spends elsewhere does not count.
type watched struct {
	session *session
	ctx     context.Context //nolint:containedctx // it is the request's, and ends with the body
	cancel  context.CancelCauseFunc
	body    io.ReadCloser
	limit   time.Duration
	timer   *time.Timer
}

func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	n, err := w.body.Read(p)
	w.timer.Stop()
	if err != nil && err != io.EOF { //nolint:errorlint // a body returns it bare, and a wrapped one is no end
		err = w.session.classify(w.ctx, err)
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	w.cancel(nil)
	return w.body.Close()
}
