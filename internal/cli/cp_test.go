package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func TestWhichSideIsTheGuests(t *testing.T) {
	for word, want := range map[string][2]string{
		"web:/etc": {"web", "/etc"}, "vm/web:x": {"vm/web", "x"}, "web:": {"web", "."}, "web:a:b": {"web", "a:b"},
		"file": {}, "./a:b": {}, "/a:b": {}, "-": {}, ":x": {}, "../a:b": {},
	} {
		name, file, is := sideOf(word)
		if is != (want[0] != "") || name != want[0] || file != want[1] {
			t.Errorf("sideOf(%q) = %q, %q, %v", word, name, file, is)
		}
	}
}

// tree is what stands below a directory: modes, sizes or targets, and times.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		what := info.Mode().String() + " " + info.ModTime().UTC().Format(time.RFC3339)
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what = "→ " + target
		} else if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += " " + string(content)
		}
		all[name] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestATreeComesBackAsItWas(t *testing.T) {
	source, target := filepath.Join(t.TempDir(), "site"), t.TempDir()
	for name, mode := range map[string]fs.FileMode{"a": 0o640, "bin/run": 0o755, "bin/deep/secret": 0o400} {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../a", filepath.Join(source, "bin", "link")); err != nil {
		t.Fatal(err)
	}
	then := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, name := range []string{"a", "bin/deep/secret", "bin/deep", "bin", "."} {
		if err := os.Chtimes(filepath.Join(source, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(source, "bin", "deep"), 0o500); err != nil {
		t.Fatal(err)
	}
	var stream, errOut bytes.Buffer
	s := &session{IOStreams: genericiooptions.IOStreams{Out: io.Discard, ErrOut: &errOut}}
	files, err := s.pack(&stream, source, "site")
	if err != nil {
		t.Fatal(err)
	}
	want := tree(t, source)
	for _, destination := range []string{"again", "again"} { // over itself, too
		if err := writeTree(bytes.NewReader(stream.Bytes()), "site", filepath.Join(target, destination), func(what string) { t.Error("skipped " + what) }); err != nil {
			t.Fatal(err, &errOut)
		}
		got := tree(t, filepath.Join(target, destination))
		delete(want, "bin/run") // its time is not set
		delete(got, "bin/run")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	var sent []string
	for _, file := range files {
		sent = append(sent, fmt.Sprint(file.Name, " ", file.Size))
	}
	if diff := cmp.Diff([]string{"site/a 1", "site/bin/deep/secret 15", "site/bin/run 7"}, sent); diff != "" {
		t.Error(diff)
	}
}

// TestOneEndOfAPipeEndsTheOther: the first failure is told, and nobody waits for who is gone.
func TestOneEndOfAPipeEndsTheOther(t *testing.T) {
	full, gone := errors.New("disk full"), errors.New("no such file")
	endless := func(_ context.Context, out io.Writer) error {
		for {
			if _, err := out.Write(make([]byte, 1000)); err != nil {
				return fmt.Errorf("writing: %w", err)
			}
		}
	}
	some := func(_ context.Context, out io.Writer) error {
		_, err := out.Write(make([]byte, 1000))
		return err
	}
	silent := func(ctx context.Context, _ io.Writer) error {
		<-ctx.Done()
		return ctx.Err()
	}
	fails := func(context.Context, io.Reader) error { return full }
	all := func(_ context.Context, in io.Reader) error {
		_, err := io.Copy(io.Discard, in)
		return err
	}
	for _, c := range []struct {
		name  string
		write func(context.Context, io.Writer) error
		read  func(context.Context, io.Reader) error
		want  error
	}{
		{"both are content", some, all, nil},
		{"the reader has enough", some, func(context.Context, io.Reader) error { return nil }, nil},
		{"the reader fails", endless, fails, full},
		{"the writer fails", func(context.Context, io.Writer) error { return gone }, all, gone},
		{"the writer waits", silent, fails, full},
		{"the guest's tar has nothing, and says why", func(_ context.Context, out io.Writer) error {
			return errors.Join(tar.NewWriter(out).Close(), gone)
		}, func(_ context.Context, in io.Reader) error {
			return writeTree(in, "etc", filepath.Join(t.TempDir(), "etc"), func(string) {})
		}, gone},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := piped(t.Context(), c.write, c.read); !errors.Is(err, c.want) {
				t.Errorf("it ends with %v, not %v", err, c.want)
			}
		})
	}
}
