package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File of an image.
type File struct {
	Path string // in the image
	From string // on this machine
	Link string // what it is a symbolic link to, if it is one
	Mode int64
	UID  int
}

// searchPath is where programs of an image are looked for.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Binary makes an image of one static program, which it runs as user, and which it finds by other names, too. The layer
// is left uncompressed: these images travel within one machine only.
func Binary(path, user string, names ...string) (v1.Image, error) {
	entry := "/" + filepath.Base(path)
	files, config := []File{{Path: entry, From: path, Mode: 0o755}}, v1.Config{Entrypoint: []string{entry}, User: user}
	for _, name := range names {
		files = append(files, File{Path: "/bin/" + name, Link: entry})
	}
	if len(names) > 0 {
		files = append(files, File{Path: "/sbin", Link: "bin"}, File{Path: "/usr/bin", Link: "../bin"}, File{Path: "/usr/sbin", Link: "../bin"})
		config.Env = []string{searchPath}
	}
	layer, err := layer(files, types.OCIUncompressedLayer)
	if err != nil {
		return nil, err
	}
	return image(layer, types.OCIUncompressedLayer, config)
}

// With adds other programs to an image, beside the one that it runs.
func With(img v1.Image, paths ...string) (v1.Image, error) {
	var files []File
	for _, path := range paths {
		files = append(files, File{Path: "/" + filepath.Base(path), From: path, Mode: 0o755})
	}
	added, err := layer(files, types.OCIUncompressedLayer)
	if err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{Layer: added, MediaType: types.OCIUncompressedLayer})
}

// Data makes an image that only carries files, in one compressed layer.
func Data(files []File) (v1.Image, error) {
	layer, err := layer(files, types.OCILayer)
	if err != nil {
		return nil, err
	}
	return image(layer, types.OCILayer, v1.Config{})
}

func image(layer v1.Layer, media types.MediaType, config v1.Config) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, MediaType: media})
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", config
	return mutate.ConfigFile(img, file)
}

func layer(files []File, media types.MediaType) (v1.Layer, error) {
	var buffer bytes.Buffer
	if media == types.OCIUncompressedLayer {
		if err := writeTar(&buffer, files); err != nil {
			return nil, err
		}
		return static.NewLayer(buffer.Bytes(), media), nil
	}
	zip, err := gzip.NewWriterLevel(&buffer, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeTar(zip, files), zip.Close()); err != nil {
		return nil, err
	}
	raw := buffer.Bytes()
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
	return tarball.LayerFromOpener(opener, tarball.WithMediaType(media))
}

func writeTar(out io.Writer, files []File) error {
	w := tar.NewWriter(out)
	made := map[string]bool{}
	for _, f := range files {
		if dir := filepath.Dir(f.Path); dir != "/" && !made[dir] {
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "." + dir + "/", Mode: 0o555, Uid: f.UID, Gid: f.UID}); err != nil {
				return err
			}
		}
		if f.Link != "" {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "." + f.Path, Linkname: f.Link, Mode: 0o777}); err != nil {
				return err
			}
			continue
		}
		in, err := os.Open(f.From)
		if err != nil {
			return err
		}
		defer in.Close()
		info, err := in.Stat()
		if err != nil {
			return err
		}
		header := &tar.Header{Typeflag: tar.TypeReg, Name: "." + f.Path, Mode: f.Mode, Size: info.Size(), Uid: f.UID, Gid: f.UID}
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		if _, err := io.Copy(w, in); err != nil {
			return err
		}
	}
	return w.Close()
}

// SaveImage keeps an image in a directory, as an OCI layout.
func SaveImage(img v1.Image, dir string) error {
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return index.AppendImage(img)
}

// LoadImage reads what SaveImage wrote.
func LoadImage(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("%s holds %d images instead of one", dir, len(manifest.Manifests))
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// LinkBlobs puts the blobs of a saved image where the lab's registry keeps its
// own, so that pushing the image copies nothing.
func LinkBlobs(dir, blobs string) error {
	from := filepath.Join(dir, "blobs", "sha256")
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	to := filepath.Join(blobs, "sha256")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// pushTimeout bounds one image's way into the registry next door.
const pushTimeout = 2 * time.Minute

// Push an image to a registry that speaks plain HTTP.
func Push(img v1.Image, reference string) error {
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), pushTimeout)
	defer cancel()
	if err := remote.Write(ref, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("pushing %s: %w", reference, err)
	}
	return nil
}

// ContentTag is a tag that changes when any of the images does.
func ContentTag(images map[string]v1.Image) (string, error) {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(images)) {
		digest, err := images[name].Digest()
		if err != nil {
			return "", err
		}
		fmt.Fprintln(sum, name, digest)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}
