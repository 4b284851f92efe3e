package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-dev/berth/test/env"
)

const crashDir = "BERTH_STORE_CRASH_DIR"

// TestKilledAtAnyMoment kills a process that imports, claims, makes disks, replaces and removes, over and over. Whatever
// it leaves must be whole once the store is opened again, and what was unfinished must be gone.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(crashDir); dir != "" {
		work(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: a store gives files to the users of guests")
	}
	dir := t.TempDir()
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	seen := map[string]int{}
	unseen := func() bool {
		return slices.ContainsFunc([]string{"image", "disk", "guest", "medium", "hardware", "resumed"}, func(what string) bool { return seen[what] == 0 })
	}
	longest := 40 * time.Millisecond
	for round := 0; round < rounds || unseen(); round++ {
		if round%20 == 19 && unseen() { // the machine is slow
			longest *= 2
		}
		if longest > time.Minute {
			t.Fatalf("the child never got far enough for this to prove anything: %v", seen)
		}
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
		child.Env = append(os.Environ(), crashDir+"="+dir)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it works now
			t.Fatal(err)
		}
		time.Sleep(rand.N(longest)) // the moment is the input, not a wait
		_ = child.Process.Kill()
		said, _ := io.ReadAll(out)
		_ = child.Wait()
		if strings.Contains(string(said), "FAIL") {
			t.Fatalf("%s", said)
		}
		seen["resumed"] += strings.Count(string(said), "resumed")
		check(t, dir, seen)
	}
	t.Logf("found whole: %v", seen)
}

// crashed is what work imports: several pieces, so that there are moments in between.
func crashed(n byte) []byte { return bytes.Repeat([]byte{n + 1}, 3*mib) }

// goesOn has the part that the process before was killed with, which must be right.
func goesOn(w io.Writer, content []byte) error {
	part, err := w.(*sparseFile).Resume()
	if err != nil {
		return err
	}
	had, err := io.ReadAll(part)
	if err == nil && !bytes.HasPrefix(content, had) {
		err = fmt.Errorf("%d bytes that are not the image's", len(had))
	}
	if len(had) > 0 {
		fmt.Println("resumed")
	}
	return err
}

func work(t *testing.T, dir string) {
	s := openAt(t, dir)
	fmt.Println()
	for i := 0; ; i++ {
		n := byte(i % 5)
		uid := fmt.Sprintf("00000000-0000-0000-0000-%012d", i%3)
		err := s.Import(t.Context(), Import{Content: disk(n), Source: "registry/a", Progress: &Progress{}, Fetch: func(_ context.Context, create Create) error {
			w, err := create(Disk, 3*mib)
			if err == nil && n < 3 { // the others are as if they were compressed
				err = goesOn(w, crashed(n))
			}
			for b := crashed(n); err == nil && len(b) > 0; b = b[mib/2:] {
				_, err = w.Write(b[:mib/2])
			}
			return err
		}})
		user, claimed := s.EnsureGuest(Identity{Namespace: "default", Name: "web", UID: uid})
		_, decided := s.Hardware(uid, Hardware{Layout: i, Machine: "pc-q35-7.2"})
		_, made := s.Overlay(uid, Overlay{Name: "root", Base: disk(n), Size: 1 << 40, User: user})
		_, remade := s.RecreateOverlay(uid, Overlay{Name: "scratch", Base: disk(n), User: user})
		inserted := s.SetMedium(uid, "install", fmt.Sprint(n), disk(n))
		var gone error
		if i%3 > 0 {
			gone = errors.Join(s.RemoveDisk(uid, "scratch"), s.SetMedium(uid, "install", "", Content{}))
		}
		kept := errors.Join(s.GrantAccess(disk(n), "proof"), s.SetTag("quay.io/a", disk(n).Digest))
		var removed error
		if i%4 == 3 {
			removed = s.Remove(uid)
		}
		if err := s.RemoveImage(disk(byte((i + 1) % 5))); err != nil && !errors.Is(err, ErrInUse) {
			removed = errors.Join(removed, err)
		}
		if err := errors.Join(err, claimed, decided, made, remade, inserted, gone, kept, removed); err != nil {
			t.Fatal(err)
		}
	}
}

func check(t *testing.T, dir string, seen map[string]int) {
	t.Helper()
	s := openAt(t, dir)
	for _, d := range []string{s.images, s.vms} {
		for _, name := range names(t, d) {
			if strings.HasPrefix(name, oldPrefix) || strings.HasPrefix(name, newPrefix) {
				t.Errorf("left %s", name)
			}
		}
	}
	images, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		b, err := os.ReadFile(i.DiskPath())
		if n := b[0] - 1; err != nil || i.Content != disk(n) || !bytes.Equal(b, crashed(n)) {
			t.Errorf("image %s is not whole: %d bytes, %v", i.Digest, len(b), err)
		}
		seen["image"]++
	}
	guests, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range guests {
		if g.Name != "web" {
			t.Errorf("nobody knows whose %s is", g.UID)
		}
		seen["guest"]++
		var r record
		if err := json.Unmarshal([]byte(read(t, filepath.Join(s.vms, g.UID, recordFile))), &r); err != nil || r.Version != recordVersion {
			t.Errorf("the record of %s is %+v, %v", g.UID, r, err)
		}
		if r.Hardware != nil {
			seen["hardware"]++
		}
		disks, err := s.Disks(g.UID)
		if err != nil {
			t.Error(err)
		}
		for _, d := range disks {
			if d.Base.Format == "" {
				t.Errorf("disk %s of %s has lost its base", d.Name, g.UID)
			}
			if d.CDROM {
				if d.Image != "" && disk(d.Image[0]-'0') != d.Base.Content {
					t.Errorf("the medium of %s is image %s under the name %s", g.UID, d.Base.Digest, d.Image)
				}
				seen["medium"]++
				continue
			}
			if perm, user := mode(t, d.Path); perm != 0o600 || user != g.User {
				t.Errorf("disk %s has mode %o and user %d", d.Name, perm, user)
			}
			seen["disk"]++
		}
	}
	links, err := filepath.Glob(filepath.Join(s.vms, "*", "[^.]*[a-z]"+baseSuffix)) // one under a temporary name keeps nothing, and is replaced
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		left := strings.TrimSuffix(link, baseSuffix)
		_, diskErr := os.Stat(left + overlaySuffix)
		if _, err := os.Stat(left + recordSuffix); err != nil && diskErr != nil && !strings.HasSuffix(left, mediumSuffix) {
			t.Errorf("left %s", link)
		}
	}
	if _, err := s.ResolveTag("quay.io/a"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(s.images, saltFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
