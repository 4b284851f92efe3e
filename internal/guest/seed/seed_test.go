package seed

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/test/env"
)

// read lists the root that a volume descriptor names, as an operating system would.
func read(t *testing.T, image []byte, descriptor int, decode func([]byte) string) map[string]string {
	t.Helper()
	volume := image[descriptor*sector:]
	if string(volume[1:6]) != "CD001" {
		t.Fatalf("no descriptor in sector %d", descriptor)
	}
	root := volume[156:]
	at, size := binary.LittleEndian.Uint32(root[2:]), binary.LittleEndian.Uint32(root[10:])
	files := map[string]string{}
	for dir := image[at*sector : at*sector+size]; len(dir) > 33 && dir[0] > 0; dir = dir[dir[0]:] {
		if dir[25]&isDirectory != 0 {
			continue
		}
		from, length := binary.BigEndian.Uint32(dir[6:]), binary.BigEndian.Uint32(dir[14:])
		files[decode(dir[33:33+dir[32]])] = string(image[from*sector : from*sector+length])
	}
	return files
}

func latin(b []byte) string { return string(b) }

func wide(b []byte) string {
	var units []uint16
	for ; len(b) > 0; b = b[2:] {
		units = append(units, binary.BigEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}

func TestBuild(t *testing.T) {
	const key = `ssh-ed25519 AAAA me@"home": {`
	for name, c := range map[string]struct {
		seed Seed
		want map[string]string
	}{
		"a guest with nothing still gets what NoCloud asks for": {
			Seed{InstanceID: "i-1", Hostname: "web"},
			map[string]string{
				"meta-data": `{"instance-id":"i-1","local-hostname":"web"}` + "\n",
				"user-data": "#cloud-config\n{}\n",
			},
		},
		"keys without user data are in both places": {
			Seed{InstanceID: "i-1", Hostname: "web", SSHAuthorizedKeys: []string{"ssh-ed25519 AAAA me"}},
			map[string]string{
				"meta-data": `{"instance-id":"i-1","local-hostname":"web","public-keys":["ssh-ed25519 AAAA me"]}` + "\n",
				"user-data": "#cloud-config\n" + `{"ssh_authorized_keys":["ssh-ed25519 AAAA me"]}` + "\n",
			},
		},
		"user data is handed over as it is, keys beside it, quoted": {
			Seed{InstanceID: "i-1", Hostname: "web", UserData: []byte("#!/bin/sh\n\x00\xff"), SSHAuthorizedKeys: []string{key}, NetworkConfig: []byte("version: 2\n")},
			map[string]string{
				"meta-data":      `{"instance-id":"i-1","local-hostname":"web","public-keys":["ssh-ed25519 AAAA me@\"home\": {"]}` + "\n",
				"network-config": "version: 2\n",
				"user-data":      "#!/bin/sh\n\x00\xff",
			},
		},
		"the guest program is started beside whatever the user has": {
			Seed{InstanceID: "i-1", Hostname: "web", UserData: []byte("#cloud-config\n"), NetworkConfig: []byte("version: 2\n"), StartTools: true},
			map[string]string{
				"meta-data":      `{"instance-id":"i-1","local-hostname":"web"}` + "\n",
				"network-config": "version: 2\n",
				"user-data":      "#cloud-config\n",
				"vendor-data": "#cloud-boothook\n#!/bin/sh\n" +
					"mkdir -p /run/berth && mount -o ro LABEL=BERTH /run/berth && { sh /run/berth/start; umount /run/berth; }\n",
			},
		},
		"user data of several sectors is whole": {
			Seed{InstanceID: "i-1", Hostname: "web", UserData: bytes.Repeat([]byte("0123456789"), 100_000)},
			map[string]string{
				"meta-data": `{"instance-id":"i-1","local-hostname":"web"}` + "\n",
				"user-data": strings.Repeat("0123456789", 100_000),
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Build(c.seed)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != Size {
				t.Errorf("%d bytes, want %d", len(b), Size)
			}
			joliet, primary := map[string]string{}, map[string]string{}
			for name, data := range c.want {
				joliet[name], primary[strings.ToUpper(name)+".;1"] = data, data
			}
			if diff := cmp.Diff(joliet, read(t, b, jolietSector, wide)); diff != "" {
				t.Errorf("Joliet (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(primary, read(t, b, primarySector, latin)); diff != "" {
				t.Errorf("primary (-want +got):\n%s", diff)
			}
			again, err := Build(c.seed)
			if err != nil || !bytes.Equal(b, again) {
				t.Errorf("the same seed gave other bytes, or %v", err)
			}
		})
	}
}

func TestBuildRefusesWhatDoesNotFit(t *testing.T) {
	largest := Size - firstFile*sector - sector
	if _, err := Build(Seed{UserData: make([]byte, largest)}); err != nil {
		t.Errorf("what fits exactly: %v", err)
	}
	_, err := Build(Seed{UserData: make([]byte, largest+1)})
	if fault.ReasonOf(err) != v1alpha1.ReasonSeedTooLarge || fault.ClassOf(err) != fault.User {
		t.Errorf("one byte more: %v", err)
	}
}

// TestOtherReadersAgree has programs that others wrote read a seed, as far as they are here: the label by which
// cloud-init looks for it, the names and the data.
func TestOtherReadersAgree(t *testing.T) {
	userData := strings.Repeat("#cloud-config\n", 1000)
	b, err := Build(Seed{InstanceID: "i-1", Hostname: "web", UserData: []byte(userData), NetworkConfig: []byte("version: 2\n")})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(t *testing.T, name string, args ...string) string {
		t.Helper()
		program, err := exec.LookPath(name)
		if err != nil {
			env.Missing(t, "needs "+name)
		}
		out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return string(out)
	}
	t.Run("blkid finds the label", func(t *testing.T) {
		if out := run(t, "blkid", "-p", "-o", "export", path); !strings.Contains(out, "LABEL=cidata\n") || !strings.Contains(out, "TYPE=iso9660\n") {
			t.Errorf("blkid: %s", out)
		}
	})
	t.Run("isoinfo reads the file", func(t *testing.T) {
		if out := run(t, "isoinfo", "-J", "-i", path, "-x", "/user-data"); out != userData {
			t.Errorf("isoinfo: %d bytes, want %d", len(out), len(userData))
		}
	})
}

func FuzzBuild(f *testing.F) {
	f.Add([]byte("#cloud-config\n"), []byte("version: 2"), "ssh-ed25519 AAAA me")
	f.Add([]byte{}, []byte{}, "\n: \xff\"")
	f.Fuzz(func(t *testing.T, userData, network []byte, key string) {
		b, err := Build(Seed{InstanceID: "i", Hostname: "h", UserData: userData, NetworkConfig: network, SSHAuthorizedKeys: []string{key}})
		if err != nil {
			if fault.ReasonOf(err) != v1alpha1.ReasonSeedTooLarge {
				t.Fatal(err)
			}
			return
		}
		files := read(t, b, jolietSector, wide)
		if len(userData) > 0 && files["user-data"] != string(userData) || files["network-config"] != string(network) {
			t.Error("the data is not what was given")
		}
		var metadata struct {
			Keys []string `json:"public-keys"`
		}
		if err := json.Unmarshal([]byte(files["meta-data"]), &metadata); err != nil || len(metadata.Keys) != 1 {
			t.Errorf("metadata %q: %v", files["meta-data"], err)
		}
	})
}
