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
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const dialTimeout = 15 * time.Second

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
	transport *http.Transport
	// largeWindow is taken by the one pull that may use a large zstd window.
	largeWindow sync.Mutex
	turns       *turns
}

// New makes a Client.
func New(o Options) *Client {
	o.Architecture = cmp.Or(o.Architecture, runtime.GOARCH)
	o.MaxBytes = cmp.Or(o.MaxBytes, 256<<30)
	o.StallTimeout = cmp.Or(o.StallTimeout, time.Minute)
	o.MinThroughput = cmp.Or(o.MinThroughput, 16<<10)
	o.ThroughputWindow = cmp.Or(o.ThroughputWindow, 5*time.Minute)
	o.ResumeDelay = cmp.Or(o.ResumeDelay, time.Second)
	turns := newTurns(max(1, runtime.GOMAXPROCS(0)/2), patience)
	return &Client{options: o, turns: turns, transport: &http.Transport{
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
	}}
}

// repository is a repository of a registry, with one credential. It asks one question at a time.
type repository struct {
	client      *Client
	ref         Reference
	auth        *auth.Client
	talk        conversation // since the question that was asked last
	fingerprint string
}

func (c *Client) repository(ref Reference, with entry) *repository {
	r := &repository{client: c, ref: ref, fingerprint: with.fingerprint, talk: conversation{client: c}}
	r.auth = &auth.Client{
		Client:     &http.Client{Transport: &r.talk},
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(ref.host(), with.credential),
	}
	r.auth.SetUserAgent(c.options.UserAgent)
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
	watch := &stallTimeoutBody{repository: r, ctx: ctx, cancel: cancel}
	watch.timer = time.AfterFunc(limit, func() { cancel(stallError{limit}) })

	url := fmt.Sprintf("%s://%s/v2/%s/%s", scheme, r.ref.host(), r.ref.Repository, what)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		cancel(err)
		return nil, r.ref.refuse(v1alpha1.ReasonImageInvalid, "%w", err)
	}
	req.Header = header
	r.talk = conversation{client: r.client}
	resp, err := r.auth.Do(req) //nolint:bodyclose // stallTimeoutBody closes it
	if err != nil {
		watch.timer.Stop()
		err = r.classify(ctx, err)
		cancel(err)
		return nil, err
	}
	watch.body = resp.Body
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
	timer      *time.Timer
}

func (w *stallTimeoutBody) Read(p []byte) (int, error) {
	w.timer.Reset(w.repository.client.options.StallTimeout)
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

// maxRetryAfter bounds how long a registry can have us wait.
const maxRetryAfter = 6 * time.Hour

// conversation is the way to a registry, its token server, and wherever they redirect to. It notes what only the
// answers' headers tell.
type conversation struct {
	client *Client
	// asked is the host of the last request.
	asked string
	// tokenServer: the last request was for a token.
	tokenServer bool
	// schemes are those that the registry challenged with, if we speak none of them.
	schemes []string
	// retryAfter is when the last answer, a refusal, wants to be asked again.
	retryAfter time.Duration

	realm *url.URL
}

func (c *conversation) RoundTrip(req *http.Request) (*http.Response, error) {
	c.asked, c.retryAfter = req.URL.Host, 0
	c.tokenServer = c.realm != nil && req.URL.Host == c.realm.Host && req.URL.Path == c.realm.Path
	// Neither a redirect nor a token server can lead to where the administrator did not allow it.
	if req.URL.Scheme != "https" && !slices.Contains(c.client.options.PlainHTTP, req.URL.Host) {
		return nil, fmt.Errorf("plain HTTP to %s is not allowed: list it in agent.insecureRegistries", req.URL.Host)
	}
	resp, err := c.client.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		c.retryAfter = parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	if resp.StatusCode == http.StatusUnauthorized && !c.tokenServer {
		chosen, schemes := chooseChallenge(resp.Header.Values("WWW-Authenticate"))
		resp.Header.Set("WWW-Authenticate", chosen) // the client reads the first alone
		c.schemes = schemes
		if _, rest, ok := strings.Cut(chosen, `realm="`); ok {
			realm, _, _ := strings.Cut(rest, `"`)
			c.realm, _ = url.Parse(realm) // one that cannot be parsed is refused by the client
		}
	}
	return resp, nil
}

// chooseChallenge returns the challenge that we answer: a token's first, as docker. If there is none, it returns the
// schemes that there are.
func chooseChallenge(values []string) (chosen string, schemes []string) {
	for _, challenge := range splitChallenges(values) {
		scheme, _, _ := strings.Cut(challenge, " ")
		switch {
		case strings.EqualFold(scheme, "Bearer"):
			return challenge, nil
		case strings.EqualFold(scheme, "Basic"):
			chosen = challenge
		default:
			schemes = append(schemes, scheme)
		}
	}
	if chosen != "" {
		return chosen, nil
	}
	return "", schemes
}

// element is what stands between the commas of a list that are in no quoted string.
var element = regexp.MustCompile(`(?s)([^",]|"([^"\\]|\\.)*("|$))+`)

// splitChallenges splits the values of WWW-Authenticate into challenges, RFC 9110 section 11.6.1: both challenges and
// their parameters are separated by commas.
func splitChallenges(values []string) (list []string) {
	for _, part := range element.FindAllString(strings.Join(values, ","), -1) {
		part = strings.TrimSpace(part)
		name, rest, _ := strings.Cut(part, " ")
		parameter := strings.Contains(name, "=") || strings.HasPrefix(strings.TrimSpace(rest), "=")
		switch {
		case part == "":
		case !parameter:
			list = append(list, part)
		case len(list) > 0:
			list[len(list)-1] += "," + part
		}
	}
	return list
}

// parseRetryAfter reads Retry-After, RFC 9110 section 10.2.3: seconds, or a date.
func parseRetryAfter(value string, now time.Time) time.Duration {
	var after time.Duration
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		after = date.Sub(now)
	}
	return min(max(after, 0), maxRetryAfter)
}
