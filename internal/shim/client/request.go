package client

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

// Address is the abstract socket on which the shim awaits clients. Whoever shares the pod's network can take it or dial
// it: both sides look whom they have before them.
const Address = "@berth-shim"

// version begins each packet that a client or the shim sends. They are one program.
const version = 1

// Exit codes that are not the command's.
const (
	CodeUsage   = 125 // the client was called wrongly
	CodeRefused = 126 // the command was not run
	CodeLost    = 255 // the command was hung up
)

// MaxRequest is the size of the longest request, in bytes.
const MaxRequest = 2 + guestlink.MaxFrame

// Kind is what a client wants.
type Kind byte

// The kinds of requests. Those from Exec to Liveness have a command.
const (
	Exec Kind = iota + 1
	Readiness
	Liveness
	Reset
	NMI
)

// Request is what a client asks of the shim.
type Request struct {
	Kind Kind
	guestlink.Command
}

// encode makes the request's packet.
func (r Request) encode() ([]byte, error) {
	packet := []byte{version, byte(r.Kind)}
	if r.Kind > Liveness {
		return packet, nil
	}
	command, err := r.Command.Encode()
	return append(packet, command...), err
}

// ParseRequest reads a request's packet, and returns its command encoded, too.
func ParseRequest(packet []byte) (r Request, command []byte, err error) {
	if len(packet) < 2 || len(packet) > MaxRequest || packet[0] != version {
		return r, nil, errors.New("a request of a foreign form")
	}
	switch r.Kind, command = Kind(packet[1]), packet[2:]; {
	case r.Kind >= Exec && r.Kind <= Liveness:
		r.Command, err = guestlink.ParseCommand(command)
	case r.Kind != Reset && r.Kind != NMI || len(command) > 0:
		err = fmt.Errorf("a request of unknown kind %d", r.Kind)
	}
	return r, command, err
}

// Go makes the shim's first packet, to which the request is the answer.
func Go() []byte { return []byte{version} }

// encodeSize makes the packet that tells of the terminal's new size.
func encodeSize(size guestlink.Size) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16([]byte{version}, size.Rows), size.Columns)
}

// ParseSize reads one.
func ParseSize(packet []byte) (size guestlink.Size, ok bool) {
	if len(packet) != 5 {
		return size, false
	}
	return guestlink.Size{Rows: binary.BigEndian.Uint16(packet[1:]), Columns: binary.BigEndian.Uint16(packet[3:])}, true
}

// Answer makes the shim's last packet: the exit code, and why it is not the command's.
func Answer(code int, message string) []byte {
	return append([]byte{version, byte(code)}, message...) //nolint:gosec // 0 to 255
}
