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

	mu          sync.Mutex
	writes      []string      // "create pods", in order, without the leader's Lease and Events
	killOnWrite bool          // it is killed after each write, before it gets the answer
	delayPods   bool          // watches of pods are held back after it created one, until it has written something else
	resume      chan struct{} // closed when watches go on; nil while they are not held back
	process     *exec.Cmd
	stdin       io.Closer
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

// setKillOnWrite has the operator killed and started again after each of its writes; or no longer.
func (o *operator) setKillOnWrite(killOnWrite bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.killOnWrite = killOnWrite
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

// setDelayPods has the operator learn late that the berth which it created exists; or no longer.
func (o *operator) setDelayPods(is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.delayPods = is
}

// delayed is a watch whose events are held back.
type delayed struct {
	http.ResponseWriter
	o    *operator
	gone <-chan struct{} // closed when the client is
}

func (l delayed) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l delayed) Write(b []byte) (int, error) {
	l.o.mu.Lock()
	resume := l.o.resume
	l.o.mu.Unlock()
	if resume != nil {
		select {
		case <-resume:
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
		w = delayed{w, o, r.Context().Done()}
	}
	elects := path != nil && path[1] == "leases" && strings.Contains(r.URL.Path, "/namespaces/default/")
	if verb == "" || path == nil || elects || path[1] == "events" {
		o.proxy.ServeHTTP(w, r)
		return
	}
	what := strings.Join([]string{verb, path[1] + path[2]}, " ")
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writes = append(o.writes, what)
	if o.resume != nil {
		close(o.resume)
		o.resume = nil
	}
	if o.delayPods && what == "create pods" {
		o.resume = make(chan struct{})
	}
	if !o.killOnWrite {
		o.proxy.ServeHTTP(w, r)
		return
	}
	done := httptest.NewRecorder()
	o.proxy.ServeHTTP(done, r.WithContext(context.WithoutCancel(r.Context())))
	o.end()
	o.start()
	panic(http.ErrAbortHandler)
}
