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
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// maxWords bounds a command line that names many files: 32 KiB is the guest program's limit.
const maxWords = 24 << 10

func (s *session) cp() *cobra.Command {
	c := &copying{session: s}
	cmd := &cobra.Command{
		Use:               "cp SOURCE DESTINATION",
		Short:             "Copy files and directories to and from the guest: one of the two is NAME:PATH; - is a tar stream",
		Example:           "  kubectl vm cp ./site web:/srv\n  kubectl vm cp web:/var/log/syslog .\n  kubectl vm cp web:/etc - | tar -tv",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, source, isFrom := inGuest(args[0])
			to, destination, isTo := inGuest(args[1])
			if isFrom == isTo {
				return errors.New("one of SOURCE and DESTINATION is NAME:PATH, the other is a path here, or -")
			}
			name := from
			if isTo {
				name = to
			}
			_, pod, err := s.berth(cmd.Context(), name)
			if err != nil {
				return err
			}
			c.pod = pod
			if isTo {
				return c.into(cmd.Context(), args[0], destination)
			}
			return c.outOf(cmd.Context(), source, args[1])
		},
	}
	cmd.Flags().StringVarP(&c.user, "user", "u", "", "The guest's user who reads and writes; root by default")
	return cmd
}

// inGuest parts NAME:PATH. What begins as a path does is one, whatever colons it has.
func inGuest(word string) (name, file string, is bool) {
	name, file, is = strings.Cut(word, ":")
	if !is || name == "" || strings.ContainsAny(name[:1], "./-") || len(name) == 1 && filepath.VolumeName(word) != "" {
		return "", "", false
	}
	if file == "" {
		file = "."
	}
	return name, file, true
}

// copying is one cp.
type copying struct {
	*session
	pod  *corev1.Pod
	user string
}

// guest runs a command in the guest.
func (c *copying) guest(ctx context.Context, in io.Reader, out io.Writer, argv ...string) error {
	line := (&command{argv: argv, user: c.user}).line()
	failure := &bytes.Buffer{}
	err := c.runIn(ctx, c.pod, line, in != nil, false, genericiooptions.IOStreams{In: in, Out: out, ErrOut: failure})
	if said := strings.TrimSpace(failure.String()); err != nil && said != "" {
		return fmt.Errorf("in the guest: %s: %w", clean(said), err)
	}
	return err
}

// into copies to the guest: below a directory that is there, else to that name.
func (c *copying) into(ctx context.Context, source, destination string) error {
	if source == "-" {
		return c.guest(ctx, c.In, io.Discard, "tar", "-x", "-p", "-f", "-", "-C", destination)
	}
	source = filepath.Clean(source)
	if _, err := os.Lstat(source); err != nil {
		return err
	}
	dir, base := path.Split(path.Clean(destination))
	var code exitCode
	switch err := c.guest(ctx, nil, io.Discard, "test", "-d", destination); {
	case err == nil:
		absolute, err := filepath.Abs(source)
		if err != nil {
			return err
		}
		dir, base = destination, filepath.Base(absolute)
	case !errors.As(err, &code) || code != 1:
		return err
	case strings.HasSuffix(destination, "/"):
		return fmt.Errorf("the guest has no directory %s", destination)
	}
	if dir == "" {
		dir = "."
	}
	reader, writer := io.Pipe()
	sent := &sizes{}
	go func() { _ = writer.CloseWithError(c.pack(writer, source, base, sent)) }()
	err := c.guest(ctx, reader, io.Discard, "tar", "-x", "-p", "-f", "-", "-C", dir)
	_ = reader.CloseWithError(errors.New("the guest takes no more"))
	if err != nil || sent.failure() != nil {
		return errors.Join(sent.failure(), err)
	}
	return c.compare(ctx, dir, sent)
}

// sizes are those of the files that were copied.
type sizes struct {
	names []string
	bytes []int64
	err   error
}

func (s *sizes) failure() error { return s.err }

