package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/kube"
)

// vmRest is how soon a VirtualMachine is looked for again that is not there yet, or has not made its disk.
const vmRest = 10 * time.Second

// Commits has disks become images: each VirtualMachineCommit has one porter, whose end is its own.
type Commits Reconciler

// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinecommits,verbs=get;list;watch;delete
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinecommits/status,verbs=patch
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachinecommits/finalizers,verbs=update
// +kubebuilder:rbac:groups=berth.dev,resources=virtualmachines,verbs=get;list;watch

// Reconcile brings one VirtualMachineCommit closer to its end. It may be killed at any line.
func (r *Commits) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	c, err := kube.Read[v1alpha1.VirtualMachineCommit](ctx, r.Client, req.NamespacedName)
	if err != nil || c == nil || !c.DeletionTimestamp.IsZero() { // its porter goes with it
		return ctrl.Result{}, err
	}
	var porters corev1.PodList
	if err := r.Client.List(ctx, &porters, client.InNamespace(c.Namespace), client.MatchingFields{indexPorter: string(c.UID)}); err != nil {
		return ctrl.Result{}, fmt.Errorf("reading the porter of commit %s: %w", c.Name, err)
	}
	if c.Status.FinishedAt != nil {
		return r.finish(ctx, c, porters.Items)
	}
	status, wake := c.Status.DeepCopy(), time.Duration(0)
	is := func(done, failed bool, reason v1alpha1.Reason, message string) {
		status.Conditions = condition.MergeTransitionTimes([]metav1.Condition{
			condition.New(v1alpha1.ConditionComplete, done, reason, message), condition.New(v1alpha1.ConditionFailed, failed, reason, message),
		}, c.Status.Conditions, c.Generation, r.Now())
	}
	is(false, false, v1alpha1.ReasonCommitting, "")
	if len(porters.Items) == 0 {
		wake = vmRest
		if reason, why, err := r.begin(ctx, c); err != nil {
			return ctrl.Result{}, err
		} else if reason != "" {
			is(false, false, reason, why)
		}
	} else if p := &porters.Items[0]; p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		reason, message, ended := end(p, v1alpha1.ReasonCommitting)
		if p.Status.Phase == corev1.PodSucceeded && json.Unmarshal([]byte(message), status) == nil {
			is(true, false, v1alpha1.ReasonCommitted, "")
		} else {
			is(false, true, reason, message)
		}
		status.FinishedAt = new(metav1.NewTime(ended))
	} else if placed := berth.Condition(p, corev1.PodScheduled); placed.Status == corev1.ConditionFalse {
		is(false, false, v1alpha1.ReasonUnschedulable, placed.Message)
	}
	if _, err := r.Status.Write(ctx, c, status, &c.Status); err != nil {
		return ctrl.Result{}, err
	}
	return kube.Outcome(nil, wake)
}

// begin makes the porter, where the disk is. A reason says why it cannot yet.
func (r *Commits) begin(ctx context.Context, c *v1alpha1.VirtualMachineCommit) (reason v1alpha1.Reason, why string, err error) {
	vm, err := kube.Read[v1alpha1.VirtualMachine](ctx, r.Client, types.NamespacedName{Namespace: c.Namespace, Name: c.Spec.VirtualMachineName})
	switch {
	case err != nil:
		return "", "", err
	case vm == nil:
		return v1alpha1.ReasonNothingToCommit, fmt.Sprintf("VirtualMachine %s does not exist: it is awaited.", c.Spec.VirtualMachineName), nil
	case vm.Status.NodeName == "" || !slices.ContainsFunc(vm.Status.Disks, func(d v1alpha1.DiskStatus) bool { return d.Name == c.Spec.DiskName && d.Size != nil }):
		return v1alpha1.ReasonNothingToCommit, fmt.Sprintf("VirtualMachine %s has made no disk %s on a node yet: it is awaited.", vm.Name, c.Spec.DiskName), nil
	}
	pod, err := berth.CommitPorter(c, vm.UID, vm.Status.NodeName, r.Options)
	if err == nil {
		err = r.Client.Create(ctx, pod)
	}
	switch {
	case err == nil, apierrors.IsAlreadyExists(err): // the cache is behind
		return "", "", nil
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err): // a quota, or an admission policy
		return v1alpha1.ReasonBerthRefused, err.Error(), nil
	}
	return "", "", fmt.Errorf("making the porter of commit %s: %w", c.Name, err)
}

// finish deletes the porter of a commit that is over, whose status has what it found out, and the commit, once its time is.
func (r *Commits) finish(ctx context.Context, c *v1alpha1.VirtualMachineCommit, porters []corev1.Pod) (ctrl.Result, error) {
	for i := range porters {
		if err := r.Client.Delete(ctx, &porters[i]); client.IgnoreNotFound(err) != nil {
			return ctrl.Result{}, fmt.Errorf("deleting the porter of commit %s: %w", c.Name, err)
		}
	}
	if c.Spec.TTLSecondsAfterFinished == nil {
		return ctrl.Result{}, nil
	}
	left := time.Duration(*c.Spec.TTLSecondsAfterFinished)*time.Second - r.Now().Sub(c.Status.FinishedAt.Time)
	if left > 0 {
		return kube.Outcome(nil, left)
	}
	return ctrl.Result{}, client.IgnoreNotFound(r.Client.Delete(ctx, c, client.Preconditions{UID: &c.UID}))
}

// Setup registers the reconciler and its watches, after those of the Reconciler, whose index it reads.
func (r *Commits) Setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.VirtualMachineCommit{}).
		Owns(&corev1.Pod{}).
		Complete(r)
}
