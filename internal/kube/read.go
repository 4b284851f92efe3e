package kube

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Read returns the object of that name, nil when there is none.
func Read[T any, O interface {
	*T
	client.Object
}](ctx context.Context, from client.Reader, key types.NamespacedName) (O, error) {
	var object T
	err := from.Get(ctx, key, O(&object))
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %T %s: %w", object, key.Name, err)
	}
	return &object, nil
}
