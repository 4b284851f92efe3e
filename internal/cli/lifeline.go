package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// A guest that is thrown away ends though this program is killed. Kubernetes leaves commands behind then, but ends their input:
// one waits for that, and ends the guest. A startupProbe ends a guest in which nobody has started it.
const (
	lifelineTimeout = 15 * time.Minute
	lifelineHeld    = "/run/berth-lifeline" // in the guest

	lifeline = `trap '' HUP
true >` + lifelineHeld + ` && echo || exit
exec >/dev/null 2>&1
cat
` + guestsEnd
	// guestsEnd tells an exit code, that of a hang-up, where the host listens. Nothing of the guest is kept.
	guestsEnd = `for port in /dev/virtio-ports/dev.berth.exit.0 /dev/vport*p3; do [ -c "$port" ] && echo 129 >"$port" && break; done &
sleep 1
poweroff -f || busybox poweroff -f || echo o >/proc/sysrq-trigger`
)

// holdLifeline starts what ends the guest once it is let go, as by the end of this program.
func (s *session) holdLifeline(ctx context.Context, pod *corev1.Pod) (letGo func(), err error) {
	ctx, letGo = context.WithCancel(ctx)
	held, holder := io.Pipe()
	told, teller := io.Pipe()
	go func() {
		said := &bytes.Buffer{}
		err := s.runIn(ctx, pod, inGuest("sh", "-c", lifeline), true, false, genericiooptions.IOStreams{In: held, Out: teller, ErrOut: said})
		_ = teller.CloseWithError(fmt.Errorf("run --rm ends a guest by its sh, with a file in /run: %v %s", err, clean(said.String()))) //nolint:errorlint // an exit code of its own would be this program's, without a word
	}()
	go func() { // so that the shim does not take its place for another command
		for beats := time.NewTicker(30 * time.Second); ; <-beats.C {
			_, _ = holder.Write([]byte("\n"))
		}
	}()
	_, err = told.Read(make([]byte, 1))
	return letGo, errors.Join(ctx.Err(), err)
}
