package kube

import (
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestOutcome(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	tests := []struct {
		name    string
		err     error
		wake    time.Duration
		after   time.Duration
		retried bool // by the queue, with backoff
	}{
		{"all is well", nil, 0, 0, false},
		{"all is well until then", nil, time.Hour, time.Hour, false},
		{"the cache was behind", fmt.Errorf("writing: %w", apierrors.NewConflict(pods, "a", errors.New("changed"))), 0, 50 * time.Millisecond, false},
		{"the object went", apierrors.NewNotFound(pods, "a"), 0, 50 * time.Millisecond, false},
		{"the user must correct it", fault.NewUser(v1alpha1.ReasonBerthRefused, errors.New("quota")), 0, userErrorRetry, false},
		{"the user must, and there is something to see to before", fault.NewUser(v1alpha1.ReasonBerthRefused, errors.New("quota")), time.Second, time.Second, false},
		{"the user must, and there is something to see to much later", fault.NewUser(v1alpha1.ReasonBerthRefused, errors.New("quota")), time.Hour, userErrorRetry, false},
		{"it may pass", fault.NewTransient(v1alpha1.ReasonPodNameTaken, errors.New("ending")), 0, 0, true},
		{"a bug of ours", errors.New("oops"), time.Second, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Outcome(tt.err, tt.wake)
			if got.RequeueAfter != tt.after || (err != nil) != tt.retried {
				t.Errorf("again after %s, error %v; want %s, retried %t", got.RequeueAfter, err, tt.after, tt.retried)
			}
		})
	}
}

func TestSooner(t *testing.T) {
	for _, tt := range []struct{ a, b, want time.Duration }{{0, 0, 0}, {0, 2, 2}, {2, 0, 2}, {1, 2, 1}, {2, 1, 1}} {
		if got := MinWait(tt.a, tt.b); got != tt.want {
			t.Errorf("the sooner of %d and %d is %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}
