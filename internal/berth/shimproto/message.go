package shimproto

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the size of the longest message, in bytes.
	MaxMessage = 16 << 10
	// MaxExitMessage is the size of the longest Exit.Message, in bytes. With the reason it
	// stays below the 4096 bytes that kubelet keeps of a termination message.
	MaxExitMessage = 4000

	// MaxGuestTools is the size of the longest State.GuestTools, in bytes.
	MaxGuestTools = 32
	// MaxExitText is the size of the longest State.ExitText, in bytes.
	MaxExitText = 64

	// Minor is the minor version that this program speaks. The packets of version 3, the first that is known any more, are in
	// testdata.
	Minor = 3

	major         = 1 // in each packet: one of another major version is an error
	maxInstanceID = 128
	maxKinds      = 32
	maxReason     = 64
)

// Message is one of Hello, HandOver, Running, Acted and Exit, which the agent sends, or State, which the shim sends.
//
//sumtype:decl
type Message interface{ validate() error }

// Hello asks for the shim's State. It is the first thing that a new agent sends.
type Hello struct{}

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
	// LastResetNS is when the guest was last reset, in nanoseconds of CLOCK_BOOTTIME; 0: not that the agent knows.
	LastResetNS int64 `json:"lastResetNS,omitempty"`
}

// Acted says that all actions are carried out up to these counts, of which State asks.
type Acted struct {
	Resets uint64 `json:"resets"`
	NMIs   uint64 `json:"nmis"`
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

// TerminationMessage is what the shim of a guest that ended so leaves to kubelet as its container's termination message.
func (e Exit) TerminationMessage() string {
	if e.Reason == "" {
		return e.Message
	}
	return strings.TrimSuffix(e.Reason+": "+e.Message, ": ")
}

// ParseTerminationMessage takes one apart again. What it calls the reason is one only if the reader knows it.
func ParseTerminationMessage(text string) (reason, message string) {
	reason, message, _ = strings.Cut(text, ": ")
	return reason, message
}

// State is all that the shim knows. Its fields only ever go from zero to a value, and counts only grow, so that an outdated
// State that still waits in the socket misleads nobody; GuestTools and ExitText follow the guest, and the newest State that
// comes has the newest of them. What the shim speaks and takes is the same in all of them.
type State struct {
	// Minor is the minor version that the shim speaks.
	Minor int `json:"minor,omitempty"`
	// Kinds are the kinds of devices that the shim takes, 1 to 32, each once, in any order; see Takes.
	Kinds []Kind `json:"takes,omitempty"`
	// InstanceID is that of the attached run, empty before.
	InstanceID string `json:"run,omitempty"`
	// ConsoleClosed says that QEMU has closed its end of the console, and of the exit port if there is one: it has ended,
	// or is about to, and ExitText stays as it is.
	ConsoleClosed bool `json:"consoleClosed,omitempty"`
	// TerminatingSinceNS is the time of the first SIGTERM, in nanoseconds of CLOCK_BOOTTIME; 0: there was none.
	TerminatingSinceNS int64 `json:"terminatingSinceNS,omitempty"`
	// RunningSinceNS is when the shim was first told that the guest's vCPUs run, on the same clock; 0: it was not.
	RunningSinceNS int64 `json:"runningSinceNS,omitempty"`
	// GuestTools is the version of the guest program that answered last, in at most MaxGuestTools printable ASCII
	// characters, as it says itself; empty: none has answered.
	GuestTools string `json:"guestTools,omitempty"`
	// ExitText is the line that the guest wrote last to its exit port, in at most MaxExitText printable ASCII
	// characters; empty: it wrote none.
	ExitText string `json:"exitText,omitempty"`
	// Resets and NMIs count how often somebody asked for the action, ResetsDone and NMIsDone what was acknowledged of it.
	Resets     uint64 `json:"resets,omitempty"`
	NMIs       uint64 `json:"nmis,omitempty"`
	ResetsDone uint64 `json:"resetsDone,omitempty"`
	NMIsDone   uint64 `json:"nmisDone,omitempty"`
}

// BootTime is the time since boot, by the clock of messages, CLOCK_BOOTTIME. It never jumps.
func BootTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail: the clock exists since Linux 2.6.39
	return time.Duration(t.Nano())
}

func (Hello) validate() error { return nil }

func (Acted) validate() error { return nil }

