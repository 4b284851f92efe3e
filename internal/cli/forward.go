package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/streaming/pkg/httpstream"
)

// tunnel is a way to a pod, by its portforward, that nothing on this machine listens for.
type tunnel struct {
	conn httpstream.Connection
	next int
}

// tunnel makes one. It is for one goroutine.
func (s *session) tunnel(pod *corev1.Pod) (*tunnel, error) {
	config, err := s.factory.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	clients, err := s.factory.KubernetesClientSet()
	if err != nil {
		return nil, err
	}
	dialer, err := dialerOf(config, clients, pod)
	if err != nil {
		return nil, err
	}
	conn, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, fmt.Errorf("reaching the pod %s: %w", pod.Name, err)
	}
	if protocol != portforward.PortForwardProtocolV1Name {
		_ = conn.Close()
		return nil, fmt.Errorf("reaching the pod %s: the API server speaks %q, not %q", pod.Name, protocol, portforward.PortForwardProtocolV1Name)
	}
	return &tunnel{conn: conn}, nil
}

// dialerOf is kubectl's: a WebSocket, or SPDY where something on the way knows none.
func dialerOf(config *rest.Config, clients kubernetes.Interface, pod *corev1.Pod) (httpstream.Dialer, error) {
	url := clients.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	if cmdutil.PortForwardWebsockets.IsDisabled() {
		return old, nil
	}
	dialer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(dialer, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}

func (t *tunnel) Close() error { return t.conn.Close() }

// dial connects to a port of the pod. What the other end says of a failure comes as the error of a Read.
func (t *tunnel) dial(port int) (io.ReadWriteCloser, error) {
	headers := http.Header{}
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(t.next))
	t.next++
	failure, err := t.conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	_ = failure.Close() // nothing is written to it
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := t.conn.CreateStream(headers)
	if err != nil {
		return nil, err
	}
	d := &dialed{Stream: data, conn: t.conn, failure: failure, said: make(chan error, 1)}
	go d.listen()
	return d, nil
}

// dialed is one connection through a tunnel.
type dialed struct {
	httpstream.Stream
	conn    httpstream.Connection
	failure httpstream.Stream
	said    chan error
}

// listen reads what the other end says at the connection's end: nothing, if it was a good one.
func (d *dialed) listen() {
	text, err := io.ReadAll(io.LimitReader(d.failure, 4<<10))
	if err == nil && len(text) > 0 {
		err = errors.New(clean(string(text)))
	}
	d.said <- err
	if err != nil {
		_ = d.Reset() // wakes who reads
	}
}

func (d *dialed) Read(p []byte) (int, error) {
	n, err := d.Stream.Read(p)
	if err == nil || n > 0 {
		return n, err
	}
	select {
	case said := <-d.said:
		if said != nil {
			return 0, said
		}
	default:
	}
	return 0, err
}

// Close ends the connection in both directions.
func (d *dialed) Close() error {
	err := d.Reset()
	d.conn.RemoveStreams(d.Stream, d.failure)
	return err
}
