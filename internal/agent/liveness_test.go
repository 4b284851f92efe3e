package agent

import (
	"context"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// TestWorkersThatAllHang: one that works is enough to be alive.
func TestWorkersThatAllHang(t *testing.T) {
	begun, end := make(chan struct{}), make(chan struct{})
	now := time.Now()
	l := &liveness{workers: 2, now: func() time.Time { return now }}
	l.reconciler = reconcile.TypedFunc[types.UID](func(context.Context, types.UID) (ctrl.Result, error) {
		begun <- struct{}{}
		<-end
		return ctrl.Result{}, nil
	})
	done := make(chan error)
	look := func(uid types.UID) {
		go func() { _, err := l.Reconcile(t.Context(), uid); done <- err }()
		<-begun
	}
	look("a")
	now = now.Add(2 * stuckAfter)
	if err := l.Check(nil); err != nil {
		t.Errorf("with a worker that is free: %v", err)
	}
	look("b")
	if err := l.Check(nil); err != nil {
		t.Errorf("with one that has just begun: %v", err)
	}
	now = now.Add(2 * stuckAfter)
	if err := l.Check(nil); err == nil {
		t.Error("both hang, and it is alive")
	}
	close(end)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := l.Check(nil); err != nil {
		t.Errorf("when they go on: %v", err)
	}
}
