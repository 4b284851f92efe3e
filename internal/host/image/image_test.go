package image

import (
	"archive/tar"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var content = strings.Repeat("all the bytes of a disk ", 100_000)

func TestDiskOf(t *testing.T) {
	s := serve(t, nil, Options{})
	title := map[string]string{ocispec.AnnotationTitle: "disk.qcow2"}
	for name, layers := range map[string][]layer{
		"a containerDisk":                                     {files("disk/disk.qcow2", content)},
		"a containerDisk with gzip":                           {files("disk/disk.qcow2", content).gzip()},
		"a containerDisk with zstd":                           {files("disk/disk.qcow2", content).zstd()},
		"a containerDisk with ./ before its names":            {files("./disk/disk.qcow2", content)},
		"a containerDisk with / before its names":             {files("/disk/disk.qcow2", content)},
		"a containerDisk among other files":                   {files("etc/passwd", "root", "disk/sub/x", "no", "disk/d", content, "zz", "z")},
		"the upper of two disks":                              {files("disk/old.img", "old"), files("disk/new.img", content)},
		"a disk below a layer without one":                    {files("disk/disk.img", content), files("etc/motd", "hi")},
		"a disk that replaced a removed one":                  {files("disk/old.img", "old"), files("disk/.wh.old.img", "", "disk/new.img", content)},
		"a disk in an opaque directory":                       {files("disk/old.img", "old"), files("disk/new.img", content, "disk/.wh..wh..opq", "")},
		"a disk below a removed one":                          {files("disk/a", content), files("disk/b", "b"), files("disk/.wh.b", "")},
		"a disk beside names that begin with a dot":           {files("disk/.gitkeep", "", "disk/._disk.img", "Mac OS", "disk/disk.img", content)},
		"a disk by a symbolic link":                           {linked(tar.TypeSymlink, "disk/d", "/images/d.img", "images/d.img", content)},
		"a disk by a relative link":                           {linked(tar.TypeSymlink, "disk/d", "sub/d.img", "disk/sub/d.img", content)},
		"a disk by a link to a lower layer":                   {files("images/d.img", content), linked(tar.TypeSymlink, "disk/d", "../images/d.img", "etc/motd", "hi")},
		"a disk by a hard link":                               {linked(tar.TypeLink, "disk/d", "images/d.img", "images/d.img", content)},
		"a disk by two links":                                 {linked(tar.TypeSymlink, "disk/d", "/a", "images/d.img", content), linked(tar.TypeSymlink, "a", "images/d.img", "etc/motd", "hi")},
		"a disk in a /disk that is a link":                    {linked(tar.TypeSymlink, "disk", "images", "images/d.img", content)},
		"a disk by a link and a directory that is one":        {files("data/d.img", content), linked(tar.TypeSymlink, "disk/d", "/images/d.img", "etc/motd", "hi"), linked(tar.TypeSymlink, "images", "data", "etc/motd", "hi")},
		"a disk that replaced a link":                         {linked(tar.TypeSymlink, "disk/old", "/images/d.img", "images/d.img", "old"), files("disk/.wh.old", "", "disk/new", content)},
		"zstd that begins with a skippable frame":             {skippable(files("disk/d", content).zstd())},
		"an artifact that begins with skippable frames":       {skippable(skippable(layer{mediaType: "application/vnd.acme.disk", data: []byte(content)}.zstd()))},
		"an artifact beside its description":                  {titled("disk.qcow2", content), titled("README.md", "# how to use it")},
		"a compressed artifact beside its sum":                {titled("disk.qcow2.sha256", "abc"), titled("disk.qcow2.gz", content)},
		"an artifact of one blob":                             {{mediaType: "application/vnd.acme.disk.qcow2", data: []byte(content)}},
		"an artifact that is compressed":                      {layer{mediaType: "application/vnd.acme.disk", data: []byte(content)}.zstd()},
		"an artifact that oras pushed":                        {{mediaType: ocispec.MediaTypeImageLayer, data: []byte(content), annotations: title}},
		"a layer whose media type lies about its compression": {{mediaType: ocispec.MediaTypeImageLayerZstd, data: files("disk/d", content).gzip().data}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.disk(s.push("test/disk", layers...), Keychain{})
			if err != nil {
				t.Fatal(err)
			}
			if got != content {
				t.Errorf("%d bytes, want %d", len(got), len(content))
			}
		})
	}
}

