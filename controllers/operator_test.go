package controllers_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/controllers"
	"github.com/berth-dev/berth/internal/berth"
)

// roleVariable makes this test's binary an operator. Its value is "one", or
// "elected" for one that waits to be the leader.
const roleVariable = "BERTH_TEST_OPERATOR"

// TestMain lets tests run operators as processes of their own, which can be killed.
func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	go func() { // the test's end is ours, however it ends
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	err := controllers.Run(context.Background(), &rest.Config{Host: os.Getenv("BERTH_TEST_SERVER")}, controllers.Options{
		Berth: berth.Options{
			ShimImage: "registry.example/berth-shim:1", PullPolicy: corev1.PullIfNotPresent, CPURequest: resource.MustParse("100m"),
		},
		Namespace: "default", LeaderElection: role == "elected", MetricsAddress: "0", HealthAddress: "0",
	})
	if err != nil {
		panic(err)
	}
}

// operator is an operator in a process of its own. It reaches the API server
// through the test, which counts what it writes and may kill it for it.
type operator struct {
	t      *testing.T
	role   string
	proxy  *httputil.ReverseProxy
	server *httptest.Server

	mu      sync.Mutex
	writes  []string      // "create pods", in order, without leases and Events
	deadly  bool          // each write is its last: it is killed when that is done, before it hears so
	late    bool          // it hears of a berth that it made only once it has written something else
	hears   chan struct{} // closed when it has; nil while there is nothing to hear late
	process *exec.Cmd
	stdin   io.Closer
}

// startOperator runs an operator for the time of a test.
func startOperator(t *testing.T, config *rest.Config, role string) *operator {
	t.Helper()
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	o := &operator{t: t, role: role, proxy: &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1, // watches
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	o.server = httptest.NewServer(o)
	o.mu.Lock()
	o.start()
	o.mu.Unlock()
	t.Cleanup(func() {
		o.kill()
		o.server.CloseClientConnections()
		o.server.Close()
	})
	return o
}

// start wants o.mu.
func (o *operator) start() {
	o.process = exec.Command(os.Args[0])
	o.process.Env = append(os.Environ(), roleVariable+"="+o.role, "BERTH_TEST_SERVER="+o.server.URL)
	o.process.Stderr = os.Stderr
	stdin, err := o.process.StdinPipe()
	if err == nil {
		err = o.process.Start()
	}
	if err != nil {
		o.t.Errorf("starting operator: %v", err)
		return
	}
	o.stdin = stdin
}

// end wants o.mu. It ends the operator as a power cut would.
func (o *operator) end() {
	if o.process == nil || o.process.Process == nil {
		return
	}
	_ = o.process.Process.Kill() // it may have ended
	_ = o.process.Wait()         // killed
	o.process = nil
}

func (o *operator) kill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.end()
}

// setDeadly makes each of the operator's writes its last, and starts it anew after each; or no longer.
func (o *operator) setDeadly(deadly bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deadly = deadly
}

// wrote returns what the operator wrote so far, and forgets it.
func (o *operator) wrote() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	writes := o.writes
	o.writes = nil
	return writes
}

// berths is how many it asked for so far, and forgets what it wrote.
func (o *operator) berths() (n int) {
	for _, what := range o.wrote() {
		if what == "create pods" {
			n++
		}
	}
	return n
}

// setLate has the operator hear of a berth late; or no longer.
func (o *operator) setLate(is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.late = is
}

// late is an answer that comes in parts, each of which may be late.
type late struct {
	http.ResponseWriter
	o    *operator
	gone <-chan struct{} // who asked
}

func (l late) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l late) Write(b []byte) (int, error) {
	l.o.mu.Lock()
	hears := l.o.hears
	l.o.mu.Unlock()
	if hears != nil {
		select {
		case <-hears:
		case <-l.gone:
		}
	}
	return l.ResponseWriter.Write(b)
}

// resourceOf finds the resource, and a subresource, in the path of a request.
var resourceOf = regexp.MustCompile(`^/(?:api|apis/[^/]+)/[^/]+/(?:namespaces/[^/]+/)?([a-z]+)(?:/[^/]+(/[a-z]+)?)?$`)

// ServeHTTP passes the operator's requests on.
func (o *operator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	verb := map[string]string{http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
	path := resourceOf.FindStringSubmatch(r.URL.Path)
	if path != nil && path[1] == "pods" && r.URL.Query().Get("watch") == "true" {
		w = late{w, o, r.Context().Done()}
	}
	if verb == "" || path == nil || slices.Contains([]string{"leases", "events"}, path[1]) {
		o.proxy.ServeHTTP(w, r)
		return
	}
	what := strings.Join([]string{verb, path[1] + path[2]}, " ")
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes = append(o.writes, what)
	if o.hears != nil {
		close(o.hears)
		o.hears = nil
	}
	if o.late && what == "create pods" {
		o.hears = make(chan struct{})
	}
	if !o.deadly {
		o.proxy.ServeHTTP(w, r)
		return
	}
	done := httptest.NewRecorder()
	o.proxy.ServeHTTP(done, r.WithContext(context.WithoutCancel(r.Context())))
	o.end()
	o.start()
	panic(http.ErrAbortHandler)
}
