package host

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// Reconciler writes labels of nodes from what their hosts report.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
}

// snapshot is a node and its host; either may be missing.
type snapshot struct {
	node *corev1.Node
	host *v1alpha1.VirtualMachineHost
}

// Reconcile brings the labels of one node, and its host's existence, up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	seen, err := r.observe(ctx, req.Name)
	if err != nil {
		return ctrl.Result{}, err
	}
	switch {
	case seen.node == nil && seen.host != nil:
		err = r.deleteHost(ctx, seen.host)
	case seen.node != nil:
		err = r.label(ctx, seen.node, decide(seen))
	}
	return kube.Outcome(err, 0)
}

// Setup registers the reconciler and its watches.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.VirtualMachineHost{}).
		Watches(&corev1.Node{}, &handler.EnqueueRequestForObject{}).
		Complete(r)
}

func (r *Reconciler) observe(ctx context.Context, name string) (seen snapshot, err error) {
	var node corev1.Node
	if err = r.Client.Get(ctx, types.NamespacedName{Name: name}, &node); err == nil {
		seen.node = &node
	} else if client.IgnoreNotFound(err) != nil {
		return seen, fmt.Errorf("reading node: %w", err)
	}
	var host v1alpha1.VirtualMachineHost
	if err = r.Client.Get(ctx, types.NamespacedName{Name: name}, &host); err == nil {
		seen.host = &host
	}
	return seen, client.IgnoreNotFound(err)
}

// decide returns the labels of *.berth.dev that the node should have.
func decide(seen snapshot) map[string]string {
	labels := map[string]string{}
	if seen.host == nil {
		return labels
	}
	status := &seen.host.Status
	switch condition.Reason(status.Conditions, v1alpha1.ConditionHostReady) {
	case v1alpha1.ReasonHostReady:
		labels[berth.LabelHost], labels[berth.LabelReady] = "true", "true"
	case v1alpha1.ReasonLibvirtUnreachable, v1alpha1.ReasonStoreFailed, v1alpha1.ReasonStoreFull:
		if had := seen.node.Labels[berth.LabelHost]; had != "" { // this passes: keep what the label was
			labels[berth.LabelHost] = had
		}
	}
	if status.Acceleration == v1alpha1.AccelerationKVM || status.Acceleration == v1alpha1.AccelerationEmulation {
		labels[berth.LabelAcceleration] = string(status.Acceleration)
	}
	for _, model := range status.CPUModels { // an agent reported it: take only what is a label name
		if key := berth.LabelCPUModel + model; len(validation.IsQualifiedName(key)) == 0 {
			labels[key] = "true"
		}
	}
	return labels
}

// isBerthLabel: the label is in a domain that only the operator writes.
func isBerthLabel(key string) bool {
	prefix, _, _ := strings.Cut(key, "/")
	return strings.HasSuffix(prefix, ".berth.dev")
}

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch

func (r *Reconciler) label(ctx context.Context, node *corev1.Node, want map[string]string) error {
	change := map[string]any{}
	for key, value := range want {
		if node.Labels[key] != value {
			change[key] = value
		}
	}
	for key := range maps.Keys(node.Labels) {
		if _, wanted := want[key]; isBerthLabel(key) && !wanted {
			change[key] = nil
		}
	}
	if len(change) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": node.UID, "labels": change}})
	if err != nil {
		return fmt.Errorf("encoding labels: %w", err)
	}
	if err := r.Client.Patch(ctx, node.DeepCopy(), client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("labelling node %s: %w", node.Name, err)
	}
	return nil
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch;delete

func (r *Reconciler) deleteHost(ctx context.Context, host *v1alpha1.VirtualMachineHost) error {
	err := r.Client.Delete(ctx, host, client.Preconditions{UID: &host.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting host %s: %w", host.Name, err)
	}
	return nil
}
