package shim_test

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

var guestMAC = shimproto.MAC{0x02, 0xbe, 0x27, 0, 0, 1}

// script is what the clients call with a lease. It prints and configures it.
const script = `#!/bin/sh
case "$1$reason" in
bound|renew|BOUND|RENEW|REBOOT)
	dev=${interface:-eth0}
	ip addr replace "${ip:-$new_ip_address}/24" dev "$dev"
	echo "$1$reason: $ip$new_ip_address mask $subnet$new_subnet_mask router $router$new_routers mtu $mtu$new_interface_mtu host $hostname$new_host_name" \
		"dns $dns$new_domain_name_servers domain $domain$new_domain_name search $search$new_domain_search lease $lease$new_dhcp_lease_time"
esac
`

const lease = ": 10.0.2.2 mask 255.255.255.0 router 10.0.2.1 mtu 1450 host web dns 10.96.0.10" +
	" domain prod.svc.cluster.local search prod.svc.cluster.local%[1]s svc.cluster.local%[1]s lease 3600\n"

func TestRealClientsGetTheirLease(t *testing.T) {
	for name, c := range map[string]struct {
		command       []string
		bound, dotted string
		renew         func(client *os.Process)
		renewed       string
	}{
		"busybox": {
			command: []string{"udhcpc", "-f", "-i", "eth0", "-O", "mtu", "-O", "search", "-s"},
			bound:   "bound",
			renew:   func(client *os.Process) { _ = client.Signal(unix.SIGUSR1) },
			renewed: "renew",
		},
		"ISC": {
			command: []string{"dhclient", "-d", "-1", "-cf", "/dev/null", "-lf", "/dev/null", "-pf", "/dev/null", "eth0", "-sf"},
			bound:   "BOUND", dotted: ".",
		},
	} {
		t.Run(name, func(t *testing.T) {
			need(t, c.command[0], "ip")
			tap, guest := wire(t)
			_, stdout := pipe(t)
			shim := start(t, null(t), stdout)
			a := shim.take()
			handOverLease(t, a, tap)

			leases, out := pipe(t)
			path := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			client := exec.Command("nsenter", append([]string{"--net=/run/netns/" + guest}, append(c.command, path)...)...)
			client.Stdout = out // the clients' own words go to stderr
			client.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
			began := time.Now()
			if err := client.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _, _ = client.Process.Kill(), client.Wait() })
			lines := bufio.NewReader(leases)
			wait := func(how string) {
				t.Helper()
				_ = leases.SetReadDeadline(time.Now().Add(patience))
				got, err := lines.ReadString('\n')
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if diff := cmp.Diff(how+fmt.Sprintf(lease, c.dotted), got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
			wait(c.bound)
			t.Logf("bound after %v; VmRSS %d kB, RssAnon %d kB", time.Since(began), shim.memory("VmRSS"), shim.memory("RssAnon"))
			if c.renew != nil {
				c.renew(client.Process) // after 3 s at times: this client sends before it listens
				wait(c.renewed)
			}
		})
	}
}

func TestTheShimOutlivesTheTap(t *testing.T) {
	need(t, "ip")
	tap, _ := wire(t)
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	qemu := handOverLease(t, a, tap)
	for _, command := range []string{"set vtap down", "set vtap up", "set vtap down", "del vtap"} {
		ip(t, append([]string{"-n", tap, "link"}, strings.Fields(command)...)...)
	}
	write(t, qemu, []byte("still here"))
	expect(t, logs, []byte("still here"))
	_ = qemu.Close()
	a.send(shimproto.Exit{})
	if code := c.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	_ = stdout.Close()
	if rest, _ := io.ReadAll(logs); len(rest) > 0 {
		t.Errorf("the end of a tap, which comes with every guest's, was worth the words %q", rest)
	}
}

// handOverLease plays the agent that starts a guest on the tap. Another NIC comes first.
func handOverLease(t *testing.T, a *agent, netns string) (qemu *os.File) {
	t.Helper()
	qemu, console := sockets(t)
	_, other := sockets(t)
	socket := packetSocket(t, netns)
	lease := func(name string, fd int, mac shimproto.MAC) shimproto.Device {
		return shimproto.Device{Kind: shimproto.KindLease, Name: name, FD: fd, Lease: &shimproto.Lease{
			MAC: mac, Address: netip.MustParsePrefix("10.0.2.2/24"), Router: netip.MustParseAddr("10.0.2.1"), MTU: 1450, Hostname: "web",
		}}
	}
	message := consoleOf("r1")
	message.Devices = append([]shimproto.Device{lease("other", 2, shimproto.MAC{2}), lease("default", 1, guestMAC)}, message.Devices...)
	a.await("a state", func(shimproto.State) bool { return true }) // before it, an agent speaks protocol 1.0
	a.send(message, console, socket, other)
	_, _, _ = console.Close(), socket.Close(), other.Close()
	a.await("attached", func(s shimproto.State) bool { return s.InstanceID == "r1" })
	return qemu
}

// wire makes two network namespaces, the pod's with a device that stands for
// the tap, and the guest's, and joins them.
func wire(t *testing.T) (pod, guest string) {
	t.Helper()
	pod, guest = fmt.Sprintf("shim-pod-%d", os.Getpid()), fmt.Sprintf("shim-guest-%d", os.Getpid())
	for _, name := range []string{pod, guest} {
		ip(t, "netns", "add", name)
		t.Cleanup(func() { ip(t, "netns", "del", name) })
	}
	mac, err := guestMAC.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	ip(t, "-n", pod, "link", "add", "vtap", "type", "veth", "peer", "name", "eth0", "address", string(mac), "netns", guest)
	ip(t, "-n", pod, "addr", "add", "10.0.2.1/24", "dev", "vtap")
	ip(t, "-n", pod, "link", "set", "vtap", "up")
	ip(t, "-n", guest, "link", "set", "eth0", "up")
	return pod, guest
}

func ip(t *testing.T, arg ...string) {
	t.Helper()
	if out, err := exec.Command("ip", arg...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %s", strings.Join(arg, " "), out)
	}
}

// need skips the test on a machine without these programs, where that is allowed.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("BERTH_TEST_REQUIRE") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
}

// packetSocket opens what the agent passes: a packet socket on the tap that
// takes DHCP requests only, and whose filter its next owner cannot change.
func packetSocket(t *testing.T, netns string) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		fd, err := openPacketSocket(netns)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := os.NewFile(uintptr(r.fd), "dhcp")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func openPacketSocket(netns string) (int, error) {
	ns, err := unix.Open("/run/netns/"+netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	// tcpdump -dd udp dst port 67, for IPv4
	filter := []unix.SockFilter{
		{Code: 0x28, K: 12},
		{Code: 0x15, Jf: 8, K: unix.ETH_P_IP},
		{Code: 0x30, K: 23},
		{Code: 0x15, Jf: 6, K: unix.IPPROTO_UDP},
		{Code: 0x28, K: 20},
		{Code: 0x45, Jt: 4, K: 0x1fff},
		{Code: 0xb1, K: 14},
		{Code: 0x48, K: 16},
		{Code: 0x15, Jf: 1, K: 67},
		{Code: 0x6, K: 0x40000},
		{Code: 0x6},
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}); err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return 0, err
	}
	ifreq, err := unix.NewIfreq("vtap")
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifreq); err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8, Ifindex: int(ifreq.Uint32())})
}
