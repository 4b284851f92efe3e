package controllers

import (
	"testing"

	"k8s.io/client-go/rest"
)

// TestLeaseAlone: the deadline of the lease's requests is theirs only. It would end every watch of the operator.
func TestLeaseAlone(t *testing.T) {
	config := &rest.Config{Host: "https://127.0.0.1:1", UserAgent: "mine"}
	lock, err := (&Options{Identity: "a", Namespace: "b"}).lock(config)
	if err != nil || lock == nil {
		t.Fatalf("lock is %v, %v", lock, err)
	}
	if config.Timeout != 0 || config.UserAgent != "mine" {
		t.Errorf("the lease changed what others are made from: timeout %v, user agent %q", config.Timeout, config.UserAgent)
	}
}
