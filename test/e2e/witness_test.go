package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

// witness takes every frame that goes in or out by the interfaces of a network namespace.
type witness struct {
	l  *lab
	fd int
	// mac and ip are the only honest senders of what leaves; of a node, which has many, they are unset.
	mac net.HardwareAddr
	ip  netip.Addr

	mu    sync.Mutex
	kinds map[string]bool // of marked frames
	lies  []string        // frames of other senders that left
}

// frameMark is how a hostile guest names the kind of a frame in the frame itself.
var frameMark = regexp.MustCompile(`<hostile: ([^<>]{1,64})>`)

// watchFrames is a witness in the network namespace of a process. With an address, it is a pod's, and what leaves by
// eth0 must be from there.
func (l *lab) watchFrames(pid string, ip string) *witness {
	l.Helper()
	w := &witness{l: l, kinds: map[string]bool{}}
	const all = unix.ETH_P_ALL << 8 // in network order
	err := inNetwork("/proc/"+pid+"/ns/net", func() (err error) {
		to := &unix.SockaddrLinklayer{Protocol: all}
		if ip != "" {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			to.Ifindex, w.mac, w.ip = eth0.Index, eth0.HardwareAddr, netip.MustParseAddr(ip)
		}
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20), // of all that a node does
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(w.fd, to),
		)
	})
	if err != nil {
		l.Fatalf("opening a packet socket in the network of process %s: %v", pid, err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		w.read(stop)
	}()
	l.Cleanup(func() {
		close(stop)
		<-done
		_ = unix.Close(w.fd)
	})
	return w
}

// inNetwork does work on a thread in a network namespace, which ends with it.
func inNetwork(path string, work func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		ns, err := os.Open(path)
		if err == nil {
			err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
		}
		if err == nil {
			err = work()
		}
		done <- err
	}()
	return <-done
}

func (w *witness) String() string {
	if w.mac == nil {
		return "the berth for its node"
	}
	return "the berth"
}

func (w *witness) read(stop <-chan struct{}) {
	buf := make([]byte, 65536)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if ll, ok := from.(*unix.SockaddrLinklayer); err == nil && ok && n >= 14 {
			w.take(slices.Clone(buf[:n]), ll.Pkttype == unix.PACKET_OUTGOING)
		} else if err != nil && !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR) {
			w.l.Errorf("the witness is blind: %v", err)
			return
		}
	}
}

func (w *witness) take(f []byte, leaves bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, found := range frameMark.FindAllSubmatch(f[14:], -1) {
		w.kinds[string(found[1])] = true
	}
	if leaves && w.mac != nil && (!slices.Equal(f[6:12], w.mac) || !w.isOwn(f)) && len(w.lies) < 10 {
		w.lies = append(w.lies, fmt.Sprintf("% x", f[:min(len(f), 60)]))
	}
}

// isOwn: the frame is from the pod's own address. Of IPv6, which pods' networks here lack, there is nothing but what the
// kernel says to find that out: neighbour discovery and group membership. RFC 4861, 3810.
func (w *witness) isOwn(f []byte) bool {
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_IP:
		return len(f) >= 34 && slices.Equal(f[26:30], w.ip.AsSlice())
	case unix.ETH_P_ARP:
		return len(f) >= 42 && slices.Equal(f[22:28], w.mac) && slices.Equal(f[28:32], w.ip.AsSlice())
	case unix.ETH_P_IPV6:
		const routerAdvertisement = 134
		return len(f) > 54 && f[54] != routerAdvertisement && !frameMark.Match(f)
	}
	return false
}

// await waits until a frame of that kind was seen. Frames keep their order: whatever was sent before it was seen, too, if
// it came this far.
func (w *witness) await(kind string) {
	w.l.Helper()
	env.Eventually(w.l, "a frame marked "+kind, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.kinds[kind]
	})
}

// sawOnly: no frames came by but those of the kinds, and none from a false sender.
func (w *witness) sawOnly(honest ...string) {
	w.l.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for kind := range w.kinds {
		if !slices.Contains(honest, kind) {
			w.l.Errorf("a frame left %s: %s", w, kind)
		}
	}
	for _, kind := range honest {
		if !w.kinds[kind] {
			w.l.Errorf("no frame left %s: %s", w, kind)
		}
	}
	for _, f := range w.lies {
		w.l.Errorf("a frame that is not the pod's left %s: %s", w, f)
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil || stats.Drops > 0 {
		w.l.Errorf("the witness has missed %+v, %v", stats, err)
	}
}
