package diskformat

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const gib = 1 << 30

// blank is a qcow2 disk of 1 GiB that stands for itself.
func blank(t testing.TB) []byte {
	t.Helper()
	b, err := Overlay(OverlayOptions{Size: gib})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func inspect(b []byte) (Info, error) { return Inspect(bytes.NewReader(b), int64(len(b))) }

func TestInspectTakes(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		want  Info
	}{
		"a raw disk of one sector":           {make([]byte, 512), Info{Raw, 512}},
		"a raw disk of no whole sectors":     {make([]byte, 700), Info{Raw, 1024}},
		"a raw disk with a partition table":  {append(bytes.Repeat([]byte{0xfa}, 510), 0x55, 0xaa), Info{Raw, 512}},
		"a qcow2 disk":                       {blank(t), Info{QCOW2, gib}},
		"a qcow2 disk of no whole sectors":   {patch(t, 24, uint64(gib-1)), Info{QCOW2, gib}},
		"a qcow2 disk of version 2":          {version2(t), Info{QCOW2, gib}},
		"unknown compatible features":        {patch(t, 80, uint64(1)<<63), Info{QCOW2, gib}},
		"unknown features to clear":          {patch(t, 88, uint64(1)<<63), Info{QCOW2, gib}},
		"an extension that nobody knows":     {extend(t, 0x12345678, "anything"), Info{QCOW2, gib}},
		"a backing format without a backing": {extend(t, extensionBackingFormat, "raw"), Info{QCOW2, gib}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := inspect(c.image)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestInspectRefuses(t *testing.T) {
	raw := func(offset int, magic string) []byte {
		b := make([]byte, 4096)
		copy(b[offset:], magic)
		return b
	}
	across := patch(t, 8, uint64(overlayCluster-4))
	binary.BigEndian.PutUint32(across[16:], 8)
	for name, c := range map[string]struct {
		image  []byte
		reason v1alpha1.Reason
		says   string
	}{
		"nothing":                        {nil, v1alpha1.ReasonImageNotDisk, "empty"},
		"less than a sector":             {make([]byte, 500), v1alpha1.ReasonImageNotDisk, "truncated"},
		"gzip":                           {raw(0, "\x1f\x8b"), v1alpha1.ReasonImageNotDisk, "gzip: decompress"},
		"tar":                            {raw(257, "ustar"), v1alpha1.ReasonImageNotDisk, "tar archive"},
		"a program":                      {raw(0, "\x7fELF"), v1alpha1.ReasonImageNotDisk, "ELF"},
		"a kernel":                       {raw(0x202, "HdrS"), v1alpha1.ReasonImageNotDisk, "spec.kernel"},
		"a fixed VHD":                    {raw(4096-512, "conectix"), v1alpha1.ReasonImageNotDisk, "VHD"},
		"a web page":                     {[]byte("<!DOCTYPE html>"), v1alpha1.ReasonImageNotDisk, "web page"},
		"qcow2 version 1":                {patch(t, 4, uint32(1)), v1alpha1.ReasonImageUnsafe, "version 1"},
		"a backing file":                 {withBacking(t), v1alpha1.ReasonImageUnsafe, "flatten it with `qemu-img convert -O qcow2`"},
		"a backing name out of place":    {patch(t, 8, uint64(1)<<40), v1alpha1.ReasonImageUnsafe, "backing file"},
		"a backing name across clusters": {across, v1alpha1.ReasonImageUnsafe, "backing file lies outside of its header"},
		"a backing name without length":  {patch(t, 8, uint64(200)), v1alpha1.ReasonImageUnsafe, "backing file"},
		"a data file by feature":         {patch(t, 72, uint64(featureDataFile)), v1alpha1.ReasonImageUnsafe, "data file"},
		"a data file by name":            {extend(t, extensionDataFile, "/etc/shadow"), v1alpha1.ReasonImageUnsafe, "data file"},
		"old encryption":                 {patch(t, 32, uint32(1)), v1alpha1.ReasonImageUnsafe, "encrypted"},
		"encryption by extension":        {extend(t, extensionEncryption, "0123456789abcdef"), v1alpha1.ReasonImageUnsafe, "encrypted"},
		"an unknown feature":             {patch(t, 72, uint64(1)<<40), v1alpha1.ReasonImageUnsafe, "does not know"},
		"a dirty disk":                   {patch(t, 72, uint64(featureDirty)), v1alpha1.ReasonImageUnsafe, "repair it"},
		"a corrupt disk":                 {patch(t, 72, uint64(featureCorrupt)), v1alpha1.ReasonImageUnsafe, "repair it"},
		"clusters of 256 bytes":          {patch(t, 20, uint32(8)), v1alpha1.ReasonImageUnsafe, "clusters"},
		"clusters of 4 MiB":              {patch(t, 20, uint32(22)), v1alpha1.ReasonImageUnsafe, "clusters"},
		"clusters of 2^63 bytes":         {patch(t, 20, uint32(63)), v1alpha1.ReasonImageUnsafe, "clusters"},
		"no size":                        {patch(t, 24, uint64(0)), v1alpha1.ReasonImageNotDisk, "virtual size"},
		"65 TiB":                         {patch(t, 24, uint64(65)<<40), v1alpha1.ReasonImageUnsafe, "64Ti"},
		"2^64 bytes":                     {patch(t, 24, ^uint64(0)), v1alpha1.ReasonImageUnsafe, "64Ti"},
		"an L1 table that is too short":  {patch(t, 36, uint32(1)), v1alpha1.ReasonImageUnsafe, "L1"},
		"an L1 table of 32 GiB":          {patch(t, 36, ^uint32(0)), v1alpha1.ReasonImageUnsafe, "L1"},
		"an L1 table outside":            {patch(t, 40, uint64(1)<<62), v1alpha1.ReasonImageUnsafe, "L1"},
		"an L1 table off its cluster":    {patch(t, 40, uint64(3*overlayCluster+8)), v1alpha1.ReasonImageUnsafe, "L1"},
		"an L1 table over the header":    {patch(t, 40, uint64(0)), v1alpha1.ReasonImageUnsafe, "L1"},
		"refcounts outside":              {patch(t, 48, ^uint64(0)&^0xffff), v1alpha1.ReasonImageUnsafe, "refcount"},
		"refcounts of 256 TiB":           {patch(t, 56, ^uint32(0)), v1alpha1.ReasonImageUnsafe, "refcount"},
		"no refcounts":                   {patch(t, 56, uint32(0)), v1alpha1.ReasonImageUnsafe, "refcount"},
		"refcounts of 128 bits":          {patch(t, 96, uint32(7)), v1alpha1.ReasonImageUnsafe, "refcount"},
		"a million snapshots":            {patch(t, 60, uint32(1_000_000)), v1alpha1.ReasonImageUnsafe, "snapshots"},
		"snapshots outside":              {patch(t, 60, uint32(1)), v1alpha1.ReasonImageUnsafe, "snapshot"},
		"a header of 3 GiB":              {patch(t, 100, uint32(3<<30)), v1alpha1.ReasonImageUnsafe, "header"},
		"a header shorter than itself":   {patch(t, 100, uint32(72)), v1alpha1.ReasonImageUnsafe, "header"},
		"an extension of 4 GiB":          {patch(t, headerSize, uint64(0x12345678)<<32|0xffffffff), v1alpha1.ReasonImageUnsafe, "extension"},
		"a compression of its own":       {patch(t, 104, uint8(9)), v1alpha1.ReasonImageUnsafe, "compression"},
		"an L2 table outside":            {patch(t, 3*overlayCluster, uint64(1)<<63|1<<40), v1alpha1.ReasonImageUnsafe, "L2"},
		"cut inside the L1 table":        {blank(t)[:3*overlayCluster+8], v1alpha1.ReasonImageUnsafe, "truncated"},
		"cut inside the header":          {blank(t)[:60], v1alpha1.ReasonImageUnsafe, "truncated"},
		"cut after the magic":            {blank(t)[:4], v1alpha1.ReasonImageUnsafe, "truncated"},
		"a large raw disk that is qcow2": {append(patch(t, 8, uint64(1024)), make([]byte, 1<<20)...), v1alpha1.ReasonImageUnsafe, "backing"},
	} {
		t.Run(name, func(t *testing.T) {
			info, err := inspect(c.image)
			if err == nil {
				t.Fatalf("took it as %+v", info)
			}
			if fault.ReasonOf(err) != c.reason || fault.ClassOf(err) != fault.User || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v; want %s: …%s…", fault.ReasonOf(err), err, c.reason, c.says)
			}
		})
	}
}

// TestTheHeadTellsWhatIsRefused: what the first bytes show need not be downloaded to its end.
func TestTheHeadTellsWhatIsRefused(t *testing.T) {
	raw := func(offset int, magic string) []byte {
		b := make([]byte, HeadSize)
		copy(b[offset:], magic)
		return b
	}
	for name, c := range map[string]struct {
		head   []byte
		format Format
		reason v1alpha1.Reason // "" takes it
	}{
		"a raw disk":                      {raw(0, "\xfa"), Raw, ""},
		"a qcow2 disk":                    {blank(t)[:HeadSize], QCOW2, ""},
		"a qcow2 disk of version 2":       {version2(t)[:HeadSize], QCOW2, ""},
		"tables far behind":               {patch(t, 40, uint64(1)<<40)[:HeadSize], QCOW2, ""},
		"an extension behind these bytes": {patch(t, 100, uint32(4096))[:HeadSize], QCOW2, ""},
		"a VMDK":                          {raw(0, "KDMV"), Raw, v1alpha1.ReasonImageNotDisk},
		"a tar archive":                   {raw(257, "ustar"), Raw, v1alpha1.ReasonImageNotDisk},
		"a kernel":                        {raw(0x202, "HdrS"), Raw, v1alpha1.ReasonImageNotDisk},
		"a backing file":                  {withBacking(t)[:HeadSize], QCOW2, v1alpha1.ReasonImageUnsafe},
		"a data file":                     {patch(t, 72, uint64(featureDataFile))[:HeadSize], QCOW2, v1alpha1.ReasonImageUnsafe},
		"a dirty disk":                    {patch(t, 72, uint64(featureDirty))[:HeadSize], QCOW2, v1alpha1.ReasonImageUnsafe},
		"65 TiB":                          {patch(t, 24, uint64(65)<<40)[:HeadSize], QCOW2, v1alpha1.ReasonImageUnsafe},
	} {
		t.Run(name, func(t *testing.T) {
			format, err := InspectHead(c.head)
			if taken := c.reason == ""; taken != (err == nil) || !taken && fault.ReasonOf(err) != c.reason || format != c.format {
				t.Errorf("%s, %v; want %s, %q", format, err, c.format, c.reason)
			}
		})
	}
}

// patch overwrites a number in a good disk.
func patch[N uint8 | uint32 | uint64](t testing.TB, offset int, n N) []byte {
	t.Helper()
	b := blank(t)
	if _, err := binary.Encode(b[offset:], binary.BigEndian, n); err != nil {
		t.Fatal(err)
	}
	return b
}

// extend puts a header extension into a good disk.
func extend(t testing.TB, kind uint32, data string) []byte {
	t.Helper()
	b := blank(t)
	binary.BigEndian.PutUint32(b[headerSize:], kind)
	binary.BigEndian.PutUint32(b[headerSize+4:], uint32(len(data)))
	copy(b[headerSize+8:], data)
	return b
}

func withBacking(t testing.TB) []byte {
	t.Helper()
	b, err := Overlay(OverlayOptions{Size: gib, Backing: "/etc/shadow", BackingFormat: Raw})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func version2(t testing.TB) []byte {
	t.Helper()
	b := patch(t, 4, uint32(2))
	copy(b[headerV2:headerSize], bytes.Repeat([]byte{0}, headerSize-headerV2))
	return b
}

// FuzzInspect holds that whatever is taken is within bounds, and that nothing panics.
func FuzzInspect(f *testing.F) {
	// With clusters of 512 bytes all of a disk fits into the few bytes that a fuzzer can handle.
	for _, b := range [][]byte{blank(f), withBacking(f), version2(f), extend(f, extensionDataFile, "x")} {
		small := append(b[:512:512], make([]byte, 1536)...)
		for offset, n := range map[int]uint64{24: 32 << 10, 40: 1536, 48: 512} {
			binary.BigEndian.PutUint64(small[offset:], n)
		}
		binary.BigEndian.PutUint32(small[20:], 9)
		binary.BigEndian.PutUint32(small[36:], 1)
		f.Add(append(small, make([]byte, 512)...))
	}
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := inspect(b)
		if err != nil {
			if fault.ClassOf(err) != fault.User {
				t.Errorf("unclassified: %v", err)
			}
		} else if info.VirtualSize <= 0 || info.VirtualSize > MaxVirtualSize || info.VirtualSize%SectorSize != 0 ||
			info.Format != Raw && info.Format != QCOW2 {
			t.Errorf("took it as %+v", info)
		}
		_, _, _ = InspectOverlay(bytes.NewReader(b), int64(len(b)))
		if len(b) < HeadSize {
			return
		}
		if _, refused := InspectHead(b[:HeadSize]); refused != nil && err == nil {
			t.Errorf("its head is refused, and the whole is not: %v", refused)
		}
	})
}
