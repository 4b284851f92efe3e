package shimproto

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxMessage is the size of the longest message, in bytes.
	MaxMessage = 16 << 10
	// MaxExitMessage is the size of the longest Exit.Message, in bytes. With the reason it
	// stays below the 4096 bytes that kubelet keeps of a termination message.
	MaxExitMessage = 4000

	version       = 1
	maxInstanceID = 128
	maxReason     = 64
	maxHostname   = 253 // RFC 1035, 2.3.4
	minMTU        = 576 // RFC 791: every host accepts such datagrams
)

// Message is one of Hello, Attach, Running and Exit, which the agent sends, or State, which the shim sends.
//
//sumtype:decl
type Message interface{ validate() error }

// Hello asks for the shim's State. It is the first thing that a new agent sends.
type Hello struct{}

// Attach hands the guest's devices to the shim. Descriptors come with it, in
// this order: QEMU's console, a connected stream socket; and if there is a lease,
// a packet socket on the guest's tap, bound, filtered to DHCP requests and locked.
type Attach struct {
	// InstanceID names this run of the guest, in 1 to 128 printable ASCII characters. A container serves one: the same
	// Attach again changes nothing, and one with another ID is refused.
	InstanceID string `json:"run"`
	// Lease is what the guest's pod network interface is told by DHCP; nil without one.
	Lease *Lease `json:"nic,omitempty"`
}

// Lease is one DHCP lease.
type Lease struct {
	// MAC is the guest's; other clients get no answer.
	MAC MAC `json:"mac"`
	// Address is the guest's IPv4 address with the length of its prefix, at most 30.
	Address netip.Prefix `json:"address"`
	// Router is the guest's gateway, in the same prefix. The server answers with this address.
	Router netip.Addr `json:"router"`
	// MTU is the interface's, in bytes, 576 to 65535.
	MTU int `json:"mtu"`
	// Hostname is at most 253 characters; empty: the guest keeps its own.
	Hostname string `json:"hostname,omitempty"`
}

// Phase is what the guest's vCPUs do.
type Phase string

// Phases of a guest that has started.
const (
	PhaseRunning Phase = "running"
	PhasePaused  Phase = "paused"
)

// Running says that the guest has started, and whether its vCPUs run now.
type Running struct {
	Phase Phase `json:"phase"`
}

// Exit ends the shim, and so the container.
type Exit struct {
	// Code is the process's exit code, 0 to 255.
	Code int `json:"code"`
	// Reason is one word, at most 64 characters, or empty.
	Reason string `json:"reason,omitempty"`
	// Message tells people more, in at most MaxExitMessage bytes; Send makes it so, and printable.
	Message string `json:"message,omitempty"`
}

// State is all that the shim knows. Its fields only ever go from zero to a
// value, so that an outdated State that still waits in the socket misleads nobody.
type State struct {
	// InstanceID is that of the attached run, empty before.
	InstanceID string `json:"run,omitempty"`
	// ConsoleClosed says that QEMU has closed its end of the console: it has ended, or is about to.
	ConsoleClosed bool `json:"consoleClosed,omitempty"`
	// TerminatingSinceNS is the time of the first SIGTERM, in nanoseconds of CLOCK_BOOTTIME; 0: there was none.
	TerminatingSinceNS int64 `json:"terminatingSinceNS,omitempty"`
	// RunningSinceNS is when the shim was first told that the guest's vCPUs run, on the same clock; 0: it was not.
	RunningSinceNS int64 `json:"runningSinceNS,omitempty"`
}

// MAC is an Ethernet address. The six bytes of a net.HardwareAddr convert to it.
type MAC [6]byte

// MarshalText writes the address as six hexadecimal pairs with colons.
func (m MAC) MarshalText() ([]byte, error) {
	text := make([]byte, 0, 17)
	for i, b := range m {
		if i > 0 {
			text = append(text, ':')
		}
		text = hex.AppendEncode(text, []byte{b})
	}
	return text, nil
}

// UnmarshalText reads what MarshalText writes.
func (m *MAC) UnmarshalText(text []byte) error {
	pairs := bytes.Split(text, []byte{':'})
	if len(text) != 17 || len(pairs) != len(m) {
		return fmt.Errorf("%.20q is no MAC address", text)
	}
	for i, pair := range pairs {
		if len(pair) != 2 {
			return fmt.Errorf("%q is no MAC address", text)
		}
		if _, err := hex.Decode(m[i:i+1], pair); err != nil {
			return fmt.Errorf("%q is no MAC address: %w", text, err)
		}
	}
	return nil
}

