package kube_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-logr/logr"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/berth-dev/berth/internal/kube"
	"github.com/berth-dev/berth/test/env"
)

const readers = `
apiVersion: rbac.authorization.k8s.io/v1
kind: %s
metadata: {name: readers}
`

func TestGuardMetrics(t *testing.T) {
	config, c := env.APIServer(t)
	for _, manifest := range []string{
		fmt.Sprintf(readers, "ClusterRole") + "rules: [{nonResourceURLs: [/metrics], verbs: [get]}]\n",
		fmt.Sprintf(readers, "ClusterRoleBinding") + "roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: readers}\n" +
			"subjects: [{kind: ServiceAccount, namespace: default, name: prometheus}]\n",
	} {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(manifest), &o.Object); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	asked := 0
	counting := rest.CopyConfig(config)
	counting.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return tripper(func(r *http.Request) (*http.Response, error) { asked++; return next.RoundTrip(r) })
	})
	httpClient, err := rest.HTTPClientFor(counting)
	if err != nil {
		t.Fatal(err)
	}
	filter, err := kube.MetricsFilter(counting, httpClient)
	if err != nil {
		t.Fatal(err)
	}
	guarded, err := filter(logr.Discard(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "metrics") }))
	if err != nil {
		t.Fatal(err)
	}
	get := func(method, path, authorization string) int {
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r)
		if got := w.Body.String() == "metrics"; got != (w.Code == http.StatusOK) {
			t.Errorf("status %d came with %q", w.Code, w.Body)
		}
		return w.Code
	}
	allowed, other := "Bearer "+tokenOf(t, c, "prometheus"), "Bearer "+tokenOf(t, c, "other")
	env.Eventually(t, "the role to hold", func() bool { // the guard keeps its first verdict for a while
		return get(http.MethodGet, "/metrics", allowed) == http.StatusOK
	})
	for _, tt := range []struct {
		name, method, path, authorization string
		want                              int
	}{
		{"whom a role lets", http.MethodGet, "/metrics", allowed, http.StatusOK},
		{"whom no role lets", http.MethodGet, "/metrics", other, http.StatusForbidden},
		{"another verb", http.MethodPost, "/metrics", allowed, http.StatusForbidden},
		{"another path", http.MethodGet, "/debug", allowed, http.StatusForbidden},
		{"no token", http.MethodGet, "/metrics", "", http.StatusUnauthorized},
		{"an empty token", http.MethodGet, "/metrics", "Bearer ", http.StatusUnauthorized},
		{"a made-up token", http.MethodGet, "/metrics", "Bearer x.y.z", http.StatusUnauthorized},
		{"a password", http.MethodGet, "/metrics", "Basic eDp5", http.StatusUnauthorized},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 { // the second time from memory
				if got := get(tt.method, tt.path, tt.authorization); got != tt.want {
					t.Errorf("status is %d, want %d", got, tt.want)
				}
			}
		})
	}
	before := asked
	for range 10 {
		get(http.MethodGet, "/metrics", allowed)
	}
	if asked != before {
		t.Errorf("the API server was asked %d times about somebody it has just let", asked-before)
	}
}

type tripper func(*http.Request) (*http.Response, error)

func (f tripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func tokenOf(t *testing.T, c client.Client, name string) string {
	t.Helper()
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	if err := c.Create(t.Context(), account); err != nil {
		t.Fatal(err)
	}
	request := &authenticationv1.TokenRequest{}
	if err := c.SubResource("token").Create(t.Context(), account, request); err != nil {
		t.Fatal(err)
	}
	return request.Status.Token
}
