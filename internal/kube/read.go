package kube

import (
	"context"
	"net/http"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/berth-dev/berth/internal/fault"
)

// Read returns the object of that name, nil when there is none.
func Read[T any, O interface {
	*T
	client.Object
}](ctx context.Context, from client.Reader, key types.NamespacedName) (O, error) {
	var object T
	if err := from.Get(ctx, key, O(&object)); err != nil {
		return nil, fault.Doing(client.IgnoreNotFound(err), "reading %T %s", object, key.Name)
	}
	return &object, nil
}

// Changed passes updates of objects that change that part of them.
func Changed[O client.Object](part func(O) any) predicate.Funcs {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(part(e.ObjectOld.(O)), part(e.ObjectNew.(O)))
	}}
}

// retryInterval is how often such a request is tried while the API server is unreachable.
const retryInterval = time.Second

// RetryReads has the requests of caches, discovery, lists and watches, wait for an API server that is unreachable or fails, and go
// on the moment it is back: their callers would end the process, or back off further and further. Other requests fail
// at once: guests are reconciled meanwhile.
func RetryReads(config *rest.Config) *rest.Config {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return retryReads{next} })
	return config
}

type retryReads struct{ next http.RoundTripper }

// WrappedRoundTripper lets client-go cancel requests.
func (p retryReads) WrappedRoundTripper() http.RoundTripper { return p.next }

func (p retryReads) RoundTrip(r *http.Request) (*http.Response, error) {
	for logged := false; ; logged = true {
		response, err := p.next.RoundTrip(r)
		reason := ""
		switch {
		case !isListOrWatch(r):
			return response, err
		case err != nil:
			reason = err.Error()
		case response.StatusCode == http.StatusTooManyRequests, response.StatusCode >= http.StatusInternalServerError:
			reason = response.Status
		default:
			return response, nil
		}
		if !logged {
			ctrl.Log.Info("Waiting for the API server", "path", r.URL.Path, "err", reason)
		}
		select {
		case <-r.Context().Done():
			return response, err
		case <-time.After(retryInterval):
		}
		if err == nil {
			_ = response.Body.Close()
		}
	}
}

// isListOrWatch: the request is discovery, or a list or watch of a cache, which names the version that it goes on from.
func isListOrWatch(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	query := r.URL.Query()
	return r.URL.Path == "/api" || r.URL.Path == "/apis" || query.Get("watch") != "" || query.Has("resourceVersion")
}
