package podnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// requests lets through, of Ethernet frames, whole UDP datagrams to the DHCP server's port.
var requests = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 12, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: 8},
	bpf.LoadAbsolute{Off: 23, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 6},
	bpf.LoadAbsolute{Off: 20, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff, SkipTrue: 4}, // a fragment: more follow, or not the first
	bpf.LoadMemShift{Off: 14},
	bpf.LoadIndirect{Off: 16, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 67, SkipTrue: 1},
	bpf.RetConstant{Val: 4096},
	bpf.RetConstant{Val: 0},
}

// DHCPSocket opens a packet socket (AF_PACKET, SOCK_RAW) on the tap in the
// pod's namespace. Only the guest's DHCP requests arrive on it; the filter
// cannot be taken off again. It is non-blocking, and bound for good to a tap that is connected.
func DHCPSocket(ctx context.Context, ns *os.File, tap string) (*os.File, error) {
	return classified(inside(ctx, ns, func() (*os.File, error) {
		h, err := handle()
		if err != nil {
			return nil, err
		}
		defer h.Close()
		link, err := tapIn(h, tap)
		if err != nil {
			return nil, err
		}
		if link == nil {
			return nil, fmt.Errorf("tap %s is not in the pod: its QEMU has ended", tap)
		}
		socket, err := packetSocket(link.Attrs().Index)
		if err != nil {
			return nil, fmt.Errorf("opening packet socket on tap %s: %w", tap, err)
		}
		return socket, nil
	}))
}

func packetSocket(index int) (*os.File, error) {
	filter, err := bpf.Assemble(requests)
	if err != nil {
		return nil, err
	}
	// Without a protocol it hears nothing until it is bound, and then it has its filter.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))} //nolint:gosec // the same layout
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1),
	)
	if err == nil {
		// With ETH_P_ALL it would hear frames before the rules at the tap, and those that go to the guest.
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "dhcp"), nil
}

func networkOrder(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