// pack writes a tree as tar.
func (c *copying) pack(out io.Writer, source, base string, sent *sizes) error {
	p := c.progress()
	defer p.end()
	w := tar.NewWriter(&counted{out, p, "copied ", 0})
	sent.err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		return c.packOne(w, file, path.Join(base, filepath.ToSlash(relative)), d, sent)
	})
	if sent.err == nil {
		sent.err = w.Close()
	}
	return sent.err
}

func (c *copying) packOne(w *tar.Writer, file, name string, d fs.DirEntry, sent *sizes) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(file); err != nil {
			return err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		fmt.Fprintf(c.ErrOut, "skipped %s: it is no file, directory or link\n", clean(file))
		return nil
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name, header.Uid, header.Gid, header.Uname, header.Gname = name, 0, 0, "", ""
	if info.IsDir() {
		header.Name += "/"
	}
	if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	content, err := os.Open(file)
	if err != nil {
		return err
	}
	defer content.Close()
	if _, err := io.CopyN(w, content, info.Size()); err != nil {
		return fmt.Errorf("%s changed while it was read: %w", file, err)
	}
	sent.names, sent.bytes = append(sent.names, name), append(sent.bytes, info.Size())
	return nil
}

// compare asks the guest for the sizes of the files that it was sent.
func (c *copying) compare(ctx context.Context, dir string, sent *sizes) error {
	for len(sent.names) > 0 {
		line, n := []string{"wc", "-c", "--"}, 0
		for words := 0; n < len(sent.names) && (n == 0 || words < maxWords); n++ {
			name := path.Join(dir, sent.names[n])
			line, words = append(line, name), words+len(name)+1
		}
		var out bytes.Buffer
		if err := c.guest(ctx, nil, &out, line...); err != nil {
			return fmt.Errorf("comparing sizes: %w", err)
		}
		lines := strings.Split(out.String(), "\n")
		for i := range n {
			number := ""
			if i < len(lines) {
				number, _, _ = strings.Cut(strings.TrimSpace(lines[i]), " ")
			}
			if size, err := strconv.ParseInt(number, 10, 64); err != nil || size != sent.bytes[i] {
				return fmt.Errorf("%s has %.20q bytes in the guest, not %d: is its disk full?", sent.names[i], clean(number), sent.bytes[i])
			}
		}
		sent.names, sent.bytes = sent.names[n:], sent.bytes[n:]
	}
	return nil
}

// outOf copies from the guest: below a directory that is there, else to that name.
func (c *copying) outOf(ctx context.Context, source, destination string) error {
	dir, base := path.Split(path.Clean(source))
	if dir == "" {
		dir = "."
	}
	if base == "" || base == "." || base == ".." { // /, . and ..: all that is in them
		dir, base = source, "."
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if destination == "-" {
		return c.guest(ctx, nil, c.Out, "tar", "-c", "-f", "-", "-C", dir, base)
	}
	if info, err := os.Stat(destination); err == nil && info.IsDir() && base != "." {
		destination = filepath.Join(destination, base)
	}
	reader, writer := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := c.guest(ctx, nil, writer, "tar", "-c", "-f", "-", "-C", dir, base)
		_ = writer.CloseWithError(err) // nil is the end of the stream
		ended <- err
	}()
	p := c.progress()
	err := c.unpack(io.TeeReader(reader, &counted{io.Discard, p, "copied ", 0}), base, destination)
	p.end()
	if err != nil {
		cancel()
		_ = reader.CloseWithError(err)
	}
	if guest := <-ended; guest != nil && ctx.Err() == nil {
		return guest
	}
	return err
}

