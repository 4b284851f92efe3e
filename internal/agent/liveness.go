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

	mu   sync.Mutex
	busy map[types.UID]time.Time // the guests that are looked at, and since when; none by two workers
}

// Reconcile has the reconciler look at a guest.
func (l *liveness) Reconcile(ctx context.Context, uid types.UID) (ctrl.Result, error) {
	l.mu.Lock()
	l.busy[uid] = l.now()
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, uid)
	}()
	return l.reconciler.Reconcile(ctx, uid)
}

// Check is a healthz.Checker.
func (l *liveness) Check(*http.Request) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	stuck := 0
	for _, since := range l.busy {
		if l.now().Sub(since) > stuckAfter {
			stuck++
		}
	}
	if stuck >= l.workers {
		return fmt.Errorf("all %d workers have looked at one guest each for more than %v", stuck, stuckAfter)
	}
	return nil
}
