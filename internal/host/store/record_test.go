package store

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

var (
	newest = Hardware{Layout: 2, Machine: "pc-q35-7.2"}
	later  = Hardware{Layout: 3, Machine: "pc-q35-9.0"}
)

func TestHardware(t *testing.T) {
	// What stood on the disk, what it reads as, and what stands there then; nothing means the same.
	const whose = `"namespace":"default","name":"web","uid":"` + web + `"`
	for name, tc := range map[string]struct {
		record string
		want   Hardware
		after  string
	}{
		"of a VM that never started here": {
			record: `{"recordVersion":2,` + whose + `}`, want: newest,
			after: `{"recordVersion":2,` + whose + `,"hardware":{"layout":2,"machine":"pc-q35-7.2"}}`,
		},
		"of one that did":    {record: `{"recordVersion":2,` + whose + `,"hardware":{"layout":3,"machine":"pc-q35-9.0"},"seed":true}`, want: later},
		"of a newer version": {record: `{"recordVersion":7,` + whose + `,"hardware":{"layout":3,"machine":"pc-q35-9.0","nvram":"a"},"tpm":[1]}`, want: later},
		"of a newer version, for a VM that never started here": {
			record: `{"recordVersion":7,` + whose + `,"tpm":[1]}`, want: newest,
			after: `{"recordVersion":7,` + whose + `,"tpm":[1],"hardware":{"layout":2,"machine":"pc-q35-7.2"}}`,
		},
		"written by hand":                 {record: `{"recordVersion": 2}`, want: newest, after: `{"recordVersion":2,"hardware":{"layout":2,"machine":"pc-q35-7.2"}}`},
		"as an older version had it said": {record: `{"recordVersion": 1}`, want: newest, after: `{"recordVersion":1,"hardware":{"layout":2,"machine":"pc-q35-7.2"}}`},
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

func TestSeedOfTheFirstStart(t *testing.T) {
	const whose = `"namespace":"default","name":"web","uid":"` + web + `"`
	const ran = `,"hardware":{"layout":2,"machine":"pc-q35-7.2"}`
	for name, tc := range map[string]struct {
		record        string
		before, after bool // it ran without a seed: as it is found, and once it has started with one
		written       string
	}{
		"a VM that never started here":          {`{"recordVersion":2,` + whose + `}`, false, false, `,"seed":true`},
		"of version 2, whose start was cut":     {`{"recordVersion":2,` + whose + ran + `}`, false, false, `,"seed":true`},
		"of version 2, which began with a seed": {`{"recordVersion":2,` + whose + ran + `,"seed":true}`, false, false, ""},
		"of version 2, which began without":     {`{"recordVersion":2,` + whose + ran + `,"seed":false}`, true, true, ""},
		"of version 1, which started":           {`{"recordVersion":1` + ran + `}`, true, true, ""},
		"of version 1, as written by hand":      {`{"recordVersion":1}`, false, false, `,"seed":true`},
		"of version 1, which began without":     {`{"recordVersion":1` + ran + `,"seed":false}`, true, true, ""},
		"of a newer version":                    {`{"recordVersion":7,` + whose + `,"tpm":[1]}`, false, false, `,"seed":true`},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if without, err := s.RanWithoutSeed(web); without || err != nil {
				t.Errorf("without a directory: %t, %v", without, err)
			}
			claim(t, s, web)
			path := filepath.Join(s.vms, web, recordFile)
			if err := os.WriteFile(path, []byte(tc.record), 0o600); err != nil {
				t.Fatal(err)
			}
			if without, err := s.RanWithoutSeed(web); without != tc.before || err != nil {
				t.Errorf("it ran without a seed: %t, %v; want %t", without, err, tc.before)
			}
			for _, seed := range []bool{true, false} { // the first start counts
				if err := s.RecordSeed(web, seed); err != nil {
					t.Error(err)
				}
			}
			if without, err := s.RanWithoutSeed(web); without != tc.after || err != nil {
				t.Errorf("after a start with one it ran without: %t, %v; want %t", without, err, tc.after)
			}
			want := strings.TrimSuffix(tc.record, "}") + tc.written + "}"
			if diff := cmp.Diff(decoded(t, want), decoded(t, read(t, path))); diff != "" {
				t.Errorf("the record (-want +got):\n%s", diff)
			}
		})
	}
	s := open(t)
	claim(t, s, web)
	if err := s.RecordSeed(web, false); err != nil {
		t.Fatal(err)
	}
	if without, err := s.RanWithoutSeed(web); !without || err != nil {
		t.Errorf("after a start without one it ran without: %t, %v", without, err)
	}
	if err := os.WriteFile(filepath.Join(s.vms, web, recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RanWithoutSeed(web); fault.ReasonOf(err) != v1alpha1.ReasonHardwareUnknown {
		t.Errorf("of a spoilt record: %v", err)
	}
}

func TestHardwareOfASpoiltRecord(t *testing.T) {
	for name, record := range map[string]string{
		"empty": "", "cut": `{"recordVersion":1,"na`, "of another kind": `{"recordVersion":"one"}`, "null": "null", "nothing": "{}", "missing": "-",
		"of version 0": `{"namespace":"default","name":"web","uid":"u"}`, "of a version below": `{"recordVersion":-1}`,
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
			_, ranErr := s.RanWithoutSeed(web)
			for doing, err := range map[string]error{"asking for": ranErr, "recording": s.RecordSeed(web, true)} {
				if fault.ReasonOf(err) != v1alpha1.ReasonHardwareUnknown {
					t.Errorf("%s the first start: %v", doing, err)
				}
			}
			if record != "-" && read(t, path) != record {
				t.Errorf("it was rewritten: %s", read(t, path))
			}
		})
	}
}

// TestRecordOfVersion2 reads and writes what a version that upgrades begin with has written. The record never changes.
func TestRecordOfVersion2(t *testing.T) {
	s := open(t)
	if _, err := s.EnsureGuest(Identity{Namespace: "default", Name: "web", UID: web}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.vms, web, recordFile)
	for _, then := range []struct {
		golden string
		do     func() error
	}{
		{"new", func() error { return nil }},
		{"started", func() error {
			_, err := s.Hardware(web, newest)
			return errors.Join(s.RecordSeed(web, true), err)
		}},
	} {
		golden := read(t, filepath.Join("testdata", "vm-2-"+then.golden+".json"))
		if err := then.do(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(decoded(t, golden), decoded(t, read(t, path))); diff != "" {
			t.Errorf("%s is written otherwise (-then +now):\n%s", then.golden, diff)
		}
		if err := os.WriteFile(path, []byte(golden), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Hardware(web, later); err != nil || got != newest {
		t.Errorf("its hardware is %+v, %v", got, err)
	}
	if without, err := s.RanWithoutSeed(web); err != nil || without {
		t.Errorf("it ran without a seed: %t, %v", without, err)
	}
	if guests, err := s.List(); err != nil || len(guests) != 1 || guests[0].Identity != (Identity{Namespace: "default", Name: "web", UID: web}) {
		t.Errorf("guests %+v, %v", guests, err)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add(`{"namespace":"default","name":"web","uid":"u"}`)
	f.Add(`{"recordVersion":2,"name":"web"}`)
	f.Add(`{"recordVersion":1,"hardware":{"layout":2,"machine":"q35"}}`)
	f.Add(`{"recordVersion":2,"seed":false}`)
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
