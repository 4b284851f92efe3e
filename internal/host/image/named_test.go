package image

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// TestADiskByItsName: of an artifact with several, as KubeVirt exports a machine. A guest that has it keeps it, whatever
// becomes of the tag; another disk of the same image is another content.
func TestADiskByItsName(t *testing.T) {
	s := serve(t, nil, Options{MaxBytes: 4 << 20})
	exported := func(disk, content string) layer {
		return layer{
			mediaType: "application/vnd.kubevirt.disk.raw", data: []byte(content),
			annotations: map[string]string{"io.kubevirt.disk.name": disk, "org.opencontainers.image.title": "x-" + disk + ".raw.zst"},
		}.zstd()
	}
	root := exported("root", content)
	root.mediaType = "application/vnd.kubevirt.disk.raw+zstd"
	s.push("test/vm", root, exported("data", "other"), titled("third.qcow2", "a third"))
	named := func(name string) Reference {
		ref, err := ParseReference(s.host + "/test/vm#disk=" + name)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	digests := map[string]string{}
	for name, want := range map[string]string{"root": content, "data": "other", "third": "a third", "third.qcow2": "a third"} {
		image, err := s.client.Resolve(t.Context(), named(name), Keychain{})
		if err != nil {
			t.Fatal(err)
		}
		digests[name] = image.Digest
		if got, err := s.disk(named(name), Keychain{}); got != want || err != nil {
			t.Errorf("%s has %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	if digests["root"] == digests["data"] || digests["third"] != digests["third.qcow2"] {
		t.Errorf("their digests are %v", digests)
	}
	_, err := s.disk(named("fourth"), Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageNotFound, `none of its blobs is the disk fourth: they are ["root" "data" "third"]`)
	_, err = s.disk(s.ref("test/vm"), Keychain{})
	expect(t, err, fault.User, v1alpha1.ReasonImageNotDisk, "#disk=NAME")
	if _, err := s.disk(named("root").At("sha256:"+strings.Repeat("0", 64)), Keychain{}); err == nil {
		t.Error("a disk that there is not was served")
	}

	s.push("test/vm", files("disk/d", "nothing like it"))
	if got, err := s.disk(named("root").At(digests["root"]), Keychain{}); got != content || err != nil {
		t.Errorf("after the tag moved it has %d bytes, %v", len(got), err)
	}
}