func (Hello) validate() error { return nil }

func (a Attach) validate() error {
	if err := validateInstanceID(a.InstanceID); err != nil || a.Lease == nil {
		return err
	}
	n := a.Lease
	switch {
	case !n.Address.IsValid() || !n.Address.Addr().Is4() || n.Address.Bits() > 30:
		return fmt.Errorf("address %q is no IPv4 address with a prefix of at most 30 bits", n.Address)
	case !n.Address.Contains(n.Router) || n.Router == n.Address.Addr():
		return fmt.Errorf("router %q is no neighbour of %q", n.Router, n.Address)
	case n.MTU < minMTU || n.MTU > 65535:
		return fmt.Errorf("MTU %d is not in 576 to 65535", n.MTU)
	case len(n.Hostname) > maxHostname || strings.IndexFunc(n.Hostname, notInHostname) >= 0:
		return fmt.Errorf("%.300q is no host name", n.Hostname)
	}
	return nil
}

func (r Running) validate() error {
	if r.Phase != PhaseRunning && r.Phase != PhasePaused {
		return fmt.Errorf("phase %.40q is neither running nor paused", r.Phase)
	}
	return nil
}

func (e Exit) validate() error {
	if e.Code < 0 || e.Code > 255 || len(e.Reason) > maxReason || len(e.Message) > MaxExitMessage {
		return fmt.Errorf("exit code %d is not in 0 to 255, or its reason or message is too long", e.Code)
	}
	return nil
}

func (s State) validate() error {
	if s.TerminatingSinceNS < 0 || s.RunningSinceNS < 0 {
		return fmt.Errorf("terminating since %d ns, running since %d ns", s.TerminatingSinceNS, s.RunningSinceNS)
	}
	if s.InstanceID == "" {
		return nil
	}
	return validateInstanceID(s.InstanceID)
}

func validateInstanceID(id string) error {
	odd := func(r rune) bool { return r <= ' ' || r > '~' }
	if id == "" || len(id) > maxInstanceID || strings.IndexFunc(id, odd) >= 0 {
		return fmt.Errorf("instance ID %.140q is not 1 to 128 printable ASCII characters", id)
	}
	return nil
}

func notInHostname(r rune) bool {
	return r > unicode.MaxASCII || r != '-' && r != '.' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
}

// packet is a message on the wire. A reader ignores fields that it does not know.
type packet struct {
	Version int      `json:"v"`
	Hello   *Hello   `json:"hello,omitempty"`
	Attach  *Attach  `json:"attach,omitempty"`
	Running *Running `json:"running,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
	State   *State   `json:"state,omitempty"`
}

func encode(m Message) ([]byte, error) {
	if e, ok := m.(Exit); ok {
		e.Reason, e.Message = printable(e.Reason, maxReason), printable(e.Message, MaxExitMessage)
		m = e
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	p := packet{Version: version}
	switch m := m.(type) {
	case Hello:
		p.Hello = &m
	case Attach:
		p.Attach = &m
	case Running:
		p.Running = &m
	case Exit:
		p.Exit = &m
	case State:
		p.State = &m
	}
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false) // would make six bytes of one, and a message too long
	err := enc.Encode(p)
	return data.Bytes(), err
}

// printable makes text valid UTF-8 of at most limit bytes, with no control
// characters but line feeds and tabs: it may hold what a guest has said.
func printable(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text) // and Map turns invalid bytes into U+FFFD
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// errUnknown is a message of a kind that is newer than this program.
var errUnknown = errors.New("message of an unknown kind")

func decode(data []byte) (Message, error) {
	if len(data) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes is too long", len(data))
	}
	var p packet
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("decoding a message: %w", err)
	}
	if p.Version != version {
		return nil, fmt.Errorf("message is of version %d, not %d", p.Version, version)
	}
	var m Message
	switch {
	case p.Hello != nil:
		m = *p.Hello
	case p.Attach != nil:
		m = *p.Attach
	case p.Running != nil:
		m = *p.Running
	case p.Exit != nil:
		m = *p.Exit
	case p.State != nil:
		m = *p.State
	default:
		return nil, errUnknown
	}
	return m, m.validate()
}
