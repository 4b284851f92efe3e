package store

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var (
	newest = Hardware{Layout: 1, Machine: "pc-q35-7.2"}
	later  = Hardware{Layout: 2, Machine: "pc-q35-9.0"}
)

func TestHardware(t *testing.T) {
	// What stood on the disk, what it reads as, and what stands there then; nothing means the same.
	const whose = `"namespace":"default","name":"web","uid":"` + web + `"`
	for name, tc := range map[string]struct {
		record string
		want   Hardware
		after  string
	}{
		"a record of version 0": {record: `{` + whose + `}`, want: Hardware{Layout: 0, Machine: "q35"}},
		"of a VM that never started here": {
			record: `{"recordVersion":1,` + whose + `}`, want: newest,
			after: `{"recordVersion":1,` + whose + `,"hardware":{"layout":1,"machine":"pc-q35-7.2"}}`,
		},
		"of one that did":                {record: `{"recordVersion":1,` + whose + `,"hardware":{"layout":2,"machine":"pc-q35-9.0"}}`, want: later},
		"of one that came from layout 0": {record: `{"recordVersion":1,` + whose + `,"hardware":{"layout":0,"machine":"q35"}}`, want: Hardware{Machine: "q35"}},
		"of a newer version":             {record: `{"recordVersion":7,` + whose + `,"hardware":{"layout":2,"machine":"pc-q35-9.0","nvram":"a"},"tpm":[1]}`, want: later},
		"of a newer version, for a VM that never started here": {
			record: `{"recordVersion":7,` + whose + `,"tpm":[1]}`, want: newest,
			after: `{"recordVersion":7,` + whose + `,"tpm":[1],"hardware":{"layout":1,"machine":"pc-q35-7.2"}}`,
		},
		"written by hand": {record: `{"recordVersion": 1}`, want: newest, after: `{"recordVersion":1,"hardware":{"layout":1,"machine":"pc-q35-7.2"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			claim(t, s, web)
			path := filepath.Join(s.vms, web, recordFile)
			if err := os.WriteFile(path, []byte(tc.record), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, first := range []Hardware{newest, {Layout: 5, Machine: "another"}} { // a second start, on another QEMU
				got, err := s.Hardware(web, first)
				if err != nil || got != tc.want {
					t.Errorf("%+v, %v, want %+v", got, err, tc.want)
				}
			}
			if tc.after == "" {
				tc.after = tc.record
			}
			if diff := cmp.Diff(decoded(t, tc.after), decoded(t, read(t, path))); diff != "" {
				t.Errorf("the record (-want +got):\n%s", diff)
			}
			if guests, err := s.List(); err != nil || len(guests) != 1 || guests[0].UID != web {
				t.Errorf("guests %+v, %v", guests, err)
			}
		})
	}
}

func TestHardwareOfASpoiltRecord(t *testing.T) {
	for name, record := range map[string]string{
		"empty": "", "cut": `{"recordVersion":1,"na`, "of another kind": `{"recordVersion":"one"}`, "null": "null", "nothing": "{}", "missing": "-",
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			claim(t, s, web)
			path := filepath.Join(s.vms, web, recordFile)
			if err := os.WriteFile(path, []byte(record), 0o600); err != nil {
				t.Fatal(err)
			}
			if record == "-" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			h, err := s.Hardware(web, newest)
			if fault.ReasonOf(err) != v1alpha1.ReasonHardwareUnknown || fault.ClassOf(err) != fault.User || !strings.Contains(err.Error(), path) {
				t.Errorf("%+v, %v", h, err)
			}
			if record != "-" && read(t, path) != record {
				t.Errorf("it was rewritten: %s", read(t, path))
			}
		})
	}
}

// TestRecordsAreReadByTheVersionBefore reads them as version 0 was read.
func TestRecordsAreReadByTheVersionBefore(t *testing.T) {
	s := open(t)
	claim(t, s, web)
	if _, err := s.Hardware(web, newest); err != nil {
		t.Fatal(err)
	}
	var version0 struct{ Namespace, Name, UID string }
	if err := json.Unmarshal([]byte(read(t, filepath.Join(s.vms, web, recordFile))), &version0); err != nil {
		t.Fatal(err)
	}
	if version0.Namespace != "default" || version0.Name != "web" || version0.UID != web {
		t.Errorf("%+v", version0)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(`{"namespace":"default","name":"web","uid":"u"}`)
	f.Add(`{"recordVersion":1,"name":"web"}`)
	f.Add(`{"recordVersion":1,"hardware":{"layout":1,"machine":"q35"}}`)
	f.Add(`{"recordVersion":2,"recordversion":0,"Hardware":null,"x":[{}]}`)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, doc string) {
		path := filepath.Join(dir, recordFile)
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		had := map[string]json.RawMessage{}
		_ = json.Unmarshal([]byte(doc), &had)
		h, err := readHardware(path, newest)
		if err != nil {
			return
		}
		if again, err := readHardware(path, later); err != nil || again != h {
			t.Fatalf("%+v, then %+v, %v: %s", h, again, err, read(t, path))
		}
		has := decoded(t, read(t, path)).(map[string]any)
		for field := range had {
			if _, kept := has[field]; !kept {
				t.Errorf("%q is lost from %s", field, doc)
			}
		}
	})
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func decoded(t *testing.T, doc string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(doc), &v); err != nil {
		t.Fatalf("%v in %s", err, doc)
	}
	return v
}
