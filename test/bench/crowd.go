package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	// watched is for how long an idle crowd is looked at.
	watched = time.Minute
	// atOnce is how many of it start at once.
	atOnce = 4
)

// crowd measures what Berth's processes take while n guests run on one node and nothing happens.
func (b *bench) crowd(ctx context.Context, n int) (figures []figure, err error) {
	token, err := metricsReader(ctx, b, b.ns)
	if err != nil {
		return nil, err
	}
	tidy, err := b.lightBerths(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tidy()) }()

	began := time.Now()
	vms := make([]*v1alpha1.VirtualMachine, n)
	// A few at a time: a guest that boots by emulation needs a whole CPU.
	if err := each(n, atOnce, func(i int) error {
		vms[i] = b.guest(fmt.Sprintf("crowd-%d", i))
		vms[i].Spec.Memory.Size = resource.MustParse("80Mi")
		vms[i].Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{ // it has booted, and nobody asks it any more
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}},
			PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 600,
		}}
		_, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vms[i], isReadyGuest)
		if i%10 == 0 {
			fmt.Fprintf(os.Stderr, "bench: guest %d is ready\n", i)
		}
		return err
	}); err != nil {
		return nil, err
	}
	figures = append(figures, one("crowd_start", "s", 0, fmt.Sprintf("%d guests on one node, all Ready", n), time.Since(began).Seconds()))
	if err := pause(ctx, watched); err != nil { // what they woke goes to rest
		return figures, err
	}

	before, err := b.berth(ctx, token)
	if err != nil {
		return figures, err
	}
	if err := pause(ctx, watched); err != nil {
		return figures, err
	}
	after, err := b.berth(ctx, token)
	if err != nil {
		return figures, err
	}
	agent := "agent on " + b.node
	was, is := before[agent], after[agent]
	writes := 0.0
	for name, m := range after {
		writes += m.writes() - before[name].writes()
	}
	seconds := watched.Seconds()
	figures = append(figures,
		one("crowd_agent_rss", "MiB", 40, "", is.value("process_resident_memory_bytes")/mebi),
		one("crowd_agent_cpu", "%", 1, "of a core", (is.value("process_cpu_seconds_total")-was.value("process_cpu_seconds_total"))/seconds*100),
		one("crowd_writes", "1/s", 0.7, "operators and agents, their leases included", writes/seconds),
	)
	return figures, each(n, many, func(i int) error {
		_, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vms[i])
		return err
	})
}

// writes is how many requests a process made that write. Two of them it made for whoever reads its metrics.
func (all samples) writes() float64 {
	return all.sum("rest_client_requests_total", func(labels map[string]string) bool {
		return labels["method"] != "GET"
	})
}

// berth reads the metrics of all agents and operators.
func (b *bench) berth(ctx context.Context, token string) (map[string]samples, error) {
	var pods corev1.PodList
	if err := b.List(ctx, &pods, client.InNamespace(systemNamespace)); err != nil {
		return nil, err
	}
	all := map[string]samples{}
	for _, pod := range pods.Items {
		name, port := "agent on "+pod.Spec.NodeName, 9760
		if pod.Labels["app.kubernetes.io/name"] == "berth-operator" {
			name, port = pod.Name, 8443
		}
		m, err := scrape(ctx, ours, fmt.Sprintf("https://%s:%d/metrics", pod.Status.PodIP, port), token)
		if err != nil {
			return nil, err
		}
		all[name] = m
	}
	return all, nil
}

// lightBerths has berths of this namespace request little, so that a crowd of them finds room on a machine that has not
// got the memory that each might take; their limits stay. It returns how to take that back.
func (b *bench) lightBerths(ctx context.Context) (func() error, error) {
	object := func(kind string, spec map[string]any) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": map[string]any{"name": b.ns}, "spec": spec,
		}}
	}
	made := []client.Object{
		object("MutatingAdmissionPolicy", map[string]any{
			"failurePolicy": "Fail", "reinvocationPolicy": "Never",
			"matchConstraints": map[string]any{
				"namespaceSelector": map[string]any{"matchLabels": map[string]any{corev1.LabelMetadataName: b.ns}},
				"resourceRules": []any{map[string]any{
					"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE"}, "resources": []any{"pods"},
				}},
			},
			"mutations": []any{map[string]any{"patchType": "JSONPatch", "jsonPatch": map[string]any{
				"expression": `[JSONPatch{op: "replace", path: "/spec/containers/0/resources/requests/memory", value: "64Mi"},
					JSONPatch{op: "replace", path: "/spec/containers/0/resources/requests/cpu", value: "1m"}]`,
			}}},
		}),
		object("MutatingAdmissionPolicyBinding", map[string]any{"policyName": b.ns}),
	}
	for _, o := range made {
		if err := b.Create(ctx, o); err != nil {
			return nil, err
		}
	}
	for _, kind := range []string{"ClusterRole", "ClusterRoleBinding"} {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind}}
		o.SetName("metrics-reader-" + b.ns)
		made = append(made, o)
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		var errs []error
		for _, o := range made {
			errs = append(errs, b.Delete(ctx, o))
		}
		return errors.Join(errs...)
	}, nil
}
