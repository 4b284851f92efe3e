package host

import (
	"context"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/kube"
)

// Reconciler writes labels of nodes from what their hosts report.
type Reconciler struct {
	// Client reads from the cache and writes to the API server.
	Client client.Client
}

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinehosts,verbs=get;list;watch;delete

// Reconcile brings the labels of one node, and its host's existence, up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	node, err := kube.Read[corev1.Node](ctx, r.Client, req.NamespacedName)
	if err != nil {
		return ctrl.Result{}, err
	}
	host, err := kube.Read[v1alpha1.VirtualMachineHost](ctx, r.Client, req.NamespacedName)
	switch {
	case err != nil:
	case node != nil:
		err = r.label(ctx, node, decide(node, host))
	case host != nil:
		err = r.Client.Delete(ctx, host, client.Preconditions{UID: &host.UID})
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

// decide returns the labels of *.berth.dev that the node should have; it may have no host.
func decide(node *corev1.Node, host *v1alpha1.VirtualMachineHost) map[string]string {
	labels := map[string]string{}
	if host == nil {
		return labels
	}
	status := &host.Status
	switch condition.Reason(status.Conditions, v1alpha1.ConditionHostReady) {
	case v1alpha1.ReasonHostReady:
		labels[berth.LabelHost], labels[berth.LabelReady] = "true", "true"
	case v1alpha1.ReasonLibvirtUnreachable, v1alpha1.ReasonStoreFailed, v1alpha1.ReasonStoreFull:
		if had := node.Labels[berth.LabelHost]; had != "" { // this passes: keep what the label was
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

// +kubebuilder:rbac:groups="",resources=nodes,verbs=get;list;watch;patch

func (r *Reconciler) label(ctx context.Context, node *corev1.Node, want map[string]string) error {
	was, now := node.DeepCopy(), node.DeepCopy()
	was.UID = "" // so that the patch has the UID, and changes no other node that has got the name
	maps.DeleteFunc(now.Labels, func(key, _ string) bool {
		prefix, _, _ := strings.Cut(key, "/")
		return strings.HasSuffix(prefix, ".berth.dev") // domains that only the operator writes
	})
	maps.Copy(want, now.Labels)
	if now.Labels = want; maps.Equal(now.Labels, node.Labels) {
		return nil
	}
	return fault.Doing(r.Client.Patch(ctx, now, client.MergeFrom(was)), "labelling node %s", node.Name)
}
