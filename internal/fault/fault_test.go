package fault

import (
	"errors"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func TestDoingKeepsClassAndCause(t *testing.T) {
	if err := Doing(nil, "reading %s", "x"); err != nil {
		t.Errorf("of nothing it made %v", err)
	}
	cause := NewUser(v1alpha1.ReasonSecretMissing, errors.New("it is missing"))
	err := Doing(cause, "reading %s at 100%%", "x")
	if got := err.Error(); got != "reading x at 100%: it is missing" || !errors.Is(err, cause) || ClassOf(err) != User {
		t.Errorf("got %q, of class %d", got, ClassOf(err))
	}
}

func TestNothingIsNoFault(t *testing.T) {
	if err := errors.Join(NewUser(v1alpha1.ReasonSecretMissing, nil), NewTransient(v1alpha1.ReasonStoreFull, nil)); err != nil {
		t.Errorf("of nothing it made %v", err)
	}
}
