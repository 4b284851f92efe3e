package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/homedir"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/cli/rfb"
	"github.com/berth-dev/berth/third_party/novnc"
)

// vncPage joins noVNC with the guest's screen.
//
//go:embed vnc.html
var vncPage []byte

func (s *session) vnc() *cobra.Command {
	var address string
	cmd := s.guestVerb("vnc NAME [--address[=HOST:PORT]]", "Show the guest's screen in a browser, or with --address to any VNC viewer", cobra.ExactArgs(1), func(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, _ []string) error {
		if err := hasScreen(vm); err != nil {
			return err
		}
		isPage := address == ""
		if isPage {
			address = "127.0.0.1:0"
		}
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = listener.Close() })
		view := func(here io.ReadWriteCloser) { s.carry(here, pod, vncPort) }
		if isPage {
			secret := "/" + rand.Text() + "/"
			url := "http://" + listener.Addr().String() + secret
			if err := browse(ctx, url); err != nil {
				fmt.Fprintf(s.ErrOut, "Open this page in a browser of this machine (%v):\n", err)
			}
			fmt.Fprintln(s.Out, url)
			return (&http.Server{Handler: page(secret, view), ReadHeaderTimeout: 10 * time.Second}).Serve(listener)
		}
		fmt.Fprintln(s.Out, listener.Addr())
		for {
			here, err := listener.Accept()
			if err != nil {
				return err
			}
			go view(here)
		}
	})
	cmd.Flags().StringVar(&address, "address", "", "Listen for VNC viewers, and print where")
	cmd.Flags().Lookup("address").NoOptDefVal = "127.0.0.1:0"
	return cmd
}

// page is what is served below a path that nobody can guess: the page, noVNC, and the screen as a WebSocket.
func page(secret string, view func(io.ReadWriteCloser)) http.Handler {
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
		if conn, err := upgrader.Upgrade(w, r, nil); err == nil { // else it has answered
			view(webSocket{conn, websocket.JoinMessages(conn, "")})
		}
	})
	return mux
}

// webSocket is a stream of the binary messages of a WebSocket.
type webSocket struct {
	*websocket.Conn
	io.Reader
}

func (w webSocket) Write(p []byte) (int, error) {
	return len(p), w.WriteMessage(websocket.BinaryMessage, p)
}

// browse opens a page in the user's browser.
func browse(ctx context.Context, url string) error {
	opener := cmp.Or(map[string]string{"darwin": "open", "windows": "explorer"}[runtime.GOOS], "xdg-open")
	return exec.CommandContext(ctx, opener, url).Start()
}

// vncPort is where a berth's shim serves its guest's screen.
const vncPort = 5900

