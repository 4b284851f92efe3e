package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/badregistry"
	"github.com/berth-dev/berth/test/env"
)

// The same MiB as xz and bzip2 pack it: these words, and zeroes.
const (
	afar   = "a disk from afar"
	xzed   = "/Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj7///AOpdADCICIbUTCNnfWSK7SWPuc58KVzBNNR4YQdc/InPxsLkt2Z7opdrzDuYZ5RSPAOEKJcxQxUfCusDZA2ln0KSlnrE/yPlzgMg+RnM4UHe/K7AJKMRJdg4pkyX9hLqGjBBMqGkgMrkDxVXoUSe4tLkRvZU8Ih1LDDbwlBUkSKXBgNfyXA7FMAyN5ilFQGl6KMJKuyq/1omrHIMFpKnvjmPJOFwnqcjX+woy4XRlZiKfiqR8id19xnABphNmP3Yr9WQD8QlU/j1kTYxBaWw7m/BcE1HDNGREaqtYB26zrEnGFxZhulmUliNhzzjAAAAAIWb8kHcemGWAAGGAoCAQADGkmmNscRn+wIAAAAABFla"
	bziped = "QlpoOTFBWSZTWRsQZsEAICHRgMAAQAAlKpgAAAggAEBUpGJtT0IGgaFXJIAeBIBK1Wd8xnHLv/W7sIA6LuSKcKEgNiDNgg=="
)

// web serves files to the lab by HTTPS.
type web struct {
	mu    sync.Mutex
	files map[string][]byte // by the path's last part
	sent  map[string]int    // bytes, of each
	cuts  int
}

func (w *web) put(name string, content []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name] = content
}

// serve has the files be there for the lab until the test ends, and returns where.
func (w *web) serve(t *testing.T) (address string) {
	t.Helper()
	address = env.Need(t, "LAB_TEST_WEB", "a lab; make lab-up, then eval \"$(make -s lab-env)\"")
	server := &http.Server{Addr: address, Handler: w, ReadHeaderTimeout: time.Minute}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if c, is := conn.(*tls.Conn); is && state == http.StateNew { // what counts as sent is not to wait here for who is slow to read
			_ = c.NetConn().(*net.TCPConn).SetWriteBuffer(64 << 10)
		}
	}
	key := filepath.Join(os.Getenv("LAB_DIR"), "pki", "apiserver")
	go func() { _ = server.ListenAndServeTLS(key+".crt", key+".key") }()
	t.Cleanup(func() { _ = server.Close() })
	return address
}

// ServeHTTP serves files of which those in /private/ want a password, those in /cut/ are cut off at any byte, those in
// /slow/ come at 6 MiB a second, and those behind /to/ are elsewhere. It is a mirror, too.
func (w *web) ServeHTTP(to http.ResponseWriter, req *http.Request) {
	if rest, is := strings.CutPrefix(req.URL.Path, "/v2/mirror/"); is {
		req.URL.Path = "/v2/" + rest
		misbehaving.ServeHTTP(to, req)
		return
	}
	if rest, is := strings.CutPrefix(req.URL.Path, "/to/"); is {
		http.Redirect(to, req, "/"+rest, http.StatusFound)
		return
	}
	if _, password, _ := req.BasicAuth(); strings.HasPrefix(req.URL.Path, "/private/") && password != badregistry.Password {
		to.Header().Set("WWW-Authenticate", `Basic realm="files"`)
		to.WriteHeader(http.StatusUnauthorized)
		return
	}
	name := req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]
	w.mu.Lock()
	content, is := w.files[name]
	w.mu.Unlock()
	if !is {
		to.WriteHeader(http.StatusNotFound)
		return
	}
	answer := &metered{to, w, name, len(content), 0}
	if strings.HasPrefix(req.URL.Path, "/cut/") {
		answer.left = 64<<10 + rand.IntN(len(content)/12) // about 20 times
	}
	if strings.HasPrefix(req.URL.Path, "/slow/") {
		answer.pause = 5 * time.Millisecond
	}
	http.ServeContent(answer, req, "", time.Unix(1e9, 0), bytes.NewReader(content))
}

// metered is an answer that ends after so many bytes.
type metered struct {
	http.ResponseWriter
	of    *web
	name  string
	left  int
	pause time.Duration // before each 32 KiB
}

func (c *metered) Write(b []byte) (int, error) {
	time.Sleep(c.pause)
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	c.left -= n
	c.of.mu.Lock()
	c.of.sent[c.name] += n
	if n < len(b) && err == nil {
		c.of.cuts++
	}
	c.of.mu.Unlock()
	if n < len(b) {
		panic(http.ErrAbortHandler)
	}
	return n, err
}

