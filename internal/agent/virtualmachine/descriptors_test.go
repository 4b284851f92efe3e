package virtualmachine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/test/env"
)

// abuser names, in the environment of the test's own binary, the kind of device whose descriptor, number 3, it abuses.
const abuser = "BERTH_TEST_ABUSER"

func TestMain(m *testing.M) {
	if os.Getenv(abuser) != "" {
		abuse(3)
		return
	}
	os.Exit(m.Run())
}

// What an abuser tries to send and to be called.
const (
	rawType      = 0x88b5 // an Ethernet type for experiments
	abstractName = "@berth-test-abuse"
	dhcpPort     = 67
	ownPort      = 6767 // what any process may open
)

// abuse does with a descriptor what a shim could: it has no privilege and cannot gain any. It says what came of what the
// kernel must refuse; of the rest its victims tell.
func abuse(fd int) {
	runtime.LockOSThread()
	tries := func(what string, err error) { fmt.Printf("%s: %v\n", what, err) }
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		tries("no_new_privs", err)
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		tries("eth0", err)
		return
	}
	abusePath(fd, tries)
	tries("unbound", unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, ""))
	tries("bound to eth0", unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0"))
	tries("bound to no index", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0))
	tries("marked", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 1))
	tries("transparent", unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1))
	tries("another port", unix.Bind(fd, &unix.SockaddrInet4{Port: 68}))
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
	sendOut(fd, eth0.Index)

	// Without its peer a datagram socket loses its device, too, and may have another one.
	family := unix.RawSockaddrAny{Addr: unix.RawSockaddr{Family: unix.AF_UNSPEC}}
	_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptrOf(&family), unix.SizeofSockaddrInet4)
	sendOut(fd, eth0.Index)
	_ = unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "eth0")
	sendOut(fd, eth0.Index)
	listen(fd, tries)

	// The namespace of abstract names is that of the network namespace that the socket was made in.
	_ = unix.Bind(fd, &unix.SockaddrUnix{Name: abstractName})
	_ = unix.Listen(fd, 1)
	tries("the host's listener", unix.Connect(fd, &unix.SockaddrUnix{Name: abstractName + "-host"}))
	tries("a datagram to the host's listener", unix.Sendto(fd, []byte("abuse"), unix.MSG_DONTWAIT, &unix.SockaddrUnix{Name: abstractName + "-host"}))
	if peer, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
		tries("a signal to the peer", unix.PidfdSendSignal(peer, 0, nil, 0))
		_, err := unix.PidfdGetfd(peer, 0, 0)
		tries("the peer's descriptors", err)
	}
	fmt.Println("held") // until its victims have been asked
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// abusePath does with a descriptor what could be done with a file by one of its names.
func abusePath(fd int, tries func(string, error)) {
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	opens := func(what, path string, flags int) {
		opened, err := unix.Open(path, flags, 0)
		if err == nil {
			_ = unix.Close(opened)
		}
		tries(what, err)
	}
	tries("another mode", unix.Chmod(path, 0o777))
	tries("another mode of it", unix.Fchmod(fd, 0o777))
	tries("another owner", unix.Chown(path, 65532, 65532))
	tries("another owner of it", unix.Fchown(fd, 65532, 65532))
	tries("another name", unix.Linkat(fd, "", unix.AT_FDCWD, os.TempDir()+"/abuse.sock", unix.AT_EMPTY_PATH))
	name, err := os.Readlink(path)
	if err == nil {
		err = unix.Unlink(name)
	}
	tries("its name removed", err)
	opens("reading it", path, unix.O_RDONLY)
	opens("writing it", path, unix.O_RDWR)
	opens("its directory", path+"/..", unix.O_RDONLY)
	viewer, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = errors.Join(unix.Connect(viewer, &unix.SockaddrUnix{Name: path}), unix.Close(viewer))
	}
	tries("a viewer", err)
}

// sendOut sends by the pod's own interface, in every way.
func sendOut(fd, eth0 int) {
	_ = unix.Sendto(fd, []byte("abuse"), unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: 68, Addr: [4]byte{10, 244, 0, 1}})
	for _, to := range []unix.SockaddrInet4{{Port: 68, Addr: [4]byte{10, 244, 0, 1}}, {Port: 68, Addr: [4]byte{255, 255, 255, 255}}, {Port: 68, Addr: [4]byte{224, 0, 0, 251}}} {
		_ = unix.Sendmsg(fd, []byte("abuse"), unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: int32(eth0)}), &to, unix.MSG_DONTWAIT)
	}
	raw := append(bytes.Repeat([]byte{0xff}, 12), rawType>>8, rawType&0xff)
	raw = append(raw, make([]byte, 46)...)
	_ = unix.Sendto(fd, raw, unix.MSG_DONTWAIT, &unix.SockaddrLinklayer{Ifindex: eth0, Protocol: rawType>>8 | rawType&0xff<<8, Halen: 6})
	_ = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: eth0, Protocol: unix.ETH_P_ALL << 8})
	_, _ = unix.SendmsgN(fd, raw, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

// listen hears what is sent to everybody on the pod's network. What comes to a socket of its own came later.
func listen(fd int, tries func(string, error)) {
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = errors.Join(
			unix.SetsockoptTimeval(own, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}),
			unix.Bind(own, &unix.SockaddrInet4{Port: ownPort}),
		)
	}
	if err != nil {
		tries("a socket of its own", err)
		return
	}
	fmt.Println("listens")
	if _, _, err := unix.Recvfrom(own, make([]byte, 100), 0); err != nil {
		tries("a socket of its own hears", err)
	}
	data := make([]byte, 4096)
	if n, _, err := unix.Recvfrom(fd, data, unix.MSG_DONTWAIT); err == nil && bytes.Contains(data[:n], []byte("outside")) {
		tries("hears the pod's network", nil)
	}
}