// unpack writes what a guest sends as tar, and nothing but below destination: names and links that lead out of it are
// refused, and what is neither file, directory nor link is left out.
func (c *copying) unpack(in io.Reader, base, destination string) error {
	parent, name := filepath.Split(filepath.Clean(destination))
	if parent == "" {
		parent = "."
	}
	root, err := os.OpenRoot(parent)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacking{root: root, errOut: c.ErrOut}
	files := tar.NewReader(in)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading what the guest sends: %w", err)
		}
		below, isBelow := relative(base, header.Name)
		if !isBelow {
			return fmt.Errorf("the guest sends %.200q, which is not below %s", header.Name, base)
		}
		target := filepath.Join(name, filepath.FromSlash(below))
		if header.Typeflag == tar.TypeLink {
			if header.Linkname, isBelow = relative(base, header.Linkname); !isBelow {
				return fmt.Errorf("the guest sends a link %.200q out of %s", header.Name, base)
			}
			header.Linkname = filepath.Join(name, filepath.FromSlash(header.Linkname))
		}
		if err := u.one(target, below, header, files); err != nil {
			return fmt.Errorf("writing %.200q: %w", target, err)
		}
	}
	if u.count == 0 {
		return errors.New("the guest sent nothing")
	}
	_, err = io.Copy(io.Discard, in) // what pads the end
	return errors.Join(err, u.finish())
}

// relative is a name of a tar below its base.
func relative(base, name string) (string, bool) {
	name = path.Clean(name)
	if base != "." {
		rest, is := strings.CutPrefix(name+"/", base+"/")
		if !is {
			return "", false
		}
		name = path.Clean("./" + rest)
	}
	return name, filepath.IsLocal(filepath.FromSlash(name))
}

// unpacking is a tar on its way below root.
type unpacking struct {
	root   *os.Root
	errOut io.Writer
	count  int
	dirs   []directory
}

// directory is one whose mode and time are set when all is in it.
type directory struct {
	name string
	mode fs.FileMode
	time time.Time
}

func (u *unpacking) one(target, below string, header *tar.Header, content io.Reader) error {
	u.count++
	if parent := filepath.Dir(target); parent != "." {
		if err := u.root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(header.Mode) & fs.ModePerm //nolint:gosec // of which nine bits stay
	switch header.Typeflag {
	case tar.TypeDir:
		if err := u.root.MkdirAll(target, 0o755); err != nil {
			return err
		}
		u.dirs = append(u.dirs, directory{target, mode, header.ModTime})
		return nil
	case tar.TypeReg:
		if err := u.replace(target); err != nil {
			return err
		}
		file, err := u.root.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(file, content)
		err = errors.Join(err, file.Chmod(mode), file.Close())
		if err != nil {
			return err
		}
		return u.root.Chtimes(target, header.ModTime, header.ModTime)
	case tar.TypeLink:
		if err := u.replace(target); err != nil {
			return err
		}
		return u.root.Link(header.Linkname, target)
	case tar.TypeSymlink:
		if path.IsAbs(header.Linkname) || !filepath.IsLocal(filepath.FromSlash(path.Join(path.Dir(below), header.Linkname))) {
			fmt.Fprintf(u.errOut, "skipped the link %s to %s: it leads out of what is copied\n", clean(target), clean(header.Linkname))
			return nil
		}
		if err := u.replace(target); err != nil {
			return err
		}
		return u.root.Symlink(header.Linkname, target)
	}
	fmt.Fprintf(u.errOut, "skipped %s: it is no file, directory or link\n", clean(target))
	return nil
}

// replace takes away what is in a file's place, unless it is a directory.
func (u *unpacking) replace(target string) error {
	err := u.root.Remove(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// finish gives directories their modes and times, the inner before the outer.
func (u *unpacking) finish() error {
	var failures []error
	for _, d := range slices.Backward(u.dirs) {
		failures = append(failures, u.root.Chmod(d.name, d.mode), u.root.Chtimes(d.name, d.time, d.time))
	}
	return errors.Join(failures...)
}

// counted tells how much was written, where somebody looks.
type counted struct {
	io.Writer
	p    *progress
	word string
	n    int64
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n += int64(n)
	c.p.say(c.word + bytesOf(c.n))
	return n, err
}
