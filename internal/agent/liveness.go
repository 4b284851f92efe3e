package agent

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// stuckAfter is for how long a worker may look at one guest. A step has two minutes, and few take seconds.
const stuckAfter = 10 * time.Minute

// liveness tells kubelet when no guest is cared for any more, though the process answers: all workers hang, as in calls
// that no deadline ends.
type liveness struct {
	reconciler reconcile.TypedReconciler[types.UID]
	workers    int
	now        func() time.Time

	busy sync.Map // since when (time.Time), by the UIDs of the guests that are looked at; none is by two workers
}

// Reconcile has the reconciler look at a guest.
func (l *liveness) Reconcile(ctx context.Context, uid types.UID) (ctrl.Result, error) {
	l.busy.Store(uid, l.now())
	defer l.busy.Delete(uid)
	return l.reconciler.Reconcile(ctx, uid)
}

// Check is a healthz.Checker.
func (l *liveness) Check(*http.Request) error {
	stuck := 0
	for _, since := range l.busy.Range {
		if l.now().Sub(since.(time.Time)) > stuckAfter {
			stuck++
		}
	}
	if stuck >= l.workers {
		return fmt.Errorf("all %d workers have looked at one guest each for more than %v", stuck, stuckAfter)
	}
	return nil
}