// TestDescriptorsAllowNothing hands each descriptor that a shim is ever given to a process with a shim's rights, in a
// berth's network, which may do no more with it than it is given for.
func TestDescriptorsAllowNothing(t *testing.T) {
	l := newAbuseLab(t)
	handedOver := l.descriptors()
	source, err := os.ReadFile("../../berth/shimproto/device.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range regexp.MustCompile(`Kind\w+ Kind = "(.+)"`).FindAllSubmatch(source, -1) {
		if k := shimproto.Kind(kind[1]); handedOver[k] == nil {
			t.Errorf("the guest of this test needs a device of kind %s, too", k)
		}
	}
	for kind, file := range handedOver {
		t.Run(string(kind), func(t *testing.T) {
			// What the kernel must refuse, by kind. A kind that is not here must not be handed over.
			refused, known := map[shimproto.Kind][]string{
				shimproto.KindConsole: {"marked", "the host's listener", "a datagram to the host's listener", "a signal to the peer", "the peer's descriptors"},
				shimproto.KindGuest:   {"marked", "the host's listener", "a datagram to the host's listener", "a signal to the peer", "the peer's descriptors"},
				shimproto.KindExit:    {"marked", "the host's listener", "a datagram to the host's listener", "a signal to the peer", "the peer's descriptors"},
				shimproto.KindDisplay: {"another mode", "another mode of it", "another owner", "another owner of it", "another name", "its name removed", "reading it", "writing it", "its directory", "another port"},
				shimproto.KindDHCP:    {"unbound", "bound to eth0", "bound to no index", "marked", "transparent", "another port", "the host's listener"},
			}[kind]
			if !known {
				t.Fatalf("nobody tries what can be done with the descriptor of a %s", kind)
			}
			got := l.run(t, kind, file)
			for _, what := range refused {
				if i := slices.IndexFunc(got, func(line string) bool { return strings.HasPrefix(line, what+": ") }); i < 0 || strings.HasSuffix(got[i], "<nil>") {
					t.Errorf("%s: was not refused: %q", what, got)
				}
			}
			if kind == shimproto.KindDisplay && !slices.Contains(got, "a viewer: <nil>") { // which it is for
				t.Errorf("it cannot connect: %q", got)
			}
			if info, err := os.Lstat(l.display); err != nil || info.Mode().Perm() != 0o666 {
				t.Errorf("the display's socket: %v, %v", info, err)
			}
			if slices.Contains(got, "hears the pod's network: <nil>") {
				t.Error("it hears what others send on the pod's network")
			}
		})
	}
}

// abuseLab is a berth's network namespace with an interface to the pods' network, another namespace, and a guest's tap.
type abuseLab struct {
	t        *testing.T
	pod, net string
	outside  int // a packet socket on the pods' network
	display  string
	caller   *net.UDPConn
}

func newAbuseLab(t *testing.T) *abuseLab {
	t.Helper()
	if os.Getuid() != 0 {
		env.Missing(t, "needs root")
	}
	l := &abuseLab{t: t, pod: fmt.Sprintf("abuse-pod-%d", os.Getpid()), net: fmt.Sprintf("abuse-net-%d", os.Getpid())}
	for _, name := range []string{l.pod, l.net} {
		l.ip("netns", "add", name)
		t.Cleanup(func() { l.ip("netns", "del", name) })
	}
	for _, command := range []string{
		"link set lo up", "link add eth0 type veth peer name pods netns " + l.net, "addr add 10.244.0.5/24 brd + dev eth0", "link set eth0 up",
		"route add default via 10.244.0.1", "tuntap add dev bttest0 mode tap",
	} {
		l.ip(append([]string{"-n", l.pod}, strings.Fields(command)...)...)
	}
	l.ip("-n", l.net, "addr", "add", "10.244.0.1/24", "brd", "+", "dev", "pods")
	l.ip("-n", l.net, "link", "set", "pods", "up")
	l.in(l.net, func() (err error) {
		if l.outside, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.ETH_P_ALL<<8); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(l.outside, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			return err
		}
		l.caller, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 244, 0, 1), Port: 68})
		return err
	})
	t.Cleanup(func() { _ = unix.Close(l.outside); _ = l.caller.Close() })
	return l
}

