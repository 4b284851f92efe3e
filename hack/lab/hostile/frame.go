package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// What the guest has by DHCP, as the lab's agents give it.
var (
	guestIP   = net.IPv4(10, 0, 2, 2).To4()
	gatewayIP = net.IPv4(10, 0, 2, 1).To4()
	everyone  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	stranger  = net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
)

// Ethernet types.
const (
	typeIP   = 0x0800
	typeARP  = 0x0806
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd
	typeQinQ = 0x88a8
	typeLLDP = 0x88cc
	typeTest = 0x88b5
)

// wire is the guest's interface, to which frames are written as they are.
type wire struct {
	fd           int
	own, gateway net.HardwareAddr
	to           syscall.SockaddrLinklayer
}

func openWire() (*wire, error) {
	nic, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	gateway, err := gatewayHardware()
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	if err != nil {
		return nil, err
	}
	return &wire{fd: fd, own: nic.HardwareAddr, gateway: gateway, to: syscall.SockaddrLinklayer{Ifindex: nic.Index}}, nil
}

// send waits while the interface's queue is full.
func (w *wire) send(frame []byte) error { return syscall.Sendto(w.fd, frame, 0, &w.to) }

// gatewayHardware has the kernel ask for it, and reads its table.
func gatewayHardware() (net.HardwareAddr, error) {
	conn, err := net.Dial("udp4", net.JoinHostPort(gatewayIP.String(), "9"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, _ = conn.Write([]byte("?"))
		table, err := os.ReadFile("/proc/net/arp")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) > 3 && f[0] == gatewayIP.String() && f[2] == "0x2" {
				return net.ParseMAC(f[3])
			}
		}
	}
	return nil, fmt.Errorf("%s does not tell its hardware address", gatewayIP)
}

func ethernet(to, from net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	return append(binary.BigEndian.AppendUint16(f, ethertype), payload...)
}

// tagged puts words, VLAN tags, before the type of a frame.
func tagged(f []byte, words ...uint16) []byte {
	head := append([]byte{}, f[:12]...)
	for _, word := range words {
		head = binary.BigEndian.AppendUint16(head, word)
	}
	return append(head, f[12:]...)
}

// udp makes an IPv4 datagram, with options in its IPv4 header, and without a checksum of UDP's.
func udp(from net.IP, fromPort uint16, to net.IP, toPort uint16, text, options []byte) []byte {
	head := 20 + len(options)
	p := make([]byte, head+8, head+8+len(text))
	p[0], p[8], p[9] = byte(0x40|head/4), 64, syscall.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(cap(p)))
	copy(p[12:], from.To4())
	copy(p[16:], to.To4())
	copy(p[20:], options)
	binary.BigEndian.PutUint16(p[head:], fromPort)
	binary.BigEndian.PutUint16(p[head+2:], toPort)
	binary.BigEndian.PutUint16(p[head+4:], uint16(8+len(text)))
	var sum uint32 // RFC 1071
	for i := 0; i < head; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return append(p, text...)
}

// arp is a reply that claims an address. RFC 826.
func arp(hardware net.HardwareAddr, claimed net.IP) []byte {
	p := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, hardware...)
	p = append(append(p, claimed.To4()...), everyone...)
	return append(p, claimed.To4()...)
}

// advertisement is a router's, without its checksum. RFC 4861, 4.2.
func advertisement() []byte {
	p := make([]byte, 40+16)
	p[0], p[5], p[6], p[7] = 0x60, 16, 58, 255
	copy(p[8:], net.ParseIP("fe80::1"))
	copy(p[24:], net.ParseIP("ff02::1"))
	p[40], p[44], p[46] = 134, 64, 0xff
	return p
}

// sendFrames sends each kind three times. A frame says in itself of what kind it is, so that it is known wherever it
// comes out. Only those named honest may.
func sendFrames(target string) error {
	w, err := openWire()
	if err != nil {
		return err
	}
	to := net.ParseIP(target).To4()
	if to == nil {
		return fmt.Errorf("%q is not an IPv4 address", target)
	}
	kinds := w.kinds(to)
	for range 3 {
		for _, k := range kinds {
			if err := w.send(k.frame); err != nil {
				return fmt.Errorf("sending %s: %w", k.name, err)
			}
		}
	}
	return nil
}

