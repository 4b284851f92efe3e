package shim_test

import (
	"bufio"
	"errors"
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
		"dns $dns$new_domain_name_servers search $search$new_domain_search lease $lease$new_dhcp_lease_time"
esac
`

// leaseOf is what the script says of the lease of a host with a search list. Clients write domains with a dot after each, or without.
func leaseOf(hostname string, search []string, dot string) string {
	return ": 10.0.2.2 mask 255.255.255.0 router 10.0.2.1 mtu 1450 host " + hostname + " dns 10.96.0.10" +
		" search " + strings.Join(search, dot+" ") + dot + " lease 3600\n"
}

func TestRealClientsGetTheirLease(t *testing.T) {
	udhcpc := []string{"udhcpc", "-f", "-i", "eth0", "-O", "mtu", "-O", "search", "-s"}
	dhclient := []string{"dhclient", "-d", "-1", "-cf", "/dev/null", "-lf", "/dev/null", "-pf", "/dev/null", "eth0", "-sf"}
	usual := []string{"prod.svc.cluster.local", "svc.cluster.local", "cluster.local"}
	long := strings.Repeat("n", 63)
	many := []string{long + ".svc.cluster.local", "svc.cluster.local", "cluster.local", "eu-central-1.compute.internal", "corp.example.org"}
	for name, c := range map[string]struct {
		command  []string
		hostname string
		search   []string
	}{
		"busybox":             {udhcpc, "web", usual},
		"ISC":                 {dhclient, "web", usual},
		"busybox, long names": {udhcpc, long, many},
		"ISC, long names":     {dhclient, long, many},
	} {
		t.Run(name, func(t *testing.T) {
			need(t, c.command[0], "ip")
			tap, guest := wire(t)
			_, stdout := pipe(t)
			shim := start(t, null(t), stdout)
			shim.file("etc/resolv.conf", "search "+strings.Join(c.search, " ")+"\nnameserver 10.96.0.10\n", 0o644)
			a := shim.take()
			handOverLease(t, a, tap, c.hostname)

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
			wait := func(how, dot string) {
				t.Helper()
				_ = leases.SetReadDeadline(time.Now().Add(waitTimeout))
				got, err := lines.ReadString('\n')
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if diff := cmp.Diff(how+leaseOf(c.hostname, c.search, dot), got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
			if c.command[0] == "dhclient" {
				wait("BOUND", ".")
			} else {
				wait("bound", "")
				_ = client.Process.Signal(unix.SIGUSR1) // after 3 s at times: this client sends before it listens
				wait("renew", "")
			}
			t.Logf("after %v; VmRSS %d kB, RssAnon %d kB", time.Since(began), shim.memory("VmRSS"), shim.memory("RssAnon"))
		})
	}
}

func TestTheShimOutlivesTheTap(t *testing.T) {
	need(t, "ip")
	tap, _ := wire(t)
	logs, stdout := pipe(t)
	c := start(t, null(t), stdout)
	a := c.take()
	qemu := handOverLease(t, a, tap, "web")
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
func handOverLease(t *testing.T, a *agent, netns, hostname string) (qemu *os.File) {
	t.Helper()
	qemu, console := sockets(t)
	_, other := sockets(t)
	socket := socketIn(t, netns)
	lease := func(name string, fd int, mac shimproto.MAC) shimproto.Device {
		return shimproto.Device{Kind: shimproto.KindDHCP, Name: name, FD: fd, Lease: &shimproto.Lease{
			MAC: mac, Address: netip.MustParsePrefix("10.0.2.2/24"), Router: netip.MustParseAddr("10.0.2.1"), MTU: 1450, Hostname: hostname,
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
	ip(t, "-n", pod, "neigh", "add", "10.0.2.2", "lladdr", string(mac), "dev", "vtap", "nud", "permanent") // as podnet.Connect
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

// socketIn opens what the agent passes, in a network namespace.
func socketIn(t *testing.T, netns string) *os.File {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		ns, err := os.Open("/run/netns/" + netns)
		if err == nil {
			err = errors.Join(unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET), ns.Close())
		}
		if err != nil {
			done <- result{-1, err}
			return
		}
		fd, err := openUDPSocket()
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

// openUDPSocket opens a UDP socket as podnet.DHCPSocket does, on a device that is no tap.
func openUDPSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	return fd, errors.Join(
		unix.BindToDevice(fd, "vtap"),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: 67}),
	)
}
