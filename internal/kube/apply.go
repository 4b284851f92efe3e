package kube

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Field managers: who owns which part of a status.
const (
	OperatorManager = "berth-operator"
	AgentManager    = "berth-agent"
)

// ApplyStatus writes owned, all that manager owns of obj's status, by
// server-side apply: what it owned before and left out now is removed. It fails
// with a conflict if the object was deleted and made anew meanwhile.
func ApplyStatus(ctx context.Context, c client.Client, obj client.Object, owned any, manager string) error {
	status, err := runtime.DefaultUnstructuredConverter.ToUnstructured(owned)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	gvk, err := apiutil.GVKForObject(obj, c.Scheme())
	if err != nil {
		return fmt.Errorf("naming the kind of %T: %w", obj, err)
	}
	patch := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	patch.SetGroupVersionKind(gvk)
	patch.SetNamespace(obj.GetNamespace())
	patch.SetName(obj.GetName())
	patch.SetUID(obj.GetUID())
	err = c.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(patch), client.FieldOwner(manager), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("writing status of %s %s: %w", gvk.Kind, client.ObjectKeyFromObject(obj), err)
	}
	return nil
}
