package cli

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/third_party/novnc"
)

// vncPage joins noVNC with the guest's screen.
//
//go:embed vnc.html
var vncPage []byte

func (s *session) vnc() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:               "vnc NAME [--address[=HOST:PORT]]",
		Short:             "Show the guest's screen in a browser, or with --address to any VNC viewer",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, t, err := s.screen(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_ = t.Close() // there is a way; each viewer has its own
			pod, err := s.pod(cmd.Context(), vm)
			if err != nil || pod == nil {
				return errors.Join(err, fmt.Errorf("%s/%s has no guest any more", resourceName, vm.Name))
			}
			if cmd.Flags().Changed("address") {
				return s.serveViewers(cmd.Context(), pod, address)
			}
			return s.servePage(cmd.Context(), pod)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "Listen for VNC viewers, and print where")
	cmd.Flags().Lookup("address").NoOptDefVal = "127.0.0.1:0"
	return cmd
}

// serveViewers carries each connection of a VNC viewer to the guest's screen.
func (s *session) serveViewers(ctx context.Context, pod *corev1.Pod, address string) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer listener.Close()
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	fmt.Fprintln(s.Out, listener.Addr())
	for {
		here, err := listener.Accept()
		if err != nil {
			return ctx.Err()
		}
		go s.view(pod, here)
	}
}

// view carries one connection to the guest's screen.
func (s *session) view(pod *corev1.Pod, here io.ReadWriteCloser) {
	defer here.Close()
	say := func(err error) { fmt.Fprintf(s.ErrOut, "the screen of %s: %v\n", pod.Name, err) }
	t, err := s.tunnel(pod)
	if err != nil {
		say(err)
		return
	}
	defer t.Close()
	there, err := t.dial(vncPort)
	if err != nil {
		say(err)
		return
	}
	join(here, there, say)
}

// servePage serves noVNC below a path that nobody can guess, to this machine alone, and opens it in a browser.
func (s *session) servePage(ctx context.Context, pod *corev1.Pod) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	secret := "/" + rand.Text() + "/"
	server := &http.Server{Handler: s.page(pod, secret), ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	url := "http://" + listener.Addr().String() + secret
	if err := browse(ctx, url); err != nil {
		fmt.Fprintf(s.ErrOut, "Open this page in a browser of this machine (%v):\n", err)
	}
	fmt.Fprintln(s.Out, url)
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return ctx.Err()
}

// page is what is served: the page, noVNC, and the screen as a WebSocket, all below the secret path.
func (s *session) page(pod *corev1.Pod, secret string) http.Handler {
	upgrader := websocket.Upgrader{Subprotocols: []string{"binary"}} // it takes connections from pages of its own host alone
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+secret+"{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("X-Frame-Options", "DENY")
		_, _ = w.Write(vncPage)
	})
	mux.Handle("GET "+secret+"novnc/", http.StripPrefix(secret+"novnc/", http.FileServerFS(novnc.Files())))
	mux.HandleFunc("GET "+secret+"screen", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return // it has answered
		}
		s.view(pod, &webSocket{Conn: conn})
	})
	return mux
}

// webSocket is a stream of the binary messages of a WebSocket.
type webSocket struct {
	*websocket.Conn
	message io.Reader
	writing sync.Mutex
}

func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.message == nil {
			_, message, err := w.NextReader()
			if err != nil {
				return 0, io.EOF // however it ended: the viewer is gone
			}
			w.message = message
		}
		n, err := w.message.Read(p)
		if n > 0 || err == nil {
			return n, nil
		}
		w.message = nil
	}
}

func (w *webSocket) Write(p []byte) (int, error) {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// browse opens a page in the user's browser.
func browse(ctx context.Context, url string) error {
	opener := map[string]string{"darwin": "open", "windows": "explorer"}[runtime.GOOS]
	if opener == "" {
		opener = "xdg-open"
	}
	return exec.CommandContext(ctx, opener, url).Start()
}
