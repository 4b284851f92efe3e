package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
)

// discovery is a DHCP client's first message, with more options behind its type. RFC 2131, 2.
func discovery(hardware net.HardwareAddr, options ...byte) []byte {
	m := make([]byte, 236)
	m[0], m[1], m[2] = 1, 1, 6
	binary.BigEndian.PutUint32(m[4:], rand.Uint32())
	copy(m[28:], hardware)
	m = append(m, 99, 130, 83, 99, 53, 1, 1) // the cookie, and DISCOVER
	return append(append(m, options...), 255)
}

// filled is an option as long as one can be.
func filled(code byte) []byte {
	option := make([]byte, 2+255)
	option[0], option[1] = code, 255
	for i := range option[2:] {
		option[2+i] = byte(i)
	}
	return option
}

// malformed are messages that are none, or that ask for too much.
func malformed(own net.HardwareAddr) [][]byte {
	whole := discovery(own)
	otherHardware, noCookie := discovery(own), discovery(own)
	otherHardware[2] = 255
	noCookie[236] = 0
	noise := make([]byte, 1400)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	many := []byte{}
	for code := range 4 {
		many = append(many, filled(byte(60+code))...)
	}
	return [][]byte{
		{},
		whole[:1], whole[:235], whole[:240], whole[:242], whole[:len(whole)-1], noise, otherHardware, noCookie,
		discovery(own, 12, 250, 'x'),                // longer than the message
		discovery(own, 52, 1, 3),                    // more options in sname and file, which are empty
		discovery(own, 57, 2, 0, 0),                 // replies of no bytes
		discovery(own, 57, 2, 255, 255),             // and of all that UDP has
		discovery(own, 57, 1, 1),                    // a number that is cut short
		discovery(own, filled(61)...),               // a long identifier, which comes back
		discovery(own, filled(55)...),               // all options are asked for
		discovery(own, many...),                     // more than fits in a frame, nearly
		discovery(own, 54, 4, 10, 0, 2, 77),         // another server is meant
		discovery(own, 50, 4, 255, 255, 255, 255),   // an address for everybody
		discovery(own, 53, 1, 3, 50, 4, 1, 2, 3, 4), // two types
	}
}

// floodDHCP sends so many messages, a third of them malformed, and has the guest's own client ask then.
func floodDHCP(count int) error {
	w, err := openWire()
	if err != nil {
		return err
	}
	bad := malformed(w.own)
	for i := range count {
		message := discovery(w.own)
		if i%3 == 0 {
			message = bad[i/3%len(bad)]
		}
		if err := w.send(ethernet(everyone, w.own, typeIP, udp(net.IPv4zero, 68, net.IPv4bcast, 67, message, nil))); err != nil {
			return fmt.Errorf("sending message %d of %d bytes: %w", i, len(message), err)
		}
	}
	out, err := exec.Command("udhcpc", "-f", "-n", "-q", "-i", "eth0", "-s", "/bin/true").CombinedOutput() //nolint:noctx // it ends by itself
	if err != nil {
		return fmt.Errorf("udhcpc: %w: %s", err, out)
	}
	fmt.Printf("hostile: %s", out)
	return nil
}
