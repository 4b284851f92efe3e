package podnet

import (
	"context"
	"fmt"
	"os"
)

// Traffic is what one direction has carried since the tap was made.
type Traffic struct{ Bytes, Packets, Dropped uint64 }

// Stats returns what the guest has received and sent. A tap that is gone is an error.
func Stats(ctx context.Context, ns *os.File, tap string) (received, sent Traffic, err error) {
	both, err := classified(inside(ctx, ns, func() ([2]Traffic, error) {
		h, err := handle()
		if err != nil {
			return [2]Traffic{}, err
		}
		defer h.Close()
		link, err := tapIn(h, tap)
		if err != nil {
			return [2]Traffic{}, err
		}
		if link == nil || link.Attrs().Statistics == nil {
			return [2]Traffic{}, fmt.Errorf("tap %s is not in the pod: its QEMU has ended", tap)
		}
		s := link.Attrs().Statistics // the tap sends what the guest receives
		return [2]Traffic{{s.TxBytes, s.TxPackets, s.TxDropped}, {s.RxBytes, s.RxPackets, s.RxDropped}}, nil
	}))
	return both[0], both[1], err
}
