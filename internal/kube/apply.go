package kube

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/berth-dev/berth/internal/fault"
)

// Field managers: who owns which part of a status.
const (
	OperatorManager = "berth-operator"
	AgentManager    = "berth-agent"
)

// cacheLag is how far the cache may be behind a write of ours. For so long the same is not written again.
const cacheLag = 2 * time.Second

// StatusWriter writes a manager's part of statuses, and only what differs.
type StatusWriter struct {
	Client  client.Client
	Manager string

	once   sync.Once
	recent *cache.Expiring // what was written last to the objects of these UIDs
}

// Write makes the manager's part of obj's status what want says, if have, that
// part as the cache has it, differs. It returns whether it wrote.
func (w *StatusWriter) Write(ctx context.Context, obj client.Object, want, have any) (bool, error) {
	w.once.Do(func() { w.recent = cache.NewExpiring() })
	last, _ := w.recent.Get(obj.GetUID())
	if equality.Semantic.DeepEqual(want, have) || ignoringTransitionTimes.DeepEqual(last, want) {
		return false, nil
	}
	if err := w.apply(ctx, obj, want); err != nil {
		return false, err
	}
	w.recent.Set(obj.GetUID(), want, cacheLag)
	return true, nil
}

// ignoringTransitionTimes compares as equality.Semantic does, but not when conditions changed: with a cache that is behind, they seem to
// have done so just now.
var ignoringTransitionTimes = func() conversion.Equalities {
	e := equality.Semantic.Copy()
	if err := e.AddFunc(func(a, b metav1.Condition) bool {
		a.LastTransitionTime = b.LastTransitionTime
		return a == b
	}); err != nil {
		panic(err) // it is no comparison
	}
	return e
}()

// apply writes by server-side apply: what the manager owned before and left out
// now is removed. It fails with a conflict if the object was deleted and created again meanwhile.
func (w *StatusWriter) apply(ctx context.Context, obj client.Object, owned any) error {
	status, err := runtime.DefaultUnstructuredConverter.ToUnstructured(owned)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	gvk, err := apiutil.GVKForObject(obj, w.Client.Scheme())
	if err != nil {
		return fmt.Errorf("naming the kind of %T: %w", obj, err)
	}
	patch := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	patch.SetGroupVersionKind(gvk)
	patch.SetNamespace(obj.GetNamespace())
	patch.SetName(obj.GetName())
	patch.SetUID(obj.GetUID())
	write := func() error {
		return w.Client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(patch), client.FieldOwner(w.Manager), client.ForceOwnership)
	}
	for err = write(); removeUndeclared(patch, err); err = write() { // it may tell of one field at a time
	}
	return fault.Doing(err, "writing status of %s %s", gvk.Kind, client.ObjectKeyFromObject(obj))
}

// undeclared finds fields that the CRD, which is older than this program, does not have. The API server has no other
// sign of them than these words of sigs.k8s.io/structured-merge-diff, and refuses all that comes with them.
var undeclared = regexp.MustCompile(`\.(status(?:[.a-zA-Z0-9]|\[[^]]*])+): field not declared in schema`)

// element is which one of a list it was in, as in .status.images[digest="sha256:…"].lastUsed.
var element = regexp.MustCompile(`\[[^]]*]`)

// removeUndeclared takes such fields out of a patch, and tells whether there were any. They are written once the CRD has them.
func removeUndeclared(patch *unstructured.Unstructured, refusal error) (removed bool) {
	if !apierrors.IsInternalError(refusal) {
		return false
	}
	for _, found := range undeclared.FindAllStringSubmatch(refusal.Error(), -1) {
		removed = remove(patch.Object, strings.Split(element.ReplaceAllString(found[1], ""), ".")) || removed
	}
	return removed
}

// remove takes a field out of an object, of a list's every element, and tells whether any had it.
func remove(from any, field []string) (removed bool) {
	switch from := from.(type) {
	case []any:
		for _, one := range from {
			removed = remove(one, field) || removed
		}
	case map[string]any:
		if len(field) > 1 {
			return remove(from[field[0]], field[1:])
		}
		_, removed = from[field[0]]
		delete(from, field[0])
	}
	return removed
}
