package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/cli/rfb"
)

// vncPort is where a berth's shim serves its guest's screen.
const vncPort = 5900

func (s *session) screenshot() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "screenshot NAME FILE.png",
		Short:             "Write what the guest's screen shows to a PNG file, or to - for the output",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			vm, t, err := s.screen(ctx, args[0])
			if err != nil {
				return err
			}
			defer t.Close()
			picture, err := shoot(ctx, t)
			if err != nil {
				return fmt.Errorf("%s/%s: %w", resourceName, vm.Name, err)
			}
			var file bytes.Buffer
			if err := png.Encode(&file, picture); err != nil {
				return err
			}
			if args[1] == "-" {
				_, err = s.Out.Write(file.Bytes())
				return err
			}
			return os.WriteFile(args[1], file.Bytes(), 0o644) //nolint:gosec // as any program's output
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "Give up after so long")
	return cmd
}

// screen is a way to a guest's screen.
func (s *session) screen(ctx context.Context, name string) (*v1alpha1.VirtualMachine, *tunnel, error) {
	vm, pod, err := s.berth(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	if vm.Spec.Display == nil {
		return nil, nil, fmt.Errorf("%[1]s/%[2]s has no screen: set spec.display ({type: VGA}), and kubectl vm restart %[2]s", resourceName, vm.Name)
	}
	t, err := s.tunnel(pod)
	return vm, t, err
}

// shoot takes one picture.
func shoot(ctx context.Context, t *tunnel) (image.Image, error) {
	conn, err := t.dial(vncPort)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = t.Close() })
	defer stop()
	picture, err := rfb.Screenshot(conn)
	switch {
	case ctx.Err() != nil:
		return nil, errors.New("the screen does not answer")
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("the screen's connection ended: 8 viewers at most look at one, and a display that was just set takes a restart: %w", err)
	}
	return picture, err
}