func (r Running) validate() error {
	if r.Phase != PhaseRunning && r.Phase != PhasePaused {
		return fmt.Errorf("phase %.40q is neither running nor paused", r.Phase)
	}
	if r.LastResetNS < 0 {
		return fmt.Errorf("reset at %d ns", r.LastResetNS)
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
	if s.Minor < 1 || len(s.Kinds) < 1 || len(s.Kinds) > maxKinds {
		return fmt.Errorf("minor version %d, or %d kinds of devices, which are 1 to %d", s.Minor, len(s.Kinds), maxKinds)
	}
	for i, kind := range s.Kinds {
		if !isName(string(kind), maxKind) || slices.Contains(s.Kinds[:i], kind) {
			return fmt.Errorf("kind %.40q is there twice, or not 1 to %d lower-case letters, digits and hyphens", kind, maxKind)
		}
	}
	switch {
	case s.TerminatingSinceNS < 0 || s.RunningSinceNS < 0:
		return fmt.Errorf("terminating since %d ns, running since %d ns", s.TerminatingSinceNS, s.RunningSinceNS)
	case !isPrintable(s.GuestTools, MaxGuestTools) || !isPrintable(s.ExitText, MaxExitText):
		return fmt.Errorf("guest tools %.40q or exit text %.70q are not at most %d and %d printable ASCII characters", s.GuestTools, s.ExitText, MaxGuestTools, MaxExitText)
	case s.ResetsDone > s.Resets || s.NMIsDone > s.NMIs:
		return fmt.Errorf("%d of %d resets and %d of %d NMIs are done", s.ResetsDone, s.Resets, s.NMIsDone, s.NMIs)
	case s.InstanceID == "":
		return nil
	}
	return validateInstanceID(s.InstanceID)
}

// isPrintable: the text is at most limit printable ASCII characters, or spaces.
func isPrintable(text string, limit int) bool {
	odd := func(r rune) bool { return r < ' ' || r > '~' }
	return len(text) <= limit && strings.IndexFunc(text, odd) < 0
}

// Takes tells whether the shim takes devices of the kind.
func (s State) Takes(kind Kind) bool { return slices.Contains(s.Kinds, kind) }

func validateInstanceID(id string) error {
	if id == "" || !isPrintable(id, maxInstanceID) || strings.Contains(id, " ") {
		return fmt.Errorf("instance ID %.140q is not 1 to 128 printable ASCII characters", id)
	}
	return nil
}

// packet is a message on the wire. A reader ignores fields that it does not know.
type packet struct {
	Version  int       `json:"v"`
	Hello    *Hello    `json:"hello,omitempty"`
	HandOver *HandOver `json:"handOver,omitempty"`
	Running  *Running  `json:"running,omitempty"`
	Acted    *Acted    `json:"acted,omitempty"`
	Exit     *Exit     `json:"exit,omitempty"`
	State    *State    `json:"state,omitempty"`
}

func encode(m Message) (_ []byte, err error) {
	if e, ok := m.(Exit); ok {
		e.Reason, e.Message = printable(e.Reason, maxReason), printable(e.Message, MaxExitMessage)
		m = e
	}
	if err := m.validate(); err != nil {
		return nil, err
	}
	p := packet{Version: major}
	switch m := m.(type) {
	case Hello:
		p.Hello = &m
	case HandOver:
		p.HandOver = &m
	case Running:
		p.Running = &m
	case Acted:
		p.Acted = &m
	case Exit:
		p.Exit = &m
	case State:
		p.State = &m
	}
	var data bytes.Buffer
	enc := json.NewEncoder(&data)
	enc.SetEscapeHTML(false) // would make six bytes of one, and a message too long
	err = enc.Encode(p)
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
	return strings.ToValidUTF8(text[:min(len(text), limit)], "") // of a character that is cut, nothing
}

// errUnknown is a message of a kind that is newer than this program.
var errUnknown = errors.New("message of an unknown kind")

func decode(data []byte) (Message, error) {
	if len(data) > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes is too long", len(data))
	}
	var p packet
	err := json.Unmarshal(data, &p)
	switch {
	case p.Version != major && p.Version != 0: // whatever else is in it may mean something else there
		return nil, fmt.Errorf("message is of protocol %d, this program speaks protocol %d", p.Version, major)
	case err != nil:
		return nil, fmt.Errorf("decoding a message: %w", err)
	case p.Version == 0:
		return nil, errors.New("message names no version of the protocol")
	}
	var m Message
	switch {
	case p.Hello != nil:
		m = *p.Hello
	case p.HandOver != nil:
		m = *p.HandOver
	case p.Running != nil:
		m = *p.Running
	case p.Acted != nil:
		m = *p.Acted
	case p.Exit != nil:
		m = *p.Exit
	case p.State != nil:
		m = *p.State
	default:
		return nil, errUnknown
	}
	return m, m.validate()
}
