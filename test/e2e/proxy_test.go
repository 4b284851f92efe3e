package e2e

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-dev/berth/test/env"
	"github.com/berth-dev/berth/test/proxy"
)

// spoilSocket has this program be a proxy, on a node: agents ask who is at the other end of a socket, and it must be a
// process that they can see.
const spoilSocket = "BERTH_E2E_SPOIL_SOCKET"

func TestMain(m *testing.M) {
	if socket := os.Getenv(spoilSocket); socket != "" {
		if err := proxy.Serve(socket, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "100"); err != nil { // we have our own order
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// spoiler is a proxy in front of a node's libvirtd.
type spoiler struct {
	l      *lab
	orders io.WriteCloser
	told   atomic.Value // its last word: a fault, and how many pieces it has spoilt
	end    func()
}

// spoilLibvirt has a node's agent talk to libvirtd through a proxy until its end, or the test's.
func (l *lab) spoilLibvirt(node string) *spoiler {
	l.Helper()
	self, err := os.Executable()
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command("lab", "exec", node, "--", "env", spoilSocket+"=/run/libvirt/libvirt-sock", self)
	s := &spoiler{l: l}
	if s.orders, err = cmd.StdinPipe(); err != nil {
		l.Fatal(err)
	}
	told, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(told); lines.Scan(); {
			s.told.Store(lines.Text())
		}
	}()
	s.end = sync.OnceFunc(func() {
		_ = s.orders.Close()
		<-read
		if err := cmd.Wait(); err != nil {
			l.Errorf("the proxy of libvirtd: %v", err)
		}
	})
	l.Cleanup(s.end)
	victim{l, "berth-agent", node}.revive() // it is connected past the proxy
	return s
}

// spoil has libvirtd's answers go through a fault, and waits until more than so many have.
func (s *spoiler) spoil(fault string, more int) {
	s.l.Helper()
	if _, err := fmt.Fprintln(s.orders, fault); err != nil {
		s.l.Fatalf("ordering %q from the proxy of libvirtd: %v", fault, err)
	}
	env.Eventually(s.l, fmt.Sprintf("more than %d answers to be %s", more, fault), func() bool {
		told, _ := s.told.Load().(string)
		var is string
		var pieces int
		_, err := fmt.Sscan(told, &is, &pieces)
		return err == nil && is == fault && pieces > more
	})
}
