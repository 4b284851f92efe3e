package e2e

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-dev/berth/test/brokendisk"
	"github.com/berth-dev/berth/test/env"
	"github.com/berth-dev/berth/test/proxy"
)

// spoilSocket and breakDisk have this program be a proxy, or a disk, on a node. Agents ask who is at the other end of a
// socket, and it must be a process that they can see.
const (
	spoilSocket = "BERTH_E2E_SPOIL_SOCKET"
	breakDisk   = "BERTH_E2E_BREAK_DISK"
)

func TestMain(m *testing.M) {
	flag.Parse()
	err := flag.Set("test.parallel", "100") // we have our own order
	if socket := os.Getenv(spoilSocket); socket != "" {
		err = proxy.Serve(socket, os.Stdin, os.Stdout)
	} else if directory := os.Getenv(breakDisk); directory != "" {
		err = brokendisk.Serve(directory+".real", directory, os.Stdin, os.Stdout)
	} else if err == nil {
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// saboteur is this program on a node, between two parts there.
type saboteur struct {
	*lab
	orders io.WriteCloser
	told   atomic.Value // its last word
	end    func()
}

// sabotage has this program be what a variable says, on a node, until its end or the test's.
func (l *lab) sabotage(node, variable, value string) *saboteur {
	l.Helper()
	self, err := os.Executable()
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command("lab", "exec", node, "--", "env", variable+"="+value, self)
	s := &saboteur{lab: l}
	if s.orders, err = cmd.StdinPipe(); err != nil {
		l.Fatal(err)
	}
	told, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
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
			l.Errorf("%s %s on node %s: %v: %s", variable, value, node, err, complaint.String())
		}
	})
	l.Cleanup(s.end)
	return s
}

// order has it do something, and waits until it tells that it has.
func (s *saboteur) order(what string) {
	s.Helper()
	s.orderUntil(what, func(told string) bool { return told == what })
}

func (s *saboteur) orderUntil(what string, told func(string) bool) {
	s.Helper()
	if _, err := fmt.Fprintln(s.orders, what); err != nil {
		s.Fatalf("ordering %q: %v", what, err)
	}
	env.Eventually(s, "the order to be carried out: "+what, func() bool {
		last, _ := s.told.Load().(string)
		return told(last)
	})
}

// spoilLibvirt has a node's agent talk to libvirtd through a proxy.
func (l *lab) spoilLibvirt(node string) *saboteur {
	l.Helper()
	s := l.sabotage(node, spoilSocket, "/run/libvirt/libvirt-sock")
	victim{l, "berth-agent", node}.revive() // it is connected past the proxy
	return s
}

// spoil has libvirtd's answers go through a fault, and waits until more than so many have.
func (s *saboteur) spoil(fault string, more int) {
	s.Helper()
	s.orderUntil(fault, func(told string) bool {
		var is string
		var pieces int
		_, err := fmt.Sscan(told, &is, &pieces)
		return err == nil && is == fault && pieces > more
	})
}
