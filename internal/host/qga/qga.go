package qga

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Bounds of what a guest may say.
const (
	maxReply = 64 << 10 // bytes
	maxText  = 128      // characters
)

// Commander sends a guest agent's command, JSON, and returns its reply, JSON.
type Commander interface {
	AgentCommand(ctx context.Context, command string) (string, error)
}

// Info is what a guest says of itself.
type Info struct {
	AgentVersion string
	Hostname     string
	OS           OS
}

// OS is what a guest says of its operating system (os-release(5), uname(2)).
type OS struct {
	ID, PrettyName, Kernel string
}

// Ask asks a guest who it is. What its agent does not know, or does not let
// anybody ask, stays empty; an error means that no agent answers.
func Ask(ctx context.Context, c Commander) (Info, error) {
	var agent struct {
		Version text `json:"version"`
	}
	if err := call(ctx, c, request{Execute: "guest-info"}, &agent); err != nil {
		return Info{}, err
	}
	var guest struct {
		Hostname text `json:"host-name"`
		ID       text `json:"id"`
		Pretty   text `json:"pretty-name"`
		Kernel   text `json:"kernel-release"`
	}
	for _, command := range []string{"guest-get-host-name", "guest-get-osinfo"} {
		if err := call(ctx, c, request{Execute: command}, &guest); err != nil && !errors.Is(err, ErrRefused) {
			return Info{}, err
		}
	}
	return Info{
		AgentVersion: string(agent.Version),
		Hostname:     string(guest.Hostname),
		OS:           OS{ID: string(guest.ID), PrettyName: string(guest.Pretty), Kernel: string(guest.Kernel)},
	}, nil
}

// RunShell has a guest run a command of sh(1), as root, and does not wait for it. Many do not let their agents run anything,
// and say so: that is an error, too.
func RunShell(ctx context.Context, c Commander, command string) error {
	var started struct {
		PID int `json:"pid"`
	}
	return call(ctx, c, request{"guest-exec", map[string]any{"path": "/bin/sh", "arg": []string{"-c", command}}}, &started)
}

// Freeze has a guest write out what its file systems have in memory, and hold all writes until Thaw; see fsfreeze(8).
func Freeze(ctx context.Context, c Commander) error {
	var frozen int // file systems
	if err := call(ctx, c, request{Execute: "guest-fsfreeze-freeze"}, &frozen); err != nil || frozen > 0 {
		return err
	}
	return notConnected(fmt.Errorf("%w: it has no file system that it can freeze", ErrRefused))
}

// Thaw lets a guest write again. That it was not frozen is no error.
func Thaw(ctx context.Context, c Commander) error {
	var thawed int
	return call(ctx, c, request{Execute: "guest-fsfreeze-thaw"}, &thawed)
}

// ErrRefused says that the agent answered, and that it will not do this.
var ErrRefused = errors.New("the guest agent refused")

// request is a command to a guest agent.
type request struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
}

func call(ctx context.Context, c Commander, r request, into any) error {
	command, _ := json.Marshal(r) // strings never fail
	reply, err := c.AgentCommand(ctx, string(command))
	if err == nil {
		err = parse(reply, into)
	}
	return fault.Doing(err, "calling %s on the guest agent", r.Execute)
}

// parse reads a reply into a value. Shapes that do not fit make it a refusal.
func parse(reply string, into any) error {
	if len(reply) > maxReply {
		return notConnected(fmt.Errorf("a reply of %d bytes, %d at most", len(reply), maxReply))
	}
	var envelope struct {
		Return json.RawMessage `json:"return"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal([]byte(reply), &envelope); err != nil {
		return notConnected(errors.New("a reply that is not JSON"))
	}
	if len(envelope.Error) > 0 || len(envelope.Return) == 0 || bytes.Equal(envelope.Return, []byte("null")) {
		return notConnected(ErrRefused)
	}
	if err := json.Unmarshal(envelope.Return, into); err != nil {
		return notConnected(fmt.Errorf("%w: its reply has another shape", ErrRefused))
	}
	return nil
}

func notConnected(err error) error {
	return fault.NewTransient(v1alpha1.ReasonGuestAgentNotConnected, err)
}

// text is a guest's string, made fit to be shown: printable, and not too long.
type text string

// UnmarshalJSON cuts the string short and leaves out what a terminal might obey.
func (t *text) UnmarshalJSON(raw []byte) error {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil //nolint:nilerr // a number where a word should be is just not said
	}
	shown := slices.DeleteFunc([]rune(s), func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar })
	*t = text(shown[:min(len(shown), maxText)])
	return nil
}