// kind of frame.
type kind struct {
	name  string
	frame []byte
}

func (w *wire) kinds(target net.IP) (all []kind) {
	mark := func(name string) []byte { return []byte("<hostile: " + name + ">") }
	add := func(name string, f []byte) { all = append(all, kind{name, f}) }
	padded := func(name string, payload []byte) []byte {
		return append(append(payload, make([]byte, max(0, 46-len(payload)))...), mark(name)...)
	}
	const discard = 9
	ip := func(name string, hardware net.HardwareAddr, from, to net.IP, options []byte) []byte {
		return ethernet(w.gateway, hardware, typeIP, udp(from, discard, to, discard, mark(name), options))
	}
	for name, from := range map[string]net.IP{
		"the target's address": target, "another guest's address": net.IPv4(10, 0, 2, 77), "the gateway's address": gatewayIP,
		"an address of loopback": net.IPv4(127, 0, 0, 1), "no address": net.IPv4zero, "a public address": net.IPv4(192, 0, 2, 1),
	} {
		add(name, ip(name, w.own, from, target, nil))
	}
	for name, to := range map[string]net.IP{
		"to loopback": net.IPv4(127, 0, 0, 1), "to everybody": net.IPv4bcast, "to a multicast group": net.IPv4(224, 0, 0, 251),
	} {
		add(name, ip(name, w.own, guestIP, to, nil))
	}
	add("no address, to DHCP's port", ethernet(w.gateway, w.own, typeIP, udp(net.IPv4zero, 68, target, 67, mark("no address, to DHCP's port"), nil)))
	route := append([]byte{131, 7, 4}, append(append([]byte{}, gatewayIP...), 0)...) // RFC 791, 3.1
	add("a source route", ip("a source route", w.own, guestIP, target, route))
	add("another hardware address", ip("another hardware address", stranger, guestIP, target, nil))
	add("a group's hardware address", ip("a group's hardware address", everyone, guestIP, target, nil))
	add("VLAN 5", tagged(ip("VLAN 5", w.own, guestIP, target, nil), typeVLAN, 5))
	add("VLAN 5 in VLAN 7", tagged(ip("VLAN 5 in VLAN 7", w.own, guestIP, target, nil), typeQinQ, 7, typeVLAN, 5))
	for name, p := range map[string][]byte{
		"ARP for the gateway": arp(w.own, gatewayIP), "ARP for the target": arp(w.own, target), "ARP with another's hardware": arp(stranger, guestIP),
	} {
		add(name, ethernet(everyone, w.own, typeARP, padded(name, p)))
	}
	offer := udp(gatewayIP, 67, net.IPv4bcast, 68, mark("a DHCP offer"), nil)
	add("a DHCP offer", ethernet(everyone, w.own, typeIP, offer))
	offer = udp(guestIP, 67, net.IPv4bcast, 68, mark("a DHCP offer as itself"), nil)
	add("a DHCP offer as itself", ethernet(everyone, w.own, typeIP, offer))
	add("a router advertisement", ethernet(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, w.own, typeIPv6, padded("a router advertisement", advertisement())))
	add("LLDP", ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}, w.own, typeLLDP, padded("LLDP", []byte{2, 7, 4, 2, 0, 0, 0, 0, 9})))
	add("a bridge's BPDU", ethernet(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, w.own, 38, padded("a bridge's BPDU", []byte{0x42, 0x42, 3, 0, 0, 0, 0, 0})))
	add("an unknown type", ethernet(everyone, w.own, typeTest, padded("an unknown type", nil)))
	add("honest in VLAN 0", tagged(ip("honest in VLAN 0", w.own, guestIP, target, nil), typeVLAN, 0))
	add("honest", ip("honest", w.own, guestIP, target, nil)) // the last: when it is out, so is all that came before
	return all
}
