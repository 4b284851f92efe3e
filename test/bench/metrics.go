package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// sample is one value of a process's metrics.
type sample struct {
	name   string
	labels map[string]string
	value  float64
	at     time.Time // if the metrics tell it
}

type samples []sample

// sum adds up the values of one metric whose labels fit.
func (all samples) sum(name string, fits func(labels map[string]string) bool) float64 {
	total := 0.0
	for _, s := range all {
		if s.name == name && fits(s.labels) {
			total += s.value
		}
	}
	return total
}

// value is that of a metric without labels.
func (all samples) value(name string) float64 {
	return all.sum(name, func(map[string]string) bool { return true })
}

// scrape reads a process's counters and gauges.
func scrape(ctx context.Context, from *http.Client, url, token string) (samples, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := from.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("reading %s: %s", url, answer.Status)
	}
	all, err := parse(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	return all, nil
}

// parse reads counters and gauges.
func parse(text io.Reader) (samples, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		return nil, err
	}
	var all samples
	for name, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{name, map[string]string{}, m.GetCounter().GetValue() + m.GetGauge().GetValue(), time.UnixMilli(m.GetTimestampMs())}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			all = append(all, s)
		}
	}
	return all, nil
}

// ours reads metrics of Berth's processes, whose certificates are their own.
var ours = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} //nolint:gosec // see above

// metricsReader lets a new service account read metrics, and returns its token.
func metricsReader(ctx context.Context, c client.Client, namespace string) (string, error) {
	name := "metrics-reader-" + namespace
	role := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": map[string]any{"name": name},
		"rules": []any{map[string]any{"nonResourceURLs": []any{"/metrics"}, "verbs": []any{"get"}}},
	}}
	binding := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": name},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "namespace": namespace, "name": name}},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	for _, o := range []client.Object{account, role, binding} {
		if err := c.Create(ctx, o); err != nil {
			return "", err
		}
	}
	return token(ctx, c, account)
}

// token is a service account's, for two hours.
func token(ctx context.Context, c client.Client, account *corev1.ServiceAccount) (string, error) {
	long := int64(7200)
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &long}}
	if err := c.SubResource("token").Create(ctx, account, request); err != nil {
		return "", fmt.Errorf("asking for a token of %s: %w", account.Name, err)
	}
	return request.Status.Token, nil
}
