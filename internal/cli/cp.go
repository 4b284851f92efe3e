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
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/internal/untar"
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
		if isTo {
			return s.copyInto(ctx, pod, args[0], destination)
		}
		return s.copyOut(ctx, pod, source, args[1])
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

// copyInto copies to the guest: below a directory that is there, else to that name.
func (s *session) copyInto(ctx context.Context, pod *corev1.Pod, source, destination string) error {
	extract := []string{"tar", "-x", "-p", "-f", "-", "-C"}
	if source == "-" {
		return s.ask(ctx, pod, s.In, io.Discard, append(extract, destination)...)
	}
	source, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	dir, base := destination, filepath.Base(source)
	if err := s.ask(ctx, pod, nil, io.Discard, "test", "-d", destination); errors.Is(err, exitCode(1)) {
		dir, base = path.Dir(destination), path.Base(destination)
	} else if err != nil {
		return err
	}
	var files []*tar.Header
	err = piped(ctx, func(_ context.Context, out io.Writer) (err error) {
		files, err = s.pack(out, source, base)
		return err
	}, func(ctx context.Context, in io.Reader) error {
		return s.ask(ctx, pod, in, io.Discard, append(extract, dir)...)
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(files, 64) { // a command line has 32 KiB
		words, sent := []string{"wc", "-c", "--"}, int64(0)
		for _, file := range part {
			words, sent = append(words, path.Join(dir, file.Name)), sent+file.Size //nolint:gosec // it is the guest's own tree that is read
		}
		var counted bytes.Buffer
		if err := s.ask(ctx, pod, nil, &counted, words...); err != nil {
			return fmt.Errorf("comparing sizes: %w", err)
		}
		lines := strings.Split(strings.TrimSpace(counted.String()), "\n") // the last one has the sum
		if got, _, _ := strings.Cut(strings.TrimSpace(lines[len(lines)-1]), " "); got != fmt.Sprint(sent) {
			first, more := part[0].Name, len(part)-1
			return fmt.Errorf("%s and %d files more have %.20s bytes in the guest, not %d: is its disk full?", first, more, clean(got), sent)
		}
	}
	return nil
}

// pack writes a tree as tar, and tells its files.
func (s *session) pack(out io.Writer, source, base string) (files []*tar.Header, err error) {
	p := s.progress()
	defer p.end()
	w := tar.NewWriter(io.MultiWriter(out, p))
	err = filepath.Walk(source, func(file string, info fs.FileInfo, err error) error {
		link := ""
		switch {
		case err != nil:
		case info.Mode()&fs.ModeSymlink != 0:
			link, err = os.Readlink(file)
		case !info.IsDir() && !info.Mode().IsRegular():
			fmt.Fprintf(s.ErrOut, "skipped %s: %v\n", clean(file), untar.ErrKind)
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
		files = append(files, header)
		content, err := os.Open(file) //nolint:gosec // the user's own, who may replace it by what he likes
		if err != nil {
			return err
		}
		defer content.Close()
		if _, err = io.CopyN(w, content, info.Size()); errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s changed while it was read: %w", file, err)
		}
		return err
	})
	return files, errors.Join(err, w.Close())
}

// copyOut copies from the guest: below a directory that is there, else to that name.
func (s *session) copyOut(ctx context.Context, pod *corev1.Pod, source, destination string) error {
	dir, base := path.Dir(source), path.Base(source)
	if base == "/" || base == ".." {
		dir, base = source, "."
	}
	archive := func(ctx context.Context, out io.Writer) error {
		return s.ask(ctx, pod, nil, out, "tar", "-c", "-f", "-", "-C", dir, base)
	}
	if destination == "-" {
		return archive(ctx, s.Out)
	}
	if info, err := os.Stat(destination); err == nil && info.IsDir() && base != "." {
		destination = filepath.Join(destination, base)
	}
	return piped(ctx, archive, func(_ context.Context, in io.Reader) error {
		p := s.progress()
		defer p.end()
		return writeTree(io.TeeReader(in, p), base, destination, func(what string) { fmt.Fprintf(s.ErrOut, "skipped %s\n", clean(what)) })
	})
}

// piped joins what writes with what reads. The first failure of the two ends both.
func piped(ctx context.Context, write func(context.Context, io.Writer) error, read func(context.Context, io.Reader) error) error {
	both, ctx := errgroup.WithContext(ctx)
	reader, writer := io.Pipe()
	context.AfterFunc(ctx, func() { _ = reader.CloseWithError(ctx.Err()) })
	both.Go(func() error {
		err := write(ctx, writer)
		_ = writer.CloseWithError(err) // nil is the end of the stream
		return err
	})
	both.Go(func() error {
		err := read(ctx, reader)
		if err == nil {
			_, err = io.Copy(io.Discard, reader) // what is behind the archive's end
		}
		return err
	})
	return both.Wait()
}

// errSkipped goes with what is no failure: a link that is told and left out.
var errSkipped = errors.New("left out")

// writeTree writes what an archive of a guest has of base to destination, and nothing outside: names and hard links that lead
// out of it end it, and so does what is to be written through a link; symbolic links that lead out, and what is neither file,
// directory nor link, are told to skipped and left out. No file gets to run as another user.
func writeTree(archive io.Reader, base, destination string, skipped func(what string)) error {
	if there, err := filepath.EvalSymlinks(destination); err == nil { // the user's own link
		destination = there
	}
	parent, name := filepath.Split(filepath.Clean(destination))
	root, err := os.OpenRoot(filepath.Join(parent, "."))
	if err != nil {
		return err
	}
	defer root.Close()
	count := 0
	e := untar.Extraction{Root: root, Modes: fs.ModePerm, Times: true, Place: func(h *tar.Header) error {
		count++
		return place(root, base, name, h)
	}, Failed: func(member string, err error) error {
		if errors.Is(err, errSkipped) || errors.Is(err, untar.ErrKind) {
			skipped(member + ": " + err.Error())
			return nil
		}
		return fmt.Errorf("writing %.200q: %w", member, err)
	}}
	if err := e.Run(archive); err != nil || count > 0 {
		return err
	}
	if _, err := io.Copy(io.Discard, archive); err != nil { // perhaps why
		return err
	}
	return errors.New("the guest sends nothing")
}

// place has a member of base stand below name.
func place(root *os.Root, base, name string, h *tar.Header) error {
	below, isBelow := relative(base, h.Name)
	target := filepath.Join(name, filepath.FromSlash(below))
	switch h.Typeflag {
	case tar.TypeLink:
		linked, isWithin := relative(base, h.Linkname)
		h.Linkname, isBelow = filepath.Join(name, filepath.FromSlash(linked)), isBelow && isWithin
	case tar.TypeSymlink:
		// So that no link on its way can change what .. is.
		h.Linkname = path.Clean(h.Linkname)
		leads := path.Join(path.Dir(below), h.Linkname) //nolint:gosec // what is not below is refused, and opened below a root
		if path.IsAbs(h.Linkname) || !filepath.IsLocal(filepath.FromSlash(leads)) {
			return fmt.Errorf("the link to %s leads out of what is copied: %w", h.Linkname, errSkipped)
		}
	}
	if !isBelow {
		return fmt.Errorf("it is not below %s", base)
	}
	for dir := filepath.Dir(target); dir != "."; dir = filepath.Dir(dir) {
		if isLink(root, dir) {
			return fmt.Errorf("%.200q is a link", dir)
		}
	}
	h.Name = target
	if h.Typeflag == tar.TypeDir && isLink(root, target) {
		return root.Remove(target)
	}
	return nil
}

// relative is a name of a tar below its base.
func relative(base, name string) (string, bool) {
	name = path.Clean(name)
	if base != "." {
		rest, is := strings.CutPrefix(name+"/", base+"/")
		if !is {
			return "", false
		}
		name = path.Join(".", rest)
	}
	return name, filepath.IsLocal(filepath.FromSlash(name))
}

func isLink(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.Mode()&fs.ModeSymlink != 0
}
