package kube

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

// How long a decision about a reader of metrics is cached, and how many are.
const (
	allowedTTL   = time.Minute
	deniedTTL    = 10 * time.Second
	maxDecisions = 256
)

// MetricsFilter lets only those read metrics whom the API server authorizes: by the bearer token of a request (TokenReview)
// and a role with the nonResourceURL (SubjectAccessReview). controller-runtime's own filter does the same by means of
// the API server's code, which makes each of our processes larger by a third.
func MetricsFilter(config *rest.Config, httpClient *http.Client) (server.Filter, error) {
	c, err := client.New(config, client.Options{Scheme: Scheme(), HTTPClient: httpClient})
	if err != nil {
		return nil, fmt.Errorf("making client: %w", err)
	}
	g := &authorizer{client: c, decisions: cache.NewLRUExpireCache(maxDecisions)}
	return func(log logr.Logger, metrics http.Handler) (http.Handler, error) {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch status, err := g.authorize(r); {
			case err != nil:
				log.Error(err, "Authorizing a request for metrics")
				http.Error(w, "the API server could not authorize the request", http.StatusInternalServerError)
			case status != http.StatusOK:
				http.Error(w, http.StatusText(status), status)
			default:
				metrics.ServeHTTP(w, r)
			}
		}), nil
	}, nil
}

// authorizer caches for a while whom the API server lets.
type authorizer struct {
	client    client.Client
	decisions *cache.LRUExpireCache // HTTP statuses, by hashes of requests and tokens
}

// authorize returns the status that a request deserves: OK, Unauthorized or Forbidden.
func (g *authorizer) authorize(r *http.Request) (int, error) {
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return http.StatusUnauthorized, nil
	}
	key := sha256.Sum256([]byte(r.Method + " " + r.URL.Path + " " + token))
	if status, ok := g.decisions.Get(key); ok {
		return status.(int), nil
	}
	status, err := g.review(r.Context(), token, r.URL.Path, strings.ToLower(r.Method))
	if err != nil {
		return 0, err
	}
	ttl := deniedTTL
	if status == http.StatusOK {
		ttl = allowedTTL
	}
	g.decisions.Add(key, status, ttl)
	return status, nil
}

// review asks the API server whose the token is, and whether that user may.
func (g *authorizer) review(ctx context.Context, token, path, verb string) (int, error) {
	who := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := g.client.Create(ctx, who); err != nil {
		return 0, fmt.Errorf("reviewing a token: %w", err)
	}
	if !who.Status.Authenticated {
		return http.StatusUnauthorized, nil
	}
	user := who.Status.User
	extra := map[string]authorizationv1.ExtraValue{}
	for name, values := range user.Extra {
		extra[name] = authorizationv1.ExtraValue(values)
	}
	may := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
		NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: path, Verb: verb},
	}}
	if err := g.client.Create(ctx, may); err != nil {
		return 0, fmt.Errorf("reviewing access of %s: %w", user.Username, err)
	}
	if !may.Status.Allowed {
		return http.StatusForbidden, nil
	}
	return http.StatusOK, nil
}
