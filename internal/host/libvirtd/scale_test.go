package libvirtd_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// TestScale uses libvirt's own test driver: it proves nothing about guests, but holds as many as one likes.
func TestScale(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, libvirtd.Options{Sockets: []string{l.Socket}, URI: "test:///default", ResyncInterval: 200 * time.Millisecond, PingInterval: 100 * time.Millisecond})
	const count = 1000
	ids := make([]string, count)
	var script strings.Builder
	for i := range ids {
		ids[i] = uuid.NewString()
		doc := fmt.Sprintf("<domain type='test'><name>t%d</name><uuid>%s</uuid><memory>1024</memory><os><type>hvm</type></os></domain>", i, ids[i])
		file := filepath.Join(l.Dir, fmt.Sprintf("t%d.xml", i))
		if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&script, "create %s\n", file)
	}
	start := time.Now()
	cmd := exec.CommandContext(t.Context(), "virsh", "--quiet", "--connect", "test+unix:///default?socket="+l.Socket)
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("creating domains: %v: %s", err, out)
	}
	t.Logf("created %d in %v", count, time.Since(start))
	for _, id := range ids {
		env.Eventually(t, "an event for each", func() bool { return k.of(id) > 0 })
	}
	start = time.Now()
	all, err := c.States(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("listed %d in %v", len(all), time.Since(start))
	if len(all) < count {
		t.Errorf("%d listed", len(all))
	}
	start = time.Now()
	for _, id := range ids {
		if d, err := c.Domain(t.Context(), id); err != nil || !d.Exists {
			t.Fatalf("%+v, %v", d, err)
		}
	}
	t.Logf("looked each up in %v", time.Since(start))
	if err := c.Err(); err != nil {
		t.Error(err)
	}
}
