package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	token, tidy, err := b.prepare(ctx)
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
	agents, err := b.workingSets(ctx, b.node, agentName)
	if err != nil {
		return figures, err
	}
	seconds := watched.Seconds()
	figures = append(figures,
		of("crowd_agent_working_set", "MiB", 40, "", agents),
		one("crowd_agent_rss", "MiB", 0, "its program's pages included", is.value("process_resident_memory_bytes")/mebi),
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

// reader is who may read metrics, by its token. It returns how to take that back, too.
// prepare lets this program read metrics, and a node of few CPUs have many guests. It returns how to take that back.
func (b *bench) prepare(ctx context.Context) (token string, tidy func() error, err error) {
	token, forget, err := b.reader(ctx)
	if err != nil {
		return "", nil, err
	}
	back, err := b.shareCPUs(ctx)
	tidy = func() error { return errors.Join(back(), forget()) }
	if err != nil {
		return "", nil, errors.Join(err, tidy())
	}
	return token, tidy, nil
}

func (b *bench) reader(ctx context.Context) (token string, tidy func() error, err error) {
	if token, err = metricsReader(ctx, b, b.ns); err != nil {
		return "", nil, err
	}
	var made []client.Object
	for _, kind := range []string{"ClusterRole", "ClusterRoleBinding"} {
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind}}
		o.SetName("metrics-reader-" + b.ns)
		made = append(made, o)
	}
	return token, func() error { return b.remove(ctx, made) }, nil
}

// shareCPUs has berths request so little of CPUs that a crowd finds room on a small machine: memory alone bounds it then. It
// returns how to take that back.
func (b *bench) shareCPUs(ctx context.Context) (back func() error, err error) {
	set := func(ctx context.Context, value string) error {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "helm", "upgrade", "berth", filepath.Join("charts", "berth"), "--namespace=berth-system",
			"--reset-then-reuse-values", "--set=operator.cpuRequestPerVCPU="+value, "--wait", "--timeout=2m").CombinedOutput()
		if err != nil {
			return fmt.Errorf("helm: %w: %s", err, out)
		}
		return nil
	}
	return func() error { return set(context.WithoutCancel(ctx), "null") }, set(ctx, "1m")
}

// remove deletes objects, also when ctx has ended.
func (b *bench) remove(ctx context.Context, objects []client.Object) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	for _, o := range objects {
		errs = append(errs, b.Delete(ctx, o))
	}
	return errors.Join(errs...)
}