func (l *abuseLab) ip(arg ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", arg...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %s", strings.Join(arg, " "), out)
	}
}

// in does work in a network namespace.
func (l *abuseLab) in(netns string, work func() error) {
	l.t.Helper()
	if err := inNamespace("/run/netns/"+netns, work); err != nil {
		l.t.Fatal(err)
	}
}

// inNamespace does work on a thread that ends with it. The main thread does not end, and stays out.
func inNamespace(path string, work func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			done <- inNamespace(path, work)
			runtime.UnlockOSThread()
			return
		}
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

// keepingSession is one with a shim that keeps what it is handed.
type keepingSession struct {
	Session
	netns string
	files map[shimproto.Kind]*os.File
}

func (s keepingSession) NetworkNamespace() (*os.File, error) { return os.Open(s.netns) }

func (s keepingSession) HandOver(_ context.Context, h shimproto.HandOver, open func(*shimproto.Device) (*os.File, error)) error {
	for _, d := range h.Devices {
		file, err := open(&d)
		if err != nil {
			return err
		}
		s.files[d.Kind] = file
	}
	return nil
}

// descriptors are those that the agent hands over for a guest with all kinds of devices.
func (l *abuseLab) descriptors() map[shimproto.Kind]*os.File {
	l.t.Helper()
	consoles, err := console.New(l.t.TempDir())
	if err != nil {
		l.t.Fatal(err)
	}
	m := machine.Machine{UID: vmUID, Name: "web", Display: v1alpha1.DisplayVGA, NICs: []machine.NIC{{
		Name: "default", Tap: "bttest0",
		Address: netip.MustParsePrefix("10.0.2.2/24"), Gateway: netip.MustParseAddr("10.0.2.1"),
	}}}
	r := &Reconciler{Options: Options{Host: Host{Network: podnet.Pods{}, Consoles: consoles, Store: hosttest.New().Store, Facts: facts{}}}}
	user, err := r.user(&m)
	if err != nil {
		l.t.Fatal(err)
	}
	uid := string(m.UID)
	if l.display, err = consoles.MakeDisplay(uid, user); err != nil {
		l.t.Fatal(err)
	}
	for _, path := range []string{ // QEMU's, and somebody's on the host
		consoles.Path(uid, console.Serial), consoles.Path(uid, console.GuestPort), consoles.Path(uid, console.ExitPort), l.display, abstractName + "-host",
	} {
		listener, err := net.Listen("unix", path)
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _ = listener.Close() })
	}
	if err := os.Chown(l.display, user, -1); err != nil {
		l.t.Fatal(err)
	}
	has := domain.Facts{Display: l.display}
	s := keepingSession{netns: "/run/netns/" + l.pod, files: map[shimproto.Kind]*os.File{}}
	if err := errors.Join(r.connectNICs(l.t.Context(), m.UID, s, plan.ConnectNICs{NICs: m.NICs}), r.handOver(l.t.Context(), &m, &has, s)); err != nil {
		l.t.Fatal(err)
	}
	return s.files
}

// run runs an abuser, has its victims tell, and returns what it said.
func (l *abuseLab) run(t *testing.T, kind shimproto.Kind, file *os.File) (said []string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{abuser + "=" + string(kind)}
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.in(l.pod, cmd.Start)
	_ = file.Close()
	for lines := bufio.NewScanner(stdout); lines.Scan() && lines.Text() != "held"; {
		if said = append(said, lines.Text()); lines.Text() == "listens" {
			for _, port := range []int{dhcpPort, ownPort} {
				if _, err := l.caller.WriteToUDP([]byte("outside"), &net.UDPAddr{IP: net.IPv4(10, 244, 0, 255), Port: port}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if name, err := net.Listen("unix", abstractName); err != nil {
		t.Errorf("it has taken an abstract name on the host: %v", err)
	} else {
		_ = name.Close()
	}
	_ = stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the abuser: %v, it said %q", err, said)
	}
	l.nothingCameOut(t)
	return said
}

// nothingCameOut: among the frames from the pod, up to one that is sent now, none is raw or from the port of DHCP servers.
func (l *abuseLab) nothingCameOut(t *testing.T) {
	t.Helper()
	l.in(l.pod, func() error {
		conn, err := net.Dial("udp4", "10.244.0.1:68")
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("the last one"))
		return err
	})
	frame := make([]byte, 4096)
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, from, err := unix.Recvfrom(l.outside, frame, 0)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("waiting for the last frame: %v", err)
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		switch f := frame[:n]; {
		case bytes.Contains(f, []byte("the last one")):
			return
		case binary.BigEndian.Uint16(f[12:]) == rawType:
			t.Errorf("a raw frame came out of the pod: % x", f[:20])
		case bytes.Contains(f, []byte("abuse")):
			t.Errorf("a datagram came out of the pod: % x", f)
		}
	}
}

func uintptrOf(a *unix.RawSockaddrAny) uintptr { return uintptr(unsafe.Pointer(a)) }
