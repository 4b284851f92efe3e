package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// heap is how many bytes live on the heap.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestWhiteoutsTakeLittleMemory: a PAX header gives a name of a MiB for a few bytes on the wire.
func TestWhiteoutsTakeLittleMemory(t *testing.T) {
	for name, path := range map[string]func(long string) string{
		"whiteouts":           func(long string) string { return "disk/.wh." + long },
		"opaque directories":  func(long string) string { return "disk/" + long + "/.wh..wh..opq" },
		"files":               func(long string) string { return "disk/." + long },
		"short ones in great": func(long string) string { return strings.Repeat("./", len(long)/2) + "disk/.wh." + long[:9] },
	} {
		t.Run(name, func(t *testing.T) {
			var entries []tar.Header
			for n := range 40 {
				long := fmt.Sprintf("%09d", n) + strings.Repeat("x", 300_000)
				entries = append(entries, tar.Header{Name: path(long), Typeflag: tar.TypeReg})
			}
			l := archive(entries)
			clear(entries)
			entries = nil
			s := &search{wants: map[string]*want{diskDir: {path: diskDir, inDirectory: true}}, write: func(string, int64, io.Reader) error { return nil }, remaining: 1 << 30}
			before := heap()
			if err := s.layer(bytes.NewReader(l.data)); err != nil {
				t.Fatal(err)
			}
			if took := heap() - before; took > 1<<20 {
				t.Errorf("%d KiB", took>>10)
			}
			runtime.KeepAlive(s)
			runtime.KeepAlive(l)
		})
	}
}

// TestAManifestTakesLittleMemory: what is not read of it is not kept, however many there are of it.
func TestAManifestTakesLittleMemory(t *testing.T) {
	for name, b := range map[string]string{
		"empty layers":      `{"schemaVersion":2,"layers":[{}` + strings.Repeat(",{}", maxManifest/3-20) + `]}`,
		"empty entries":     `{"schemaVersion":2,"manifests":[{}` + strings.Repeat(",{}", maxManifest/3-20) + `]}`,
		"empty URLs":        `{"schemaVersion":2,"layers":[{"urls":[""` + strings.Repeat(`,""`, maxManifest/3-30) + `]}]}`,
		"many annotations":  `{"schemaVersion":2,"layers":[{"annotations":{"":""` + annotations() + `}}]}`,
		"unknown top level": `{"schemaVersion":2,"config":[{}` + strings.Repeat(",{}", maxManifest/3-20) + `]}`,
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := parseManifest([]byte(b)); err == nil && name != "unknown top level" {
				t.Error("it was taken")
			}
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 6*maxManifest {
				t.Errorf("%d MiB", took>>20)
			}
		})
	}
}

func annotations() string {
	var b strings.Builder
	for n := 0; b.Len() < maxManifest-100; n++ {
		fmt.Fprintf(&b, `,"%x":""`, n)
	}
	return b.String()
}

// windowed is a disk whose zstd window has so many bytes.
func windowed(window int) layer {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(window), zstd.WithSingleSegment(false))
	must(err)
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	for range 2 {
		_, err = w.Write(noise)
		must(err)
		must(w.Flush())
	}
	must(w.Close())
	return layer{mediaType: "application/vnd.acme.disk", data: b.Bytes()}
}

// TestZstdWindowsAreCounted: a window is allocated for a few bytes, and lives as long as the download drips.
func TestZstdWindowsAreCounted(t *testing.T) {
	s := serve(t, nil, Options{})
	small, large := s.push("test/small", windowed(8<<20)), s.push("test/large", windowed(64<<20))
	begun, finish, ended := make(chan struct{}), make(chan struct{}), make(chan error)
	holding, err := s.client.Resolve(t.Context(), large, Keychain{})
	must(err)
	go func() {
		ended <- holding.Disk(t.Context(), func(string, int64) (io.Writer, error) {
			close(begun)
			<-finish
			return io.Discard, nil
		})
	}()
	<-begun
	_, err = s.disk(large, Keychain{})
	expect(t, err, fault.Transient, v1alpha1.ReasonPullingImage, "compress it with one of at most 8 MiB (zstd -19, xz -6)")
	if _, err := s.disk(small, Keychain{}); err != nil {
		t.Errorf("with a small window: %v", err)
	}
	close(finish)
	if err := <-ended; err != nil {
		t.Errorf("the one that has the memory: %v", err)
	}
	if _, err := s.disk(large, Keychain{}); err != nil {
		t.Errorf("once it is free: %v", err)
	}
	later := windowed(8 << 20)
	later.data = append(later.data, windowed(64<<20).data...)
	_, err = s.disk(s.push("test/later", later), Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageNotDisk, "cannot be unpacked")
}

// TestAPullTakesLittleMemory holds what is promised of each pull that may run beside others.
func TestAPullTakesLittleMemory(t *testing.T) {
	s := serve(t, nil, Options{})
	records := map[string]string{}
	for n := range 60_000 { // a PAX header may have a MiB
		records[fmt.Sprintf("B.%x", n)] = "1"
	}
	for name, l := range map[string]layer{
		"zstd":        windowed(8 << 20),
		"PAX records": archive([]tar.Header{{Name: "disk/d", Typeflag: tar.TypeReg, Size: 1, PAXRecords: records}}, "d").gzip(),
	} {
		t.Run(name, func(t *testing.T) {
			image, err := s.client.Resolve(t.Context(), s.push("test/disk", l), Keychain{})
			must(err)
			before := heap()
			var most int64
			must(image.Disk(t.Context(), func(string, int64) (io.Writer, error) {
				return writerFunc(func(b []byte) (int, error) {
					most = max(most, heap()-before)
					return len(b), nil
				}), nil
			}))
			if t.Logf("%d KiB", most>>10); most > 24<<20 {
				t.Errorf("%d MiB", most>>20)
			}
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