func decoded(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestURLs: disks come from a web server, packed in each way, behind a password, over a line that is cut, and from a
// mirror. What is there later under the same URL is not taken for the same.
func TestURLs(t *testing.T) {
	l := start(t)
	listen(t)
	w := &web{files: map[string][]byte{}, sent: map[string]int{}}
	address := w.serve(t)

	plain := []byte(afar + strings.Repeat("\x00", 1<<20-len(afar)))
	var gzipped bytes.Buffer
	z := gzip.NewWriter(&gzipped)
	_, err := z.Write(plain)
	zstandard, err2 := zstd.NewWriter(nil)
	if err != nil || z.Close() != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	noise := append([]byte(afar), make([]byte, 8<<20-len(afar))...)
	for i := len(afar); i < len(noise); i++ {
		noise[i] = byte(rand.Uint32())
	}
	digests := map[string]string{}
	// A node knows what a URL without a checksum was, so none is used twice.
	url := func(disk, dir, name string, content []byte, sum string) string {
		w.put(name, content)
		digests[disk] = digest.SHA256.FromBytes(content).String()
		switch sum {
		case "sha256":
			sum = "#" + strings.Replace(digests[disk], ":", "=", 1)
		case "sha512":
			digests[disk] = digest.SHA512.FromBytes(content).String()
			sum = "#" + strings.Replace(digests[disk], ":", "=", 1)
		}
		return fmt.Sprintf("{name: %s, image: %q}", disk, "https://"+address+dir+l.ns+"/"+name+sum)
	}
	misbehaving.Push(l.ns+"/mirrored", badregistry.Disk(afar+newDisk(l)))
	disks := []string{
		url("raw", "/", "disk.raw", plain, "sha256"), url("gz", "/", "disk.gz", gzipped.Bytes(), ""),
		url("zst", "/to/", "disk.zst", zstandard.EncodeAll(plain, nil), "sha512"),
		url("xz", "/", "disk.xz", decoded(t, xzed), ""), url("bz2", "/", "disk.bz2", decoded(t, bziped), "sha256"),
		url("private", "/private/", "team.raw", append(plain, plain...), ""), url("cut", "/cut/", "noise.raw", noise, ""),
		fmt.Sprintf("{name: mirror, image: %s/%s/mirrored}", os.Getenv("LAB_MIRRORED"), l.ns),
		strings.Replace(url("claim", "/", "seed.raw", append([]byte(afar+l.ns), plain...), "sha256"), "}", ", persistentVolumeClaim: {claimName: claim}}", 1),
	}
	l.kubectl("", "create", "secret", "docker-registry", "files",
		"--docker-server="+address, "--docker-username=robot", "--docker-password="+badregistry.Password)

	t.Log("from inside the guest, each is what it was there")
	l.apply(claimOf("claim", "Filesystem", "ReadWriteOnce", "300Mi") + guestWith("afar", disks...) + "  imagePullSecrets: [{name: files}]\n")
	vm := l.vm("afar", "to be Ready", isReady)
	for _, name := range []string{"raw", "gz", "zst", "xz", "bz2", "private", "cut", "mirror", "claim"} {
		var got string
		env.Eventually(l, "guest afar to be reached", func() bool {
			ran := l.exec("afar", nil, "sh", "-ec", disk+fmt.Sprintf("head -c %d /dev/$(disk %s)", len(afar), name))
			got = ran.out
			return ran.code == 0
		})
		if got != afar {
			t.Errorf("disk %s has %q", name, got)
		}
		if is := diskStatus(vm, name).ImageDigest; name != "mirror" && is != digests[name] {
			t.Errorf("disk %s has digest %s, not %s", name, is, digests[name])
		}
	}
	env.Eventually(l, "an Event that tells of a pull", func() bool { // kubelet has some of the same reason, of the pod
		said := l.kubectl("", "get", "events", "--field-selector", "involvedObject.kind=VirtualMachine,reason="+string(v1alpha1.ReasonPulled), "-o", "jsonpath={.items[*].message}")
		return strings.Contains(said, "Pulled image ") && strings.Contains(said, " MiB/s")
	})
	sum := strings.Fields(l.exec("afar", nil, "sh", "-ec", disk+"sha256sum </dev/$(disk cut)").out)
	if want := digest.SHA256.FromBytes(noise).Encoded(); len(sum) == 0 || sum[0] != want {
		t.Errorf("the disk that was cut has %v, not %s", sum, want)
	}
	w.mu.Lock()
	again, cuts := w.sent["noise.raw"]-len(noise), w.cuts
	w.mu.Unlock()
	t.Logf("it was cut %d times, and %d bytes were sent twice", cuts, again)
	if cuts < 10 || again > 1<<20 {
		t.Error("that is another number of cuts than the test is for, or too many bytes")
	}

	t.Log("a private one is for those who have the password")
	const waits = v1alpha1.ConditionDisksReady
	l.apply(guestWith("stranger", url("private", "/private/", "team.raw", append(plain, plain...), "")))
	l.vm("stranger", "to be refused", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, waits, "False", v1alpha1.ReasonImageUnauthorized)
	})

	t.Log("another file under the URL is another disk")
	nodes := nodes(t)
	unique := append([]byte(l.ns), plain...) // no node has it
	moves := url("data", "/", "moves.raw", unique, "")
	l.apply(guestWith("moves", strings.Replace(moves, "}", ", ephemeral: true}", 1)) + on(nodes[0]))
	l.vm("moves", "to be Ready", isReady)
	w.put("moves.raw", noise)
	l.patch("moves", `{"nodeSelector":{"kubernetes.io/hostname":"`+nodes[1]+`"},"restartedAt":"`+strconv.FormatInt(time.Now().Unix(), 10)+`"}`)
	l.vm("moves", "to find another file", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, waits, "False", v1alpha1.ReasonImageDigestMismatch)
	})
	if said := l.event("moves", v1alpha1.ReasonImageDigestMismatch); !strings.Contains(said, "what it serves is not "+digests["data"]) {
		t.Errorf("the Event says %q", said)
	}
	w.put("moves.raw", unique)
	l.vm("moves", "to be Ready again", isReady)

	t.Log("a web page is no disk")
	page := []byte("<!DOCTYPE html>" + strings.Repeat(" ", 1<<20))
	l.recovers(bad{
		manifest:  tiny + "  disks:\n  - " + url("data", "/", "page", page, "") + "\n",
		condition: waits, reason: v1alpha1.ReasonImageNotDisk, says: "it is a web page",
		repair: func(*lab) { w.put("page", plain) },
	})
}
