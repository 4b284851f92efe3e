package namespace

import (
	"context"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

// newUTS makes a namespace with a host name of its own.
func newUTS(t *testing.T, name string) *os.File {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: it enters namespaces")
	}
	own, err := os.Open("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ns, err := In(t.Context(), own, unix.CLONE_NEWUTS, func() (*os.File, error) {
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWUTS), unix.Sethostname([]byte(name))); err != nil {
			return nil, err
		}
		return os.Open("/proc/thread-self/ns/uts")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// TestNobodyElseIsThere: of many who work in two namespaces and in none, each sees its own.
func TestNobodyElseIsThere(t *testing.T) {
	outside, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	one, other := newUTS(t, "one"), newUTS(t, "other")
	done := make(chan error)
	for range 50 {
		for want, ns := range map[string]*os.File{"one": one, "other": other, outside: nil} {
			go func() {
				seen, err := outside, error(nil)
				if ns == nil {
					seen, err = os.Hostname()
				} else {
					seen, err = In(t.Context(), ns, unix.CLONE_NEWUTS, os.Hostname)
				}
				if seen != want {
					err = errors.Join(err, errors.New("in "+want+" the host is "+seen))
				}
				done <- err
			}()
		}
	}
	for range 150 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAnotherKind(t *testing.T) {
	worked := func() (bool, error) { return true, nil }
	if did, err := In(t.Context(), newUTS(t, "one"), unix.CLONE_NEWNET, worked); did || !errors.Is(err, unix.EINVAL) {
		t.Errorf("work is done %t, %v", did, err)
	}
}

// closer tells when it is closed.
type closer chan struct{}

func (c closer) Close() error {
	close(c)
	return nil
}

func TestWhatComesTooLateIsClosed(t *testing.T) {
	ns := newUTS(t, "one")
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	late, goOn := make(closer), make(chan struct{})
	got, err := In(ctx, ns, unix.CLONE_NEWUTS, func() (closer, error) {
		cancel(enough)
		<-goOn
		return late, nil
	})
	if got != nil || !errors.Is(err, enough) {
		t.Errorf("it ends with %v, %v", got, err)
	}
	close(goOn)
	<-late
}
