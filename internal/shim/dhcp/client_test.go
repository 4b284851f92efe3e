package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// TestAnEmptyDatagramIsNoEnd: a guest can send one, and wants its renewals after it.
func TestAnEmptyDatagramIsNoEnd(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	socket, err := server.File()
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, want := range []string{"", "renew"} {
		if _, err := client.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := Datagrams(socket).receive(make([]byte, maxPacket)); string(got) != want || err != nil {
			t.Errorf("received %q, %v; want %q", got, err, want)
		}
	}
	_ = socket.Close()
	if _, err := Datagrams(socket).receive(make([]byte, maxPacket)); err == nil {
		t.Error("a closed socket is no error")
	}
}

// fromClient wraps a message as a guest with checksum offload sends it.
func fromClient(from shimproto.MAC, data []byte) []byte {
	f := envelope{fromMAC: from, toMAC: broadcastMAC, from: nowhere, to: everybody}.frame(data)
	binary.BigEndian.PutUint16(f[etherLen+ipLen:], clientPort)
	binary.BigEndian.PutUint16(f[etherLen+ipLen+2:], serverPort)
	binary.BigEndian.PutUint16(f[etherLen+ipLen+6:], 0xbad)
	return f
}

// TestFramesOfAnOlderAgent has a pair of sockets for the packet socket of an agent that knows no other.
func TestFramesOfAnOlderAgent(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	guestSide, socket := os.NewFile(uintptr(ends[0]), "guest"), os.NewFile(uintptr(ends[1]), "dhcp")
	defer guestSide.Close()
	s := testServer()
	done := make(chan error)
	go func() { done <- Serve(Frames(socket, s.lease), s.lease, "", t.Logf) }()
	buf := make([]byte, maxPacket)
	for _, c := range []struct {
		ask   ask
		to    netip.Addr
		toMAC shimproto.MAC
	}{
		{ask{kind: discover}, guest, s.lease.MAC},
		{ask{kind: request, requested: other}, everybody, broadcastMAC},
	} {
		for _, f := range [][]byte{fromClient(shimproto.MAC{2}, c.ask.message()), []byte("short"), fromClient(s.lease.MAC, c.ask.message())} {
			if _, err := guestSide.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		n, err := guestSide.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		frame := buf[:n]
		ip := frame[etherLen:]
		if to := netip.AddrFrom4([4]byte(ip[16:])); to != c.to || shimproto.MAC(frame) != c.toMAC {
			t.Errorf("%+v: the answer goes to %s at % x", c.ask, to, frame[:6])
		}
		if s := sum(0, ip[:ipLen]); s != 0xffff {
			t.Errorf("IP checksum: %#x", s)
		}
		if s := sum(sum(uint32(protoUDP)+uint32(len(ip)-ipLen), ip[12:20]), ip[ipLen:]); s != 0xffff {
			t.Errorf("UDP checksum: %#x", s)
		}
		if !bytes.Equal(frame[headLen+4:headLen+8], []byte("xid!")) {
			t.Errorf("odd reply % x", frame)
		}
	}
	_ = socket.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Serve() = %v", err)
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(fromClient(testServer().lease.MAC, []byte("abc")))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if data, _, ok := payload(frame); ok && !bytes.Contains(frame, data) {
			t.Errorf("%x is not in %x", data, frame)
		}
	})
}
