package image

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// resumer is a writer that has what a killed process wrote.
type resumer struct {
	bytes.Buffer
	had io.ReaderAt
	n   int64
	err error
}

func (r *resumer) Resume() (*io.SectionReader, error) {
	return io.NewSectionReader(r.had, 0, r.n), r.err
}

type broken struct{}

var errBroken = errors.New("input/output error")

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestAPullGoesOnWhereAnEarlierProcessWasKilled(t *testing.T) {
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	other := slices.Clone(noise)
	other[500_000]++
	for name, c := range map[string]struct {
		had    string
		broken bool
		asked  []string
		want   func(*testing.T, error)
	}{
		"nothing":                    {"", false, []string{""}, nil},
		"less than what comes first": {string(noise[:10]), false, []string{""}, nil},
		"a part":                     {string(noise[:700_000]), false, []string{"", "bytes=700000-"}, nil},
		"all":                        {string(noise), false, []string{"", "bytes=1048575-"}, nil},
		"more than all":              {string(noise) + "more", false, []string{"", "bytes=1048575-"}, nil},
		"something else": {string(other[:700_000]), false, []string{"", "bytes=700000-"}, func(t *testing.T, err error) {
			expect(t, err, fault.Transient, v1alpha1.ReasonPullingImage, "begins anew")
		}},
		"what cannot be read": {string(noise[:700_000]), true, []string{""}, func(t *testing.T, err error) {
			if !errors.Is(err, errBroken) {
				t.Error(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t, Options{})
			ref := h.push("test/cut", layer{mediaType: "application/vnd.acme.disk", data: noise})
			server := cut{blob: noise, after: len(noise), ranges: true}
			h.onBlob(server.ServeHTTP)
			image, err := h.client.Resolve(t.Context(), ref, Keychain{})
			if err != nil {
				t.Fatal(err)
			}
			w := &resumer{had: strings.NewReader(c.had), n: int64(len(c.had))}
			if c.broken {
				w.had = broken{}
			}
			err = image.Disk(t.Context(), func(string, int64) (io.Writer, error) { return w, nil })
			if diff := cmp.Diff(c.asked, server.asked); diff != "" {
				t.Errorf("asked for, -want +got:\n%s", diff)
			}
			if c.want != nil {
				c.want(t, err)
				return
			}
			if err != nil || !bytes.Equal(w.Bytes(), noise) {
				t.Errorf("%d bytes, %v", w.Len(), err)
			}
			if taken, of := image.Received(); taken != of {
				t.Errorf("%d bytes of %d", taken, of)
			}
		})
	}
}

func TestWhatCannotBeResumedIsTheTakersError(t *testing.T) {
	h := newHostile(t, Options{})
	ref := h.push("test/cut", layer{mediaType: "application/vnd.acme.disk", data: []byte(strings.Repeat("data", 1000))})
	image, err := h.client.Resolve(t.Context(), ref, Keychain{})
	if err != nil {
		t.Fatal(err)
	}
	err = image.Disk(t.Context(), func(string, int64) (io.Writer, error) {
		return &resumer{had: strings.NewReader(""), err: errBroken}, nil
	})
	if !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}
