package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const (
	pulledDisk = 4 << 30 // bytes
	piece      = 64 * mebi
)

// repeated is a disk in pieces: the first is one of its own, so that no node has it, and the others are the same, each as it
// is packed.
type repeated struct {
	first, piece []byte
	pieces       int64
}

func (r repeated) size() int64 { return int64(len(r.first)) + r.pieces*int64(len(r.piece)) }

// ReadAt reads of one piece at a time.
func (r repeated) ReadAt(b []byte, at int64) (int, error) {
	from := r.first
	if at -= int64(len(r.first)); at >= 0 {
		from, at = r.piece, at%int64(len(r.piece))
	} else {
		at += int64(len(r.first))
	}
	n := copy(b, from[at:])
	if n < len(b) {
		return n, io.ErrShortBuffer // which io.SectionReader's Read hands on with what it has
	}
	return n, nil
}

// ServeHTTP serves it.
func (r repeated) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	http.ServeContent(w, req, "", time.Unix(1e9, 0), &content{io.NewSectionReader(r, 0, r.size())})
}

// content reads of one piece at a time, and takes that for no error.
type content struct{ *io.SectionReader }

func (c *content) Read(b []byte) (int, error) {
	n, err := c.SectionReader.Read(b)
	if errors.Is(err, io.ErrShortBuffer) {
		err = nil
	}
	return n, err
}

// pulls measures how fast a node pulls a disk of 4 GiB from a web server, beside a program on the
// same node that downloads the same bytes and only computes their digest, and what the agent takes meanwhile.
func (b *bench) pulls(ctx context.Context, n int) (figures []figure, err error) {
	noise := make([]byte, piece)
	_, _ = rand.Read(noise)
	for i := range noise {
		noise[i] &= 0x3f // so that there is something to compress
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	for _, packing := range []struct {
		name string
		pack func([]byte) []byte
	}{
		{"", bytes.Clone},
		{"_gzip", func(raw []byte) []byte {
			var packed bytes.Buffer
			w := gzip.NewWriter(&packed)
			_, err1 := w.Write(raw)
			if err := errors.Join(err1, w.Close()); err != nil {
				panic(err) // memory takes it
			}
			return packed.Bytes()
		}},
		{"_zstd", func(raw []byte) []byte { return z.EncodeAll(raw, nil) }},
	} {
		disk := repeated{piece: packing.pack(noise), pieces: pulledDisk / piece}
		var ratios, speeds, memory []float64
		for i := range min(n, 3) {
			first := make([]byte, mebi)
			_, _ = rand.Read(first)
			disk.first = packing.pack(first)
			speed, bare, most, err := b.pullsOne(ctx, fmt.Sprintf("pull%s-%d", strings.ReplaceAll(packing.name, "_", "-"), i), disk)
			if err != nil {
				return figures, err
			}
			ratios, speeds, memory = append(ratios, speed/bare), append(speeds, speed), append(memory, most)
		}
		ratio := of("pull_ratio"+packing.name, "x", 0.9, "download and digest of the same bytes, by https", ratios)
		speed := of("pull_speed"+packing.name, "MiB/s", 0, "of what is sent", speeds)
		ratio.Better, speed.Better = "more", "more"
		figures = append(figures, ratio, speed, of("pull_agent_rss"+packing.name, "MiB", 40, "without what is mapped of its program", memory))
	}
	return figures, nil
}

// served is a web server that the lab's nodes trust.
type served struct {
	address string
	end     func() error
	ended   chan error // by itself
}

func (b *bench) serve(handler http.Handler) *served {
	server := &http.Server{Addr: os.Getenv("LAB_TEST_WEB"), Handler: handler, ReadHeaderTimeout: time.Minute}
	key := filepath.Join(os.Getenv("LAB_DIR"), "pki", "apiserver")
	s := &served{address: server.Addr, end: server.Close, ended: make(chan error, 1)}
	go func() { s.ended <- server.ListenAndServeTLS(key+".crt", key+".key") }()
	return s
}

// pullsOne pulls a disk once, and removes it. It returns how many MiB of it came in a second, how many do if nothing but
// their digest is wanted, and the most MiB that were resident of the agent's own
// memory.
func (b *bench) pullsOne(ctx context.Context, name string, disk repeated) (speed, bare, most float64, err error) {
	served := b.serve(disk)
	defer func() { err = errors.Join(err, served.end()) }()

	self, err := os.Executable()
	if err != nil {
		return 0, 0, 0, err
	}
	var digest string
	if err := wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		said, err := b.onNode(ctx, "", self, "-download", "https://"+served.address+"/disk")
		if err == nil {
			_, err = fmt.Sscan(said, &digest, &bare)
		}
		return err == nil, nil
	}); err != nil {
		select {
		case err = <-served.ended:
		default:
		}
		return 0, 0, 0, fmt.Errorf("serving %s: %w", served.address, err)
	}

	vm := b.guest(name)
	vm.Spec.Disks = []v1alpha1.Disk{{Name: "data", Image: fmt.Sprintf("https://%s/disk#sha256=%s", served.address, digest)}}
	if err := b.Create(ctx, vm); err != nil {
		return 0, 0, 0, err
	}
	err = wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		status, err := b.onNode(ctx, "", "sh", "-c", "cat /proc/$(pgrep -o -f '^/berth-agent')/status")
		if err != nil {
			return false, err
		}
		for line := range strings.Lines(status) {
			var kib float64
			if n, _ := fmt.Sscanf(line, "RssAnon: %f", &kib); n == 1 {
				most = max(most, kib/1024)
			}
		}
		speed, err = b.pulled(ctx, name)
		return speed > 0, err
	})
	_, failed := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	if err := errors.Join(err, failed); err != nil {
		return 0, 0, 0, err
	}
	_, err = b.onNode(ctx, "", "rm", "-r", "/var/lib/berth/images/"+digest) // its 4 GiB would fill the disk
	return speed, bare, most, err
}

// pulled is how many MiB a second the agent says that came, 0 if it has said nothing yet.
func (b *bench) pulled(ctx context.Context, name string) (speed float64, err error) {
	var events corev1.EventList
	named := fields.Set{"involvedObject.kind": "VirtualMachine", "involvedObject.name": name, "reason": string(v1alpha1.ReasonPulled)}
	if err := b.List(ctx, &events, client.InNamespace(b.ns), client.MatchingFieldsSelector{Selector: named.AsSelector()}); err != nil {
		return 0, err
	}
	for _, e := range events.Items {
		if !strings.Contains(e.Message, "https://") {
			continue
		}
		words := strings.Fields(e.Message) // … A MiB in B s, C MiB/s
		_, err = fmt.Sscan(words[len(words)-2], &speed)
	}
	return speed, err
}

// download takes a file, does nothing with it but hash it, and prints the digest and how many MiB of it came in a second.
func download(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	began, sum := time.Now(), sha256.New()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // the lab's own
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, resp.Body, make([]byte, 256<<10))
	if err == nil {
		_, err = fmt.Fprintf(os.Stdout, "%x %.1f\n", sum.Sum(nil), float64(n)/mebi/time.Since(began).Seconds())
	}
	return err
}
