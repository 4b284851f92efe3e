package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var errStopped = errors.New("stopped")

// resumed writes what an import is given, of a disk, but for the last bytes if it is to stop there. had is what it got.
func resumed(content string, stop int, had *string) Fetch {
	return func(_ context.Context, create Create) error {
		w, err := create(Disk, int64(len(content)))
		if err != nil {
			return err
		}
		part, err := w.(interface {
			Resume() (*io.SectionReader, error)
		}).Resume()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(part)
		if *had = string(b); err != nil {
			return err
		}
		if _, err := io.WriteString(w, content[:len(content)-stop]); err != nil {
			return err
		}
		if stop > 0 {
			return errStopped
		}
		return nil
	}
}

func TestAStoppedImportIsGoneOnWith(t *testing.T) {
	s := open(t)
	content := strings.Repeat("data", mib/4) + strings.Repeat("\x00", mib) + strings.Repeat("more", mib/4) + strings.Repeat("\x00", mib)
	had := ""
	stopping := true
	bring := func(source string, stop int) error {
		return s.Import(t.Context(), Import{
			Content: disk(1), Fetch: resumed(content, stop, &had), Progress: &Progress{},
			Source: source, Stopping: func() bool { return stopping },
		})
	}
	kept := func() (parts []string) {
		for _, name := range names(t, s.images) {
			if !strings.HasPrefix(name, partPrefix) {
				t.Errorf("left %s", name)
			}
			parts = append(parts, name)
		}
		return parts
	}

	if err := bring("registry/a", 2*mib+5); !errors.Is(err, errStopped) || had != "" {
		t.Fatalf("%v, had %d bytes", err, len(had))
	}
	if parts := kept(); len(parts) != 1 {
		t.Fatalf("kept %q", parts)
	}
	stopping = false
	if err := bring("registry/b", 1); !errors.Is(err, errStopped) || had != "" {
		t.Errorf("another source: %v, had %d bytes", err, len(had))
	}
	if err := bring("", 1); !errors.Is(err, errStopped) || had != "" {
		t.Errorf("no source: %v, had %d bytes", err, len(had))
	}
	stopping = true
	if err := bring("registry/a", mib+5); !errors.Is(err, errStopped) || had != content[:mib] { // zeroes behind that are a hole
		t.Errorf("the same: %v, had %d bytes", err, len(had))
	}
	stopping = false
	if err := bring("registry/a", 0); err != nil || had != content[:3*mib-5] {
		t.Errorf("the same to its end: %v, had %d bytes", err, len(had))
	}
	image, err := s.Image(disk(1))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(image.DiskPath()); err != nil || !bytes.Equal(b, []byte(content)) {
		t.Errorf("the disk is not what came: %d bytes, %v", len(b), err)
	}
	if left := names(t, image.Dir); len(left) != 2 {
		t.Errorf("it has %q", left)
	}
	if image.Allocated > 2*mib+64<<10 {
		t.Errorf("it takes %d bytes", image.Allocated)
	}
	if left := names(t, s.images); len(left) != 1 {
		t.Errorf("left %q", left)
	}
}

// TestAFailedImportKeepsNothing: only the end of its process is no fault of what came.
func TestAFailedImportKeepsNothing(t *testing.T) {
	s := open(t)
	had := ""
	err := s.Import(t.Context(), Import{
		Content: disk(1), Fetch: resumed("data", 1, &had), Progress: &Progress{}, Source: "registry/a", Stopping: func() bool { return false },
	})
	if left := names(t, s.images); !errors.Is(err, errStopped) || len(left) > 0 {
		t.Errorf("%v, left %q", err, left)
	}
}

func TestWhatIsLeftOfImportsGoes(t *testing.T) {
	s := open(t)
	left := filepath.Join(s.images, partPrefix+"left")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, test := range []struct {
		after   time.Duration
		percent int
		want    bool
	}{{time.Hour, 100, true}, {25 * time.Hour, 100, false}, {time.Hour, 0, false}} {
		if err := os.MkdirAll(left, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Collect(Limits{MaxUsagePercent: test.percent}, now.Add(test.after)); err != nil {
			t.Fatal(err)
		}
		if is, err := exists(left); is != test.want || err != nil {
			t.Errorf("after %v, at most %d %% full: there %t, %v; want %t", test.after, test.percent, is, err, test.want)
		}
	}
}
