package guestlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	// MaxFrame is how many bytes a frame carries at most, and so an encoded Command.
	MaxFrame = 32 << 10
	// Window is how many bytes of a stream may be under way in one direction.
	Window = 256 << 10
	// MaxStreams is how many streams a link has at most: 32 commands and 4 probes.
	MaxStreams = 36

	protocol   = 1    // version in the hello; a later side speaks an earlier one's
	magic      = 0xbe // begins each frame
	padding    = 0xff // fills up what a program left half: an exit code of 255, an impossible length
	headerSize = 8
	dataSize   = MaxFrame - headerSize // of what we send: one write to a virtio-serial port, whole or not at all
	batch      = Window / 4            // so much is taken before credit is given
	chunkSize  = 8 << 10
	maxVersion = 32
)

type kind byte

// Their order is that in which a stream's frames are sent.
const (
	kindHello kind = iota + 1
	kindOpen
	kindCredit
	kindWindowSize
	kindSignal
	kindStdin
	kindStdout
	kindStderr
	kindEnd
	kindExit
	kindReset
	kinds
)

// sizes are the lengths of frames that have a fixed one.
var sizes = map[kind]int{kindHello: helloSize, kindCredit: 4, kindWindowSize: 4, kindSignal: 1, kindEnd: 0, kindExit: 1, kindReset: 0}

// A hello is the marker, the protocol's version, the sender's nonce, the last nonce that it read, its program's version.
const (
	marker    = "\x00BerthGuestLink\n"
	helloSize = len(marker) + 1 + 8 + 8 + maxVersion
)

// helloStart begins each hello, whatever its version.
var helloStart = append(header(nil, kindHello, 0, helloSize), marker...)

func header(buf []byte, k kind, stream uint16, length int) []byte {
	buf = binary.BigEndian.AppendUint16(append(buf, magic, byte(k)), stream)
	return binary.BigEndian.AppendUint32(buf, uint32(length)) //nolint:gosec // at most MaxFrame
}

func appendHello(buf []byte, nonce, echo uint64, version string) []byte {
	buf = append(append(buf, helloStart...), protocol)
	buf = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(buf, nonce), echo)
	return append(buf, (version + string(make([]byte, maxVersion)))[:maxVersion]...)
}

// parseHello reads helloSize bytes.
func parseHello(b []byte) (nonce, echo uint64, version string, ok bool) {
	rest := b[len(marker):]
	nonce, echo = binary.BigEndian.Uint64(rest[1:]), binary.BigEndian.Uint64(rest[9:])
	said := bytes.TrimRight(rest[17:], "\x00")
	printable := !bytes.ContainsFunc(said, func(r rune) bool { return r < ' ' || r > '~' })
	return nonce, echo, string(said), string(b[:len(marker)]) == marker && rest[0] >= protocol && nonce != 0 && printable
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Columns uint16 }

// Command is what a stream runs in the guest.
type Command struct {
	Args     []string // its name and arguments, at least one
	Env      []string // KEY=VALUE, added to the environment
	User     string   // a name or number, with :GROUP or without; empty: root
	Dir      string   // empty: the user's home
	Terminal bool     // it gets a terminal of the guest's own
	Size     Size     // of that
	Detached bool     // without stdio: the stream ends once it is started
}

// Why a command cannot be encoded or parsed.
var (
	ErrTooLong = errors.New("the command is longer than a frame")
	errCommand = errors.New("malformed command")
)

const commandHead = "%t %t %d %d %d"

// Encode makes what Open takes: strings with a NUL between each, which none of them may have.
func (c Command) Encode() ([]byte, error) {
	head := fmt.Sprintf(commandHead, c.Terminal, c.Detached, c.Size.Rows, c.Size.Columns, len(c.Args))
	all := append(append([]string{head, c.User, c.Dir}, c.Args...), c.Env...)
	text := strings.Join(all, "\x00")
	switch {
	case len(text) > MaxFrame:
		return nil, ErrTooLong
	case len(c.Args) == 0 || strings.Count(text, "\x00") != len(all)-1:
		return nil, errCommand
	}
	return []byte(text), nil
}

// ParseCommand reads what Encode makes.
func ParseCommand(b []byte) (c Command, err error) {
	var args int
	all := strings.Split(string(b), "\x00")
	_, err = fmt.Sscanf(all[0], commandHead, &c.Terminal, &c.Detached, &c.Size.Rows, &c.Size.Columns, &args)
	if err != nil || args < 1 || args > len(all)-3 {
		return c, errCommand
	}
	c.User, c.Dir, c.Args, c.Env = all[1], all[2], all[3:3+args], all[3+args:]
	return c, nil
}
