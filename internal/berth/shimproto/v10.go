package shimproto

import (
	"errors"
	"fmt"
)

// attach is HandOver in protocol 1.0: descriptor 0 is the console's, and 1 the lease's if there is one.
type attach struct {
	InstanceID string `json:"run"`
	Lease      *Lease `json:"nic,omitempty"`
}

// attach says h in protocol 1.0, if that can say it.
func (h HandOver) attach() (*attach, error) {
	a := &attach{InstanceID: h.InstanceID}
	console := false
	for _, d := range h.Devices {
		switch {
		case d.Kind == KindConsole && d.FD == 0:
			console = true
		case d.Kind == KindLease && d.FD == 1:
			a.Lease = d.Lease
		default:
			return nil, fmt.Errorf("a shim of protocol 1.0 takes a console with descriptor 0 and a lease with 1, not %s %s with %d", d.Kind, d.Name, d.FD)
		}
	}
	if !console {
		return nil, errors.New("a shim of protocol 1.0 takes nothing without a console")
	}
	return a, nil
}

func (a *attach) handOver() HandOver {
	h := HandOver{InstanceID: a.InstanceID, Devices: []Device{{Kind: KindConsole, Name: string(KindConsole), FD: 0}}}
	if a.Lease != nil {
		h.Devices = append(h.Devices, Device{Kind: KindLease, Name: string(KindLease), FD: 1, Lease: a.Lease})
	}
	return h
}
