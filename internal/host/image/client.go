package image

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const dialTimeout = 15 * time.Second

// Options of a Client. The zero value is usable.
type Options struct {
	// PlainHTTP lists the servers, as host[:port], that are reached without TLS, and may be at an address of the node's own
	// or of its link. No other is, whatever a server redirects to.
	PlainHTTP []string
	// Registries are what the administrator says of some servers.
	Registries Registries
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

// Client speaks to registries and web servers. It is safe for concurrent use.
type Client struct {
	options    Options
	transports map[string]http.RoundTripper // by host[:port]; those of all others at ""
	trusted    []string                     // hosts that may be at any address
	mirrors    map[string][]Reference       // by registry: those of no image, with the prefix as the repository
	// largeWindow is taken by the one pull that may use a large zstd window, or a large dictionary of xz.
	largeWindow sync.Mutex
	turns       *turns

	mu     sync.Mutex
	failed map[Reference]time.Time // when a mirror did
}

// New makes a Client.
func New(o Options) *Client {
	o.Architecture = cmp.Or(o.Architecture, runtime.GOARCH)
	o.MaxBytes = cmp.Or(o.MaxBytes, 256<<30)
	o.StallTimeout = cmp.Or(o.StallTimeout, time.Minute)
	o.MinThroughput = cmp.Or(o.MinThroughput, 16<<10)
	o.ThroughputWindow = cmp.Or(o.ThroughputWindow, 5*time.Minute)
	o.ResumeDelay = cmp.Or(o.ResumeDelay, time.Second)
	c := &Client{
		options: o, turns: newTurns(max(1, runtime.GOMAXPROCS(0)/2), patience),
		transports: map[string]http.RoundTripper{}, mirrors: map[string][]Reference{}, failed: map[Reference]time.Time{},
	}
	// HTTP/1.1 alone: what a pull asks for is one long body, which Go's HTTP/2 brings at two thirds of the speed, and with 8 MiB
	// more of memory.
	base := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         c.dial,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
		// Layers are compressed already, and a digest is of what is on the wire.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
	}
	c.transports[""] = base
	c.configure(base)
	c.trusted = slices.Concat(c.trusted, c.options.PlainHTTP, proxies())
	return c
}

// dial connects to a server. Users name servers, and the name servers say where those are: neither may lead to what only
// the node itself can reach, such as a cloud's metadata, unless the administrator said so.
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: dialTimeout}
	host, port, _ := net.SplitHostPort(address)
	if !slices.Contains(c.trusted, address) && (port != "80" && port != "443" || !slices.Contains(c.trusted, host)) {
		dialer.Control = refuseLocal
	}
	return dialer.DialContext(ctx, network, address)
}

func refuseLocal(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if a := to.Addr().Unmap(); a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() {
		return fmt.Errorf("%s is an address of the node itself or of its link: list its host in agent.registries", a)
	}
	return nil
}

// proxies are the addresses of those that the environment names.
func proxies() (addresses []string) {
	ports := map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}
	for _, scheme := range []string{"http", "https"} {
		through, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: scheme, Host: "example.com"}})
		if err == nil && through != nil {
			addresses = append(addresses, net.JoinHostPort(through.Hostname(), cmp.Or(through.Port(), ports[through.Scheme])))
		}
	}
	return addresses
}

// repository is a repository of a registry, or a file on a web server, with one credential. It asks one question at a time.
type repository struct {
	client      *Client
	ref         Reference // what it is called
	at          Reference // and where it is asked for
	auth        *auth.Client
	talk        conversation // since the question that was asked last
	fingerprint string
}

func (c *Client) repository(ref, at Reference, with entry) *repository {
	r := &repository{client: c, ref: ref, at: at, fingerprint: with.fingerprint, talk: conversation{client: c}}
	r.auth = &auth.Client{
		Client:     &http.Client{Transport: &r.talk},
		Cache:      auth.NewCache(),
		Credential: auth.StaticCredential(at.host(), with.credential),
	}
	r.auth.SetUserAgent(c.options.UserAgent)
	return r
}

// get asks for /v2/<repository>/<what>, or for the file, and returns the answer, if it is a 200, or a 206 to a question for a range. Its
// body ends with an error when the registry stalls. Errors are classified.
func (r *repository) get(ctx context.Context, what string, header http.Header) (*http.Response, error) {
	scheme := "https"
	if slices.Contains(r.client.options.PlainHTTP, r.at.host()) {
		scheme = "http"
	}
	ctx = auth.WithScopesForHost(ctx, r.at.host(), auth.ScopeRepository(r.at.Repository, auth.ActionPull))
	ctx, cancel := context.WithCancelCause(ctx)
	limit := r.client.options.StallTimeout
	watch := &stallTimeoutBody{repository: r, ctx: ctx, cancel: cancel}
	watch.timer = time.AfterFunc(limit, func() { cancel(stallError{limit}) })

	at := cmp.Or(r.at.URL, fmt.Sprintf("%s://%s/v2/%s/%s", scheme, r.at.host(), r.at.Repository, what))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
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
	transport, is := c.client.transports[req.URL.Host]
	if !is {
		transport = c.client.transports[""]
	}
	resp, err := transport.RoundTrip(req)
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
		schemes = nil
	}
	return chosen, schemes
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
