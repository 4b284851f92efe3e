package hosttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/console"
)

const (
	consolesDir = "/run/berth/consoles/"
	portsDir    = "/run/berth/ports/"
	displaysDir = "/run/berth/displays/"
)

// Consoles are the sockets of guests' QEMUs, as console.Sockets. A QEMU leaves its own behind.
type Consoles struct{ h *Host }

// Path is as console.Sockets'.
func (c *Consoles) Path(uid string, which console.Socket) string {
	if which == console.Serial {
		return consolesDir + uid + ".sock"
	}
	return portsDir + uid + string(which) + ".sock"
}

func displayPath(uid string) string { return displaysDir + uid + "/vnc.sock" }

func (c *Consoles) all(uid string) []string {
	return []string{c.Path(uid, console.Serial), c.Path(uid, console.GuestPort), c.Path(uid, console.ExitPort), displayPath(uid)}
}

// Exists is as console.Sockets'.
func (c *Consoles) Exists(uid string) bool {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	return c.h.displays[uid] || slices.ContainsFunc(c.all(uid), func(p string) bool { return c.h.sockets[p] != nil })
}

// Connect is as console.Sockets'. Nothing comes from it.
func (c *Consoles) Connect(ctx context.Context, uid string, which console.Socket) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, noSocket(err)
	}
	return c.open(c.Path(uid, which))
}

// MakeDisplay is as console.Sockets'.
func (c *Consoles) MakeDisplay(uid string, _ int) (string, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.removed(uid, displayPath(uid))
	delete(c.h.sockets, displayPath(uid))
	c.h.displays[uid] = true
	return displayPath(uid), nil
}

// OpenDisplay is as console.Sockets'. Nobody can connect to it.
func (c *Consoles) OpenDisplay(uid string, _ int) (*os.File, error) { return c.open(displayPath(uid)) }

func (c *Consoles) open(socket string) (*os.File, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	if p := c.h.sockets[socket]; p == nil || p.qemu.cause != "" {
		return nil, noSocket(errors.New("nobody listens"))
	}
	return newFile(socket)
}

func noSocket(err error) error {
	return fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("connecting to QEMU's socket: %w", err))
}

// Remove is as console.Sockets'.
func (c *Consoles) Remove(uid string) error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	for _, p := range c.all(uid) {
		c.h.removed(uid, p)
		delete(c.h.sockets, p)
	}
	delete(c.h.displays, uid)
	return nil
}

// List is as console.Sockets'.
func (c *Consoles) List() (uids []string, err error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	for p := range c.h.sockets {
		if dir := path.Dir(p) + "/"; dir == consolesDir || dir == portsDir {
			uid, _, _ := strings.Cut(path.Base(p), ".")
			uids = append(uids, uid)
		}
	}
	for uid := range c.h.displays {
		uids = append(uids, uid)
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}
