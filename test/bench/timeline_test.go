package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const ms = time.Millisecond

func TestTimeline(t *testing.T) {
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := func(d time.Duration) time.Time { return from.Add(d) }
	for _, tc := range []struct {
		name string
		seen []moment
		want []span
	}{
		{"nothing was seen", nil, nil},
		{
			"a step is told at its end, and stands at its begin",
			[]moment{{"pod bound", after(30 * ms), 0}, {"KeepKernel", after(50 * ms), 40 * ms}},
			[]span{{"KeepKernel", 10 * ms, 40 * ms}, {"pod bound", 30 * ms, 0}},
		},
		{
			"a step that is done twice stands at the first, whichever is told first, and takes as long as both",
			[]moment{{"MakeDisk", after(60 * ms), 20 * ms}, {"MakeDisk", after(20 * ms), 10 * ms}},
			[]span{{"MakeDisk", 10 * ms, 30 * ms}},
		},
		{
			"between CreateDomain and MoveToCgroup the shim is waited for",
			[]moment{{"CreateDomain", after(100 * ms), 60 * ms}, {"MoveToCgroup", after(405 * ms), 5 * ms}, {"Resume", after(410 * ms), ms}},
			[]span{{"CreateDomain", 40 * ms, 60 * ms}, {waitForShim, 100 * ms, 300 * ms}, {"MoveToCgroup", 400 * ms, 5 * ms}, {"Resume", 409 * ms, ms}},
		},
		{
			"without MoveToCgroup nobody knows how long the shim was waited for",
			[]moment{{"CreateDomain", after(100 * ms), 60 * ms}},
			[]span{{"CreateDomain", 40 * ms, 60 * ms}},
		},
		{
			"what was before and after belongs to another timeline",
			[]moment{{"EndShim", after(-ms), 0}, {"Resume", after(ms), 0}, {"Destroy", after(time.Second + ms), 0}},
			[]span{{"Resume", ms, 0}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, timeline(from, after(time.Second), tc.seen), cmp.AllowUnexported(span{})); diff != "" {
				t.Error("-want +got\n" + diff)
			}
		})
	}
}

// TestLines makes a table of four starts, one of which lacks a step.
func TestLines(t *testing.T) {
	start := func(bound, resumed, took time.Duration) []span {
		return []span{{"Resume", resumed, took}, {"pod bound", bound, 0}}
	}
	figures := lines("start", [][]span{start(50*ms, 600*ms, ms), start(30*ms, 400*ms, 3*ms), start(10*ms, 500*ms, 2*ms), {{"pod bound", 20 * ms, 0}}},
		[][]span{{{"pod bound", 15 * ms, 0}, {"Resume", 0, 80 * ms}, {"never seen", 1, 0}}})
	if err := showTimelines(t.Output(), figures); err != nil {
		t.Fatal(err)
	}
	want := []figure{
		{Name: "start pod bound", Timeline: "start", Unit: "s", Better: "less", Value: .03, Low: .01, High: .05, Bare: .015},
		{Name: "start Resume", Timeline: "start", Unit: "s", Better: "less", Value: .5, Low: .4, High: .6, Took: .002, Longest: .003, Bare: .08},
	}
	if diff := cmp.Diff(want, figures); diff != "" {
		t.Error("-want +got\n" + diff)
	}
	var shown strings.Builder
	if err := showTimelines(&shown, append([]figure{one("memory", "MiB", 0, "", 1)}, figures...)); err != nil {
		t.Fatal(err)
	}
	if want := `
START, ms  AT     LOW    HIGH   TAKES  LONGEST  BARE
pod bound  30.0   10.0   50.0                   15.0
Resume     500.0  400.0  600.0  2.0    3.0      80.0
`; shown.String() != want {
		t.Errorf("want%s\ngot%s", want, shown.String())
	}
}

// TestKeep keeps a timeline anew: parts that it had and has no more are gone, all else stays.
func TestKeep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	part := func(table, name string) figure {
		f := one(table+" "+name, "s", 0, "", 1)
		f.Timeline = table
		return f
	}
	memory, gone := one("memory", "MiB", 0, "", 1), part("delete", "pod gone")
	for _, figures := range [][]figure{{memory, part("start", "MakeDisk"), gone}, {part("start", "Resume")}} {
		if err := keep(path, figures); err != nil {
			t.Fatal(err)
		}
	}
	var kept []figure
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &kept)
	}
	if diff := cmp.Diff([]figure{memory, gone, part("start", "Resume")}, kept); diff != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
}

// TestStepsIn reads an agent's log, in which others speak too.
func TestStepsIn(t *testing.T) {
	got, err := stepsIn(strings.NewReader(`{"time":"2026-01-02T03:04:05.5Z","level":"INFO","msg":"Started guest","guest":"a","took":1}
{"time":"2026-01-02T03:04:05.6Z","level":"DEBUG","msg":"Did step","guest":"a","step":"Resume","took":"1.5ms"}
{"time":"2026-01-02T03:04:05.7Z","level":"DEBUG","msg":"Did step","guest":"b","step":"Resume","took":"1ms"}
{"time":"2026-01-02T03:04:05.8Z","level":"DEBUG","msg":"Step failed","guest":"a","step":"NotifyShim","err":"gone"}
a library that knows no JSON
`), "a")
	want := []moment{{"Resume", time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC), 1500 * time.Microsecond}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(moment{})); diff != "" || err != nil {
		t.Errorf("%v, -want +got\n%s", err, diff)
	}
	for _, line := range []string{`{"msg":"Did step"`, `{"time":"2026-01-02T03:04:05Z","msg":"Did step","took":"long"}`} {
		if got, err := stepsIn(strings.NewReader(line), "a"); err == nil {
			t.Errorf("%s is read as %v", line, got)
		}
	}
}

// TestSee watches a pod's start, in which two things are told at once, and one twice.
func TestSee(t *testing.T) {
	bound, ready := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}}, &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n"}}
	ready.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	ready.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	deleted := ready.DeepCopy()
	deleted.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	for _, tc := range []struct {
		name   string
		sight  sight
		events []watch.Event
		want   string
	}{
		{
			"a start", podStart,
			[]watch.Event{{Type: watch.Added, Object: &corev1.Pod{}}, {Type: watch.Modified, Object: bound}, {Type: watch.Modified, Object: bound}, {Type: watch.Modified, Object: ready}},
			"pod created, pod bound, container running, pod Ready",
		},
		{"an end", podEnd, []watch.Event{{Type: watch.Added, Object: ready}, {Type: watch.Modified, Object: deleted}, {Type: watch.Deleted, Object: deleted}}, "pod's deletionTimestamp, pod gone"},
		{"a watch that ends before the pod", podEnd, []watch.Event{{Type: watch.Added, Object: ready}, {Type: watch.Modified, Object: deleted}}, "the watch ended before this was seen: pod gone"},
		{"an error", podStart, []watch.Event{{Type: watch.Error, Object: &metav1.Status{}}}, "the watch ended before this was seen: pod created"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			events := make(chan watch.Event, len(tc.events))
			for _, e := range tc.events {
				events <- e
			}
			close(events)
			seen, err := tc.sight.see(events)
			names := make([]string, len(seen))
			for i, m := range seen {
				names[i] = m.name
			}
			got := strings.Join(names, ", ")
			if err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("want %s; got %s", tc.want, got)
			}
		})
	}
}
