package dhcp

import (
	"net"
	"testing"
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
		if got, err := (udpClient{socket}).receive(make([]byte, maxPacket)); string(got) != want || err != nil {
			t.Errorf("received %q, %v; want %q", got, err, want)
		}
	}
	_ = socket.Close()
	if _, err := (udpClient{socket}).receive(make([]byte, maxPacket)); err == nil {
		t.Error("a closed socket is no error")
	}
}
