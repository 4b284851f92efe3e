package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/berth-dev/berth/test/env"
)

// TestPullsKilled kills the agent again and again while it pulls. The next one goes on with what is not compressed, and
// begins anew with what is; nothing half is used, and nothing is left.
func TestPullsKilled(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	w := &web{files: map[string][]byte{}, sent: map[string]int{}}
	address := w.serve(t)
	const size = 24 << 20
	kills := deep(2, 3, 3)
	for round := range deep(1, 6, 34) {
		for name, pack := range map[string]func([]byte) []byte{
			"plain":      func(b []byte) []byte { return b },
			"compressed": func(b []byte) []byte { z, _ := zstd.NewWriter(nil); return z.EncodeAll(b, nil) },
		} {
			content := make([]byte, size)
			_, _ = rand.Read(content)
			file, vm := fmt.Sprintf("%s-%d", name, round), fmt.Sprintf("%s%d", name, round)
			w.put(file, pack(content))
			sent := func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.sent[file] }
			sum := sha256.Sum256(w.files[file])
			l.apply(guestWith(vm, fmt.Sprintf("{name: data, image: \"https://%s/slow/%s/%s#sha256=%x\"}", address, l.ns, file, sum)) + on(node))
			for range kills {
				before := sent()
				env.Within(t, waitTimeout, "a part of "+file+" to be sent", func() bool { return sent() >= before+size/8 })
				l.onNode(node, "pkill", "-KILL", "-f", "^/berth-agent")
				victim{l, "berth-agent", node}.revive()
			}
			l.vm(vm, "to be Ready", isReady)
			path := fmt.Sprintf("/var/lib/berth/images/%x/disk.raw", sum)
			if got, want := strings.Fields(l.onNode(node, "sha256sum", path))[0], fmt.Sprintf("%x", sha256.Sum256(content)); got != want {
				t.Errorf("%s is %s, not %s", path, got, want)
			}
			again := sent() - len(w.files[file])
			t.Logf("%s: %d bytes were sent twice, of %d in %d kills", file, again, size, kills)
			if name == "plain" && again > kills<<20 {
				t.Errorf("%d bytes of %s were sent twice", again, file)
			}
			l.kubectl("", "delete", "vm", vm)
		}
	}
	if left := l.onNode(node, "sh", "-c", "ls -d /var/lib/berth/images/.new-* /var/lib/berth/images/.part-* 2>/dev/null || true"); left != "" {
		t.Errorf("left %s", left)
	}
}
