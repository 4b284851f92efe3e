package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/internal/kube"
)

// bench is a namespace of its own in the lab.
type bench struct {
	client.WithWatch
	clients kubernetes.Interface // for logs and DaemonSets
	config  *rest.Config
	ns      string
	nodes   []string
	node    string // the first, on which is measured
}

func open(ctx context.Context) (*bench, error) {
	path := os.Getenv("KUBECONFIG")
	nodes := strings.Fields(os.Getenv("LAB_NODES"))
	if path == "" || len(nodes) == 0 {
		return nil, errors.New(`no lab: make lab-up, then eval "$(make -s lab-env)"`)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 200, 400
	c, err := client.NewWithWatch(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		return nil, err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-"}}
	if err := c.Create(ctx, ns); err != nil {
		return nil, fmt.Errorf("making namespace: %w", err)
	}
	return &bench{WithWatch: c, clients: clients, config: config, ns: ns.Name, nodes: nodes, node: nodes[0]}, nil
}

func (b *bench) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := b.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: b.ns}}); err != nil {
		fmt.Fprintln(os.Stderr, "bench: deleting namespace:", err)
	}
}

// timed creates an object and returns how long it took until it was as wanted, by the API's word.
func timed[L client.ObjectList, O client.Object](ctx context.Context, b *bench, list L, o O, is func(O) bool) (time.Duration, error) {
	w, err := b.Watch(ctx, list, &client.ListOptions{Namespace: b.ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", o.GetName())})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	if err := b.Create(ctx, o); err != nil {
		return 0, err
	}
	for e := range w.ResultChan() {
		if seen, ok := e.Object.(O); ok && is(seen) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("waiting for %s: %w", o.GetName(), ctx.Err())
}

// settle waits until kubelet, which looks at containers once a second, has told all that there is to tell of a start:
// nobody deletes what has just come, and an end that begins before has to wait for that. It ends at any moment between
// two such looks.
func settle() { time.Sleep(3*time.Second + rand.N(time.Second)) } //nolint:gosec // no secret

// gone deletes an object and waits until it is no more.
func gone[L client.ObjectList](ctx context.Context, b *bench, list L, o client.Object) (time.Duration, error) {
	w, err := b.Watch(ctx, list, &client.ListOptions{Namespace: b.ns, FieldSelector: fields.OneTermEqualSelector("metadata.name", o.GetName())})
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	if err := b.Delete(ctx, o); err != nil {
		return 0, err
	}
	for e := range w.ResultChan() {
		if e.Type == "DELETED" {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("waiting for the end of %s: %w", o.GetName(), ctx.Err())
}

// onNode runs a command on the machine of the node on which is measured.
func (b *bench) onNode(ctx context.Context, stdin string, command ...string) (string, error) {
	return onNode(ctx, b.node, stdin, command...)
}

func onNode(ctx context.Context, node, stdin string, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "lab", append([]string{"exec", node, "--"}, command...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s on %s: %w: %s", command[0], node, err, out)
	}
	return string(out), nil
}