// linked is a layer with a link, and a file.
func linked(kind byte, name, to string, file, content string) layer {
	return archive([]tar.Header{{Name: file, Typeflag: tar.TypeReg, Size: int64(len(content))}, {Name: name, Typeflag: kind, Linkname: to}}, content)
}

// skippable puts a skippable frame before a zstd stream, as pzstd does.
func skippable(l layer) layer {
	l.data = append([]byte("\x5a\x2a\x4d\x18\x04\x00\x00\x00\x01\x02\x03\x04"), l.data...)
	return l
}

// titled is a file that oras pushed.
func titled(name, content string) layer {
	return layer{mediaType: ocispec.MediaTypeImageLayer, data: []byte(content), annotations: map[string]string{ocispec.AnnotationTitle: name}}
}

func TestNoDiskOf(t *testing.T) {
	s := serve(t, nil, Options{MaxBytes: 4 << 20})
	shadow := func(kind byte, name string) layer {
		return archive([]tar.Header{{Name: name, Typeflag: kind, Linkname: "/etc/shadow"}})
	}
	broken := files("disk/d", content).gzip()
	broken.data = broken.data[:len(broken.data)/2]
	for name, c := range map[string]struct {
		layers []layer
		reason v1alpha1.Reason
		says   string
	}{
		"no layers":                         {nil, v1alpha1.ReasonImageNotDisk, "no layers"},
		"no file in /disk":                  {[]layer{files("disk.img", content)}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a system for bootc":                {[]layer{files("usr/lib/bootc/install/00-system.toml", content)}, v1alpha1.ReasonImageNotDisk, "bootc-image-builder"},
		"one of ostree":                     {[]layer{files("sysroot/ostree/repo/config", content, "etc/motd", "hi")}, v1alpha1.ReasonImageNotDisk, "bootc-image-builder"},
		"two files in /disk":                {[]layer{files("disk/a", "a", "disk/b", "b")}, v1alpha1.ReasonImageNotDisk, "more than one file in /disk (a and b)"},
		"one file in /disk twice":           {[]layer{files("disk/a", "a", "disk/a", "b")}, v1alpha1.ReasonImageNotDisk, "more than one"},
		"a symbolic link":                   {[]layer{shadow(tar.TypeSymlink, "disk/a")}, v1alpha1.ReasonImageNotDisk, "no file /etc/shadow, to which its /disk/a is a link"},
		"a hard link":                       {[]layer{shadow(tar.TypeLink, "disk/a")}, v1alpha1.ReasonImageNotDisk, "no file /etc/shadow, to which its /disk/a is a link"},
		"a link to itself":                  {[]layer{linked(tar.TypeSymlink, "disk/a", "a", "etc/motd", "hi")}, v1alpha1.ReasonImageNotDisk, "more than 4 links"},
		"links in a circle":                 {[]layer{linked(tar.TypeSymlink, "disk", "images", "etc/motd", "hi"), linked(tar.TypeSymlink, "images", "disk", "etc/motd", "hi")}, v1alpha1.ReasonImageNotDisk, "more than 4 links"},
		"a link out of the image":           {[]layer{linked(tar.TypeSymlink, "disk/a", "../../../etc/shadow", "etc/motd", "hi")}, v1alpha1.ReasonImageNotDisk, "no file /etc/shadow"},
		"a link and a file":                 {[]layer{linked(tar.TypeSymlink, "disk/a", "b", "disk/b", "b")}, v1alpha1.ReasonImageNotDisk, "more than one file"},
		"two disks in one artifact":         {[]layer{titled("a.qcow2", "a"), titled("b.raw", "b")}, v1alpha1.ReasonImageNotDisk, "2 blobs, of which 2 are named as disks"},
		"no disk in an artifact of two":     {[]layer{titled("README.md", "a"), titled("LICENSE", "b")}, v1alpha1.ReasonImageNotDisk, "2 blobs, of which 0 are named as disks"},
		"skippable frames and no more":      {[]layer{skippable(layer{mediaType: "application/x", data: []byte("x")})}, v1alpha1.ReasonImageNotDisk, "no zstd frame"},
		"a device":                          {[]layer{shadow(tar.TypeBlock, "disk/a")}, v1alpha1.ReasonImageNotDisk, "no regular file"},
		"a name outside, by ..":             {[]layer{files("disk/../etc/d", content)}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a disk that was removed":           {[]layer{files("disk/a", "a"), files("disk/.wh.a", "")}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a /disk that was removed":          {[]layer{files("disk/a", "a"), files(".wh.disk", "")}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a /disk that was emptied":          {[]layer{files("disk/a", "a"), files("disk/.wh..wh..opq", "")}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a root that was emptied":           {[]layer{files("disk/a", "a"), files(".wh..wh..opq", "")}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a /disk that became a file":        {[]layer{files("disk/a", "a"), files("disk", "")}, v1alpha1.ReasonImageNotDisk, "no file in /disk"},
		"a gzip stream that ends too early": {[]layer{broken}, v1alpha1.ReasonImageNotDisk, "cannot be unpacked"},
		"an archive that is none":           {[]layer{{mediaType: ocispec.MediaTypeImageLayer, data: []byte(content)}}, v1alpha1.ReasonImageNotDisk, "cannot be unpacked"},
		"more than the limit":               {[]layer{files("disk/a", content, "disk/../b", content)}, v1alpha1.ReasonImageTooLarge, "raise the agent's limit"},
		"a bomb":                            {[]layer{files("disk/a", strings.Repeat("\x00", 64<<20)).gzip()}, v1alpha1.ReasonImageTooLarge, "unpacks to more"},
		"a bomb before the disk":            {[]layer{files("a", strings.Repeat("\x00", 64<<20)).gzip()}, v1alpha1.ReasonImageTooLarge, "unpacks to more"},
		"a bomb in an artifact":             {[]layer{layer{mediaType: "application/x", data: make([]byte, 64<<20)}.zstd()}, v1alpha1.ReasonImageTooLarge, "unpacks to more"},
		"a sparse file of 1 TiB":            {[]layer{{mediaType: ocispec.MediaTypeImageLayer, data: sparseTar(1 << 40)}}, v1alpha1.ReasonImageTooLarge, "unpacks to more"},
		"a zstd frame that wants 2 GiB":     {[]layer{{mediaType: ocispec.MediaTypeImageLayerZstd, data: []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")}}, v1alpha1.ReasonImageNotDisk, "compress it with one of at most 128 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.disk(s.push("test/none", c.layers...), Keychain{})
			expect(t, err, fault.User, c.reason, c.says)
		})
	}
}

// sparseTar is an archive of a disk that is all hole, as GNU tar writes it: no bytes, and a size of its own.
func sparseTar(size int64) []byte {
	b := make([]byte, 1536)
	copy(b, "disk/d")
	copy(b[100:], "0000644\x000000000\x000000000\x0000000000000\x0000000000000\x00")
	b[156] = 'S'
	copy(b[257:], "ustar  \x00")
	number := func(at int, n int64) { // base 256
		b[at] = 0x80
		for i := 11; i > 0 && n > 0; i-- {
			b[at+i] = byte(n)
			n >>= 8
		}
	}
	number(386, size) // one piece: at the end, without length
	copy(b[398:], "00000000000\x00")
	number(483, size)
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	for i := 5; i >= 0; i-- {
		b[148+i] = byte('0' + sum&7)
		sum >>= 3
	}
	b[154], b[155] = 0, ' '
	return b
}

func TestFilesOf(t *testing.T) {
	s := serve(t, nil, Options{})
	kernel := map[string]string{"/boot/vmlinuz": "kernel", "/boot/initrd": "initrd"}
	for name, c := range map[string]struct {
		layers []layer
		want   map[string]string
		says   string
	}{
		"in one layer":       {[]layer{files("boot/initrd", "I", "boot/other", "x", "boot/vmlinuz", "K").gzip()}, map[string]string{"kernel": "K", "initrd": "I"}, ""},
		"in two layers":      {[]layer{files("boot/vmlinuz", "K"), files("boot/initrd", "I")}, map[string]string{"kernel": "K", "initrd": "I"}, ""},
		"the upper ones":     {[]layer{files("boot/vmlinuz", "old", "boot/initrd", "old"), files("boot/vmlinuz", "K", "boot/initrd", "I")}, map[string]string{"kernel": "K", "initrd": "I"}, ""},
		"one is missing":     {[]layer{files("boot/vmlinuz", "K")}, nil, "no file /boot/initrd: correct the path"},
		"one was removed":    {[]layer{files("boot/initrd", "I"), files("boot/vmlinuz", "K", "boot/.wh.initrd", "")}, nil, "no file /boot/initrd"},
		"/boot was replaced": {[]layer{files("boot/initrd", "I"), files("boot/vmlinuz", "K", "boot/.wh..wh..opq", "")}, nil, "no file /boot/initrd"},
		"one is a link":      {[]layer{files("boot/initrd", "I", "boot/vmlinuz-6", "K"), linked(tar.TypeSymlink, "boot/vmlinuz", "vmlinuz-6", "etc/motd", "hi")}, map[string]string{"kernel": "K", "initrd": "I"}, ""},
		"/boot is a link":    {[]layer{files("usr/boot/initrd", "I", "usr/boot/vmlinuz", "K"), linked(tar.TypeSymlink, "boot", "usr/boot", "etc/motd", "hi")}, map[string]string{"kernel": "K", "initrd": "I"}, ""},
		"a link to nothing":  {[]layer{files("boot/initrd", "I"), linked(tar.TypeSymlink, "boot/vmlinuz", "vmlinuz-6", "etc/motd", "hi")}, nil, "no file /boot/vmlinuz-6, to which its /boot/vmlinuz is a link"},
		"a single file":      {[]layer{{mediaType: "application/x", data: []byte("K")}}, nil, "single file"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.files(s.push("test/kernel", c.layers...), kernel)
			if c.says != "" {
				expect(t, err, fault.User, v1alpha1.ReasonImageNotDisk, c.says)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAKernelHasALimit: QEMU reads it into memory that no berth pays for.
func TestAKernelHasALimit(t *testing.T) {
	s := serve(t, nil, Options{})
	_, err := s.files(s.push("test/kernel", files("boot/vmlinuz", strings.Repeat("K", 1<<20+1))), map[string]string{"/boot/vmlinuz": "kernel"})
	expect(t, err, fault.User, v1alpha1.ReasonImageTooLarge, "its /boot/vmlinuz has 1048577 bytes, the most is 1048576")
}

func TestResolveChoosesFromAnIndex(t *testing.T) {
	s := serve(t, nil, Options{Architecture: "arm64"})
	var made []ocispec.Descriptor
	for _, disk := range []string{"amd", "arm", "hyperv"} {
		s.push("test/index", files("disk/d", disk))
		image, err := s.client.Resolve(t.Context(), s.ref("test/index"), Keychain{})
		must(err)
		m, _, err := image.repository.manifest(t.Context(), image.Digest)
		must(err)
		made = append(made, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(image.Digest), Size: m.Layers[0].Size})
	}
	entry := func(i int, os, arch, disktype string) ocispec.Descriptor {
		d := made[i]
		if os+arch != "" {
			d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
		}
		if disktype != "" {
			d.Annotations = map[string]string{"disktype": disktype}
		}
		return d
	}
	attests := func(d ocispec.Descriptor) ocispec.Descriptor {
		d.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
		return d
	}
	of := func(kind string, d ocispec.Descriptor) ocispec.Descriptor {
		d.ArtifactType = kind
		return d
	}
	for name, c := range map[string]struct {
		entries []ocispec.Descriptor
		want    string
	}{
		"by architecture":             {[]ocispec.Descriptor{entry(0, "linux", "amd64", ""), entry(1, "linux", "arm64", "")}, "arm"},
		"the only one":                {[]ocispec.Descriptor{entry(0, "", "", "")}, "amd"},
		"podman's for QEMU":           {[]ocispec.Descriptor{entry(2, "linux", "aarch64", "hyperv"), entry(0, "linux", "x86_64", "qemu"), entry(1, "linux", "aarch64", "qemu")}, "arm"},
		"another OS, if it must be":   {[]ocispec.Descriptor{entry(0, "linux", "amd64", ""), entry(1, "windows", "arm64", "")}, "arm"},
		"Linux before another OS":     {[]ocispec.Descriptor{entry(0, "windows", "arm64", ""), entry(1, "linux", "arm64", "")}, "arm"},
		"of no named OS":              {[]ocispec.Descriptor{entry(1, "", "arm64", ""), entry(0, "linux", "amd64", "")}, "arm"},
		"beside its attestation":      {[]ocispec.Descriptor{entry(0, "", "", ""), attests(entry(1, "unknown", "unknown", ""))}, "amd"},
		"beside one of no platform":   {[]ocispec.Descriptor{entry(0, "", "", ""), attests(entry(1, "", "", ""))}, "amd"},
		"not its attestation":         {[]ocispec.Descriptor{attests(entry(0, "linux", "arm64", "")), entry(1, "linux", "arm64", "")}, "arm"},
		"one of two without platform": {[]ocispec.Descriptor{entry(0, "", "", ""), entry(1, "", "", "")}, ""},
		"the disk beside a container": {[]ocispec.Descriptor{entry(0, "linux", "arm64", ""), of("application/vnd.diskimage.qcow2", entry(1, "qemu", "arm64", ""))}, "arm"},
		"a disk for QEMU by its OS":   {[]ocispec.Descriptor{entry(0, "metal", "arm64", ""), entry(1, "qemu", "arm64", ""), entry(2, "linux", "arm64", "")}, "arm"},
		"a disk of no platform":       {[]ocispec.Descriptor{entry(0, "linux", "arm64", ""), of("application/vnd.diskimage.qcow2", entry(1, "", "", ""))}, "arm"},
		"qcow2 before another format": {[]ocispec.Descriptor{of("application/x-vmdk-disk", entry(0, "", "", "")), of("application/vnd.disk.raw", entry(1, "", "", ""))}, "arm"},
		"by its annotation":           {[]ocispec.Descriptor{entry(0, "linux", "arm64", ""), entry(1, "linux", "arm64", "qcow2"), entry(2, "linux", "arm64", "vmdk")}, "arm"},
		"no attestation":              {[]ocispec.Descriptor{entry(0, "linux", "amd64", ""), entry(1, "unknown", "unknown", "")}, ""},
		"nothing from an empty index": {[]ocispec.Descriptor{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ref := s.manifest("test/index", "latest", ocispec.MediaTypeImageIndex,
				ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: c.entries})
			got, err := s.disk(ref, Keychain{})
			if c.want == "" {
				expect(t, err, fault.User, v1alpha1.ReasonImageNotFound, "no manifest for arm64")
			} else if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// TestDigestOutlivesTag is what keeps a guest on its image when the tag moves.
func TestDigestOutlivesTag(t *testing.T) {
	s := serve(t, nil, Options{})
	ref := s.push("test/moving", files("disk/d", "first"))
	first, err := s.client.Resolve(t.Context(), ref, Keychain{})
	must(err)
	s.push("test/moving", files("disk/d", "second"))
	if got, err := s.disk(ref, Keychain{}); got != "second" || err != nil {
		t.Errorf("by tag: %q, %v", got, err)
	}
	if got, err := s.disk(ref.At(first.Digest), Keychain{}); got != "first" || err != nil {
		t.Errorf("by digest: %q, %v", got, err)
	}
}

// TestTakersErrorIsTheirs: a full disk must not look like a bad image.
func TestTakersErrorIsTheirs(t *testing.T) {
	s := serve(t, nil, Options{})
	image, err := s.client.Resolve(t.Context(), s.push("test/disk", files("disk/d", content).gzip()), Keychain{})
	must(err)
	full := errors.New("full")
	if err := image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return nil, full }); !errors.Is(err, full) || fault.ClassOf(err) != fault.Internal {
		t.Errorf("from create: %v", err)
	}
	if err := image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return fullWriter{full}, nil }); !errors.Is(err, full) || fault.ClassOf(err) != fault.Internal {
		t.Errorf("from write: %v", err)
	}
}

type fullWriter struct{ err error }

func (w fullWriter) Write([]byte) (int, error) { return 0, w.err }

func TestCredentialsAreTriedInTurn(t *testing.T) {
	guard := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			if public := strings.HasPrefix(r.URL.Path, "/v2/public/"); !public && user != "writer" && (user != "robot" || password != "s3cret") {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	s := serve(t, guard, Options{})
	private := s.push("team/disk", files("disk/d", "private"))
	public := s.push("public/disk", files("disk/d", "public"))
	keys := func(configs ...string) (k Keychain) {
		for _, c := range configs {
			must(k.Add([]byte(strings.ReplaceAll(c, "HOST", s.host))))
		}
		return k
	}
	const good = `{"auths":{"HOST":{"username":"robot","password":"s3cret"}}}`
	const stale = `{"auths":{"HOST/team":{"username":"robot","password":"stale-s3cret"}}}`

	if got, err := s.disk(private, keys(good)); got != "private" || err != nil {
		t.Errorf("with the right one: %q, %v", got, err)
	}
	if got, err := s.disk(private, keys(stale, good)); got != "private" || err != nil {
		t.Errorf("with a stale one first: %q, %v", got, err)
	}
	if got, err := s.disk(public, keys(stale)); got != "public" || err != nil {
		t.Errorf("a public image with a stale one: %q, %v", got, err)
	}
	_, err := s.disk(private, keys())
	expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "name a Secret in imagePullSecrets")
	_, err = s.disk(private, keys(stale))
	expect(t, err, fault.User, v1alpha1.ReasonImageUnauthorized, "refuses the credentials")
	if strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "robot") {
		t.Errorf("the error tells a credential: %v", err)
	}

	image, err := s.client.Resolve(t.Context(), private, keys(good))
	must(err)
	if proofs := s.client.Fingerprints(keys(good), private); image.Fingerprint == Anonymous || proofs[0] != image.Fingerprint {
		t.Errorf("proof %q, of %q", image.Fingerprint, proofs)
	}
	for _, other := range []Keychain{keys(), keys(stale)} {
		for _, proof := range s.client.Fingerprints(other, private) {
			if proof == image.Fingerprint {
				t.Error("a keychain without the credential has its proof")
			}
		}
	}
	image, err = s.client.Resolve(t.Context(), public, Keychain{})
	must(err)
	if image.Fingerprint != Anonymous {
		t.Errorf("a public image has the proof %q", image.Fingerprint)
	}
}
