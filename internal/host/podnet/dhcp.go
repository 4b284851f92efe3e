package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// dhcpPort is the UDP port of DHCP servers. RFC 2131, 4.1.
const dhcpPort = 67

// DHCPSocket opens a UDP socket on the DHCP server's port, bound to the tap in the pod's namespace, for somebody without
// privileges. It is non-blocking and may broadcast, and what it sends has no UDP checksum.
//
// That it is bound to the tap only steers it: who holds it can choose another interface for a datagram (IP_PKTINFO), and
// whoever disconnects it unbinds it. The rules that Connect makes keep the port to the guests' taps.
func (Pods) DHCPSocket(ctx context.Context, ns *os.File, tap string) (*os.File, error) {
	return inPod(ctx, ns, func(h *netlink.Handle) (*os.File, error) {
		link, err := tapIn(h, tap)
		if err != nil {
			return nil, err
		}
		if link == nil {
			return nil, fmt.Errorf("tap %s is not in the pod: its QEMU has ended", tap)
		}
		socket, err := dhcpSocket(tap)
		return socket, fault.Doing(err, "opening UDP port %d on tap %s", dhcpPort, tap)
	})
}

func dhcpSocket(tap string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.BindToDevice(fd, tap),                                    // before it has its port, which the socket of another tap may have, too
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // one that was sent to the shim may wait there
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
		// The kernel would leave checksums to the guest's virtio NIC, and there are clients that take those for wrong.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1),
	)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: dhcpPort}) // the address of the tap alone would hear no broadcasts
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "dhcp"), nil
}