func (s *session) screenshot() *cobra.Command {
	var timeout time.Duration
	cmd := s.guestVerb("screenshot NAME FILE.png", "Write what the guest's screen shows to a PNG file, or to - for the output", cobra.ExactArgs(2), func(_ context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, files []string) error {
		if err := hasScreen(vm); err != nil {
			return err
		}
		conn, err := s.dial(pod, vncPort)
		if err != nil {
			return err
		}
		defer conn.Close()
		late := time.AfterFunc(timeout, func() { _ = conn.Close() })
		picture, err := rfb.Screenshot(conn)
		if !late.Stop() {
			err = errors.New("it does not answer")
		}
		if err != nil {
			return fmt.Errorf("the screen of %s (8 viewers at most; a display that was just set takes a restart): %w", pod.Name, err)
		}
		var file bytes.Buffer
		if err := png.Encode(&file, picture); err != nil {
			return err
		}
		if files[0] == "-" {
			_, err = s.Out.Write(file.Bytes())
			return err
		}
		return os.WriteFile(files[0], file.Bytes(), 0o644) //nolint:gosec // as any program's output
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "Give up after so long")
	return cmd
}

// hasScreen is an error for a guest that has none.
func hasScreen(vm *v1alpha1.VirtualMachine) error {
	if vm.Spec.Display != nil {
		return nil
	}
	return fmt.Errorf("%[1]s/%[2]s has no screen: set spec.display ({type: VGA}), and kubectl vm restart %[2]s", resourceName, vm.Name)
}

// dialed is a connection to a port of a pod, by its portforward, that nothing on this machine listens for.
type dialed struct {
	httpstream.Stream
	conn    httpstream.Connection
	failure httpstream.Stream
}

// dial connects by a WebSocket, or by SPDY where something on the way knows none, as kubectl does.
func (s *session) dial(pod *corev1.Pod, port int) (io.ReadWriteCloser, error) {
	url := s.clients.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(s.config)
	if err != nil {
		return nil, err
	}
	webSocket, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, s.config)
	if err != nil {
		return nil, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(webSocket, spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url), func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	d := &dialed{}
	if d.conn, _, err = dialer.Dial(portforward.PortForwardProtocolV1Name); err != nil {
		return nil, fmt.Errorf("reaching the pod %s: %w", pod.Name, err)
	}
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	if d.failure, err = d.conn.CreateStream(headers); err == nil {
		_ = d.failure.Close() // nothing is written to it
		headers.Set(corev1.StreamType, corev1.StreamTypeData)
		d.Stream, err = d.conn.CreateStream(headers)
	}
	if err != nil {
		return nil, errors.Join(err, d.conn.Close())
	}
	return d, nil
}

// Read ends with what the other side says of a failure, if it says something.
func (d *dialed) Read(p []byte) (int, error) {
	n, err := d.Stream.Read(p)
	if err != nil && n == 0 {
		if said, _ := io.ReadAll(io.LimitReader(d.failure, 4<<10)); len(said) > 0 {
			return 0, errors.New(clean(string(said)))
		}
	}
	return n, err
}

// Close ends the connection in both directions.
func (d *dialed) Close() error { return errors.Join(d.Reset(), d.conn.Close()) }

// carry copies between a connection here and a port of a pod until either has ended.
func (s *session) carry(here io.ReadWriteCloser, pod *corev1.Pod, port int) {
	defer here.Close()
	there, err := s.dial(pod, port)
	if err == nil {
		go func() {
			_, _ = io.Copy(there, here)
			_ = there.Close()
		}()
		var n int64
		if n, err = io.Copy(here, there); n > 0 {
			err = nil // it was reached
		}
	}
	if err != nil {
		fmt.Fprintf(s.ErrOut, "port %d of the guest %s: %v\n", port, pod.Name, err)
	}
}

func (s *session) ssh() *cobra.Command {
	var login string
	var port int
	cmd := s.verb("ssh [USER@]NAME [-l USER] [-p PORT] [-- SSH-OPTION… COMMAND…]", "Log into the guest by this machine's ssh, whatever network the guest is in", cobra.MinimumNArgs(1), 1, func(ctx context.Context, args []string) error {
		name := args[0]
		if user, rest, is := strings.Cut(name, "@"); is {
			login, name = user, rest
		}
		vm, pod, err := s.berth(ctx, name)
		if err != nil {
			return err
		}
		options, err := s.knownHosts(ctx, vm, pod)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		go func() {
			here, err := listener.Accept()
			_ = listener.Close() // it is for this ssh alone
			if err == nil {
				s.carry(here, pod, port)
			}
		}()
		options = append(options, "-o", "HostKeyAlias="+string(vm.UID), "-o", "CheckHostIP=no", "-p", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
		if login != "" {
			options = append(options, "-l", login)
		}
		ssh := exec.CommandContext(ctx, "ssh", append(append(options, "127.0.0.1"), args[1:]...)...) // ssh takes options after the host, too
		ssh.Stdin, ssh.Stdout, ssh.Stderr = s.In, s.Out, s.ErrOut
		err = ssh.Run()
		switch exit, is := errors.AsType[*exec.ExitError](err); {
		case errors.Is(err, exec.ErrNotFound):
			return fmt.Errorf("this machine has no ssh: install OpenSSH's client, or use kubectl vm exec -it %s -- sh", vm.Name)
		case is && exit.ExitCode() >= 0:
			return exitCode(exit.ExitCode())
		}
		return err
	})
	cmd.Flags().StringVarP(&login, "login", "l", "", "The guest's user; ssh's own default else")
	cmd.Flags().IntVarP(&port, "port", "p", 22, "The port of the guest's ssh server")
	return cmd
}

// knownHosts are options that have ssh know the guest by its own host keys, read through the guest program; where none
// answers, by the key that the same VirtualMachine had when ssh first saw it.
func (s *session) knownHosts(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod) ([]string, error) {
	dir := filepath.Join(homedir.HomeDir(), ".kube", "berth")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	said := &bytes.Buffer{}
	_ = s.ask(ctx, pod, nil, said, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub") // where it fails, there are no keys
	known := hostKeys(string(vm.UID), said.String())
	if known == "" {
		return []string{"-o", "StrictHostKeyChecking=accept-new", "-o", `UserKnownHostsFile="` + filepath.Join(dir, "known_hosts") + `"`}, nil
	}
	file := filepath.Join(dir, string(vm.UID))
	return []string{"-o", "StrictHostKeyChecking=yes", "-o", "GlobalKnownHostsFile=none", "-o", `UserKnownHostsFile="` + file + `"`}, os.WriteFile(file, []byte(known), 0o600)
}

var publicKey = regexp.MustCompile(`(?m)^((?:ssh|ecdsa)-[a-z0-9-]+) ([A-Za-z0-9+/]+=*)(?:\s|$)`)

// hostKeys are lines of known_hosts for an alias, of what a guest says are its public keys: of each line type and key alone.
func hostKeys(alias, text string) (known string) {
	for _, m := range publicKey.FindAllStringSubmatch(text[:min(len(text), 64<<10)], -1) {
		known += alias + " " + m[1] + " " + m[2] + "\n"
	}
	return known
}
