package kube

import (
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/internal/fault"
)

// userErrorRetry is how soon an error that only the user can correct is tried again, where nothing can be watched.
const userErrorRetry = 30 * time.Second

// Outcome turns the end of a reconcile into its result. wake is when to look
// again though nothing changed; zero is never.
func Outcome(err error, wake time.Duration) (ctrl.Result, error) {
	switch {
	case err == nil:
		return ctrl.Result{RequeueAfter: wake}, nil
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		// The cache was behind. What it missed comes by watch and wakes us, but a write that lost
		// to somebody else's must be tried again even if nothing else changes.
		return ctrl.Result{RequeueAfter: 50 * time.Millisecond}, nil
	case fault.ClassOf(err) == fault.User:
		return ctrl.Result{RequeueAfter: MinWait(wake, userErrorRetry)}, nil
	default:
		return ctrl.Result{}, err
	}
}

// MinWait is the shorter of two times to wait, of which zero is for ever.
func MinWait(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
