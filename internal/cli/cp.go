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
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

func (s *session) cp() *cobra.Command {
	return s.verb("cp SOURCE DESTINATION", "Copy files and directories to and from the guest: one of the two is NAME:PATH; - is a tar stream", cobra.ExactArgs(2), 0, func(ctx context.Context, args []string) error {
		from, source, isFrom := sideOf(args[0])
		to, destination, isTo := sideOf(args[1])
		if isFrom == isTo {
			return errors.New("one of SOURCE and DESTINATION is NAME:PATH, the other is a path here, or -")
		}
		_, pod, err := s.berth(ctx, from+to)
		if err != nil {
			return err
		}
		c := &copying{session: s, pod: pod}
		if isTo {
			return c.into(ctx, args[0], destination)
		}
		return c.outOf(ctx, source, args[1])
	})
}

// sideOf parts NAME:PATH. What begins as a path does is one, whatever colons it has.
func sideOf(word string) (name, file string, isGuests bool) {
	name, file, isGuests = strings.Cut(word, ":")
	if !isGuests || name == "" || strings.ContainsAny(name[:1], "./-") || filepath.VolumeName(word) != "" {
		return "", "", false
	}
	return name, path.Join(file, "."), true
}

// copying is one cp.
type copying struct {
	*session
	pod *corev1.Pod
}

// guest runs a command in the guest.
func (c *copying) guest(ctx context.Context, in io.Reader, out io.Writer, argv ...string) error {
	said := &bytes.Buffer{}
	err := c.runIn(ctx, c.pod, inGuest(argv...), in != nil, false, genericiooptions.IOStreams{In: in, Out: out, ErrOut: said})
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		return errors.New("in the guest: " + clean(text))
	}
	return err
}

// into copies to the guest: below a directory that is there, else to that name.
func (c *copying) into(ctx context.Context, source, destination string) error {
	if source == "-" {
		return c.guest(ctx, c.In, io.Discard, "tar", "-x", "-p", "-f", "-", "-C", destination)
	}
	source, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	dir, base := destination, filepath.Base(source)
	var code exitCode
	if err := c.guest(ctx, nil, io.Discard, "test", "-d", destination); errors.As(err, &code) && code == 1 {
		dir, base = path.Dir(destination), path.Base(destination)
	} else if err != nil {
		return err
	}
	var names, sizes []string
	err = piped(ctx, func(_ context.Context, out io.Writer) (err error) {
		names, sizes, err = c.pack(out, source, base)
		return err
	}, func(ctx context.Context, in io.Reader) error {
		return c.guest(ctx, in, io.Discard, "tar", "-x", "-p", "-f", "-", "-C", dir)
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(names, 64) { // a command line has 32 KiB
		words := []string{"wc", "-c", "--"}
		for _, name := range part {
			words = append(words, path.Join(dir, name))
		}
		var counted bytes.Buffer
		if err := c.guest(ctx, nil, &counted, words...); err != nil {
			return fmt.Errorf("comparing sizes: %w", err)
		}
		for i, line := range strings.SplitN(counted.String(), "\n", len(part)+1)[:len(part)] {
			if got, _, _ := strings.Cut(strings.TrimSpace(line), " "); got != sizes[i] {
				return fmt.Errorf("%s has %.20s bytes in the guest, not %s: is its disk full?", part[i], clean(got), sizes[i])
			}
		}
		sizes = sizes[len(part):]
	}
	return nil
}

// pack writes a tree as tar, and tells the names and sizes of its files.
func (c *copying) pack(out io.Writer, source, base string) (names, sizes []string, err error) {
	p := c.progress()
	defer p.end()
	w := tar.NewWriter(&counted{Writer: out, p: p})
	err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			link, err = os.Readlink(file)
		} else if !info.IsDir() && !info.Mode().IsRegular() {
			fmt.Fprintf(c.ErrOut, "skipped %s: it is no file, directory or link\n", clean(file))
			return nil
		}
		if err != nil {
			return err
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		header.Name, header.Uid, header.Gid, header.Uname, header.Gname = path.Join(base, filepath.ToSlash(strings.TrimPrefix(file, source))), 0, 0, "", ""
		if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		content, err := os.Open(file) //nolint:gosec // the user's own, who may replace it by what he likes
		if err != nil {
			return err
		}
		defer content.Close()
		if _, err := io.CopyN(w, content, info.Size()); err != nil {
			return fmt.Errorf("%s changed while it was read: %w", file, err)
		}
		names, sizes = append(names, header.Name), append(sizes, fmt.Sprint(info.Size()))
		return nil
	})
	return names, sizes, errors.Join(err, w.Close())
}

// outOf copies from the guest: below a directory that is there, else to that name.
func (c *copying) outOf(ctx context.Context, source, destination string) error {
	dir, base := path.Dir(source), path.Base(source)
	if base == "/" || base == ".." {
		dir, base = source, "."
	}
	tarred := []string{"tar", "-c", "-f", "-", "-C", dir, base}
	if destination == "-" {
		return c.guest(ctx, nil, c.Out, tarred...)
	}
	if info, err := os.Stat(destination); err == nil && info.IsDir() && base != "." {
		destination = filepath.Join(destination, base)
	}
	return piped(ctx, func(ctx context.Context, out io.Writer) error { return c.guest(ctx, nil, out, tarred...) }, func(_ context.Context, in io.Reader) error {
		p := c.progress()
		defer p.end()
		err := writeTree(io.TeeReader(in, &counted{Writer: io.Discard, p: p}), base, destination, func(what string) {
			fmt.Fprintf(c.ErrOut, "skipped %s\n", clean(what))
		})
		if err == nil {
			_, err = io.Copy(io.Discard, in) // what pads the end
		}
		return err
	})
}

// piped joins what writes with what reads. The writer's failure is the reader's cause, unless the reader has gone.
func piped(ctx context.Context, write func(context.Context, io.Writer) error, read func(context.Context, io.Reader) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reader, writer := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := write(ctx, writer)
		_ = writer.CloseWithError(err) // nil is the end of the stream
		written <- err
	}()
	err := read(ctx, reader)
	if err != nil {
		cancel()
	}
	_ = reader.Close()
	if failure := <-written; failure != nil && !errors.Is(failure, io.ErrClosedPipe) && !errors.Is(failure, context.Canceled) {
		return failure
	}
	return err
}

// counted shows how much was written, where somebody looks.
type counted struct {
	io.Writer
	p *progress
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	c.p.say("copied " + bytesOf(c.n))
	return n, err
}
