package kube

import (
	"net/http"
	"time"

	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
)

// again is how often a request that must come through is tried while the API server is away.
const again = time.Second

// Patient has the requests by which a process learns of the API, discovery, lists and watches, wait for an API server
// that is away or fails, and go on the moment it is back: their callers would end the process, or come again later and later.
// Other requests fail at once, as ever: guests are cared for meanwhile.
func Patient(config *rest.Config) *rest.Config {
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return patient{next} })
	return config
}

type patient struct{ next http.RoundTripper }

// WrappedRoundTripper lets client-go cancel requests.
func (p patient) WrappedRoundTripper() http.RoundTripper { return p.next }

func (p patient) RoundTrip(r *http.Request) (*http.Response, error) {
	for told := false; ; told = true {
		answer, err := p.next.RoundTrip(r)
		cause := ""
		switch {
		case !learns(r):
			return answer, err
		case err != nil:
			cause = err.Error()
		case answer.StatusCode == http.StatusTooManyRequests, answer.StatusCode >= http.StatusInternalServerError:
			cause = answer.Status
		default:
			return answer, nil
		}
		if !told {
			ctrl.Log.Info("Waiting for the API server", "for", r.URL.Path, "cause", cause)
		}
		select {
		case <-r.Context().Done():
			return answer, err
		case <-time.After(again):
		}
		if err == nil {
			_ = answer.Body.Close()
		}
	}
}

// learns: the request is discovery, or a list or watch of a cache, which names the version that it goes on from.
func learns(r *http.Request) bool {
	if r.Method != http.MethodGet {
		return false
	}
	query := r.URL.Query()
	return r.URL.Path == "/api" || r.URL.Path == "/apis" || query.Get("watch") != "" || query.Has("resourceVersion")
}
