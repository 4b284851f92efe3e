package kube

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

func TestOnlyDiscoveryListsAndWatchesWait(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close() // the API server is away
	client, err := rest.HTTPClientFor(RetryReads(&rest.Config{Host: "http://" + address}))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context, method, path string) error {
		request, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return errors.New(answer.Status)
		}
		return nil
	}
	for _, path := range []string{"/api/v1/namespaces/a/pods/b", "/api/v1/pods"} {
		if err := ask(t.Context(), http.MethodGet, path); err == nil {
			t.Errorf("%s was answered by nobody", path)
		}
	}
	if err := ask(t.Context(), http.MethodDelete, "/api/v1/pods?resourceVersion=0"); err == nil {
		t.Error("a deletion was answered by nobody")
	}
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := ask(brief, http.MethodGet, "/apis"); err == nil || brief.Err() == nil {
		t.Errorf("discovery did not wait for as long as it might: %v", err)
	}

	waiting := make(chan error)
	paths := []string{"/api", "/apis", "/api/v1/pods?watch=true", "/api/v1/pods?limit=500&resourceVersion=0"}
	for _, path := range paths {
		go func() { waiting <- ask(t.Context(), http.MethodGet, path) }()
	}
	back, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 { // it is back, but not well
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	server.Listener = back
	server.Start()
	defer server.Close()
	for range paths {
		if err := <-waiting; err != nil {
			t.Error(err)
		}
	}
}
