package guesttools

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestWhatIsNoExitCodeIsRefused(t *testing.T) {
	for _, code := range []string{"", "-1", "256", "3x", "0x3", "1e2", " 3", "99999999999999999999"} {
		if err := Exit(code); err == nil || !strings.Contains(err.Error(), "is no exit code") {
			t.Errorf("%q: %v", code, err)
		}
	}
	if err := Exit("255"); !errors.Is(err, errNoPort) {
		t.Errorf("on a machine without the port: %v", err)
	}
}

func TestReadsBeginBehindTheFirstWrite(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	reads := &port{File: r, begins: make(chan struct{})}
	got := make(chan error, 1)
	go func() {
		_, err := reads.Read(make([]byte, 1))
		got <- err
	}()
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		t.Fatalf("it read before anything was written: %v", err)
	default:
	}
	for range 2 { // what comes of the write is the same, here none is possible
		_, _ = reads.Write([]byte("x"))
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
}
