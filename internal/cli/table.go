package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"k8s.io/apimachinery/pkg/util/duration"
)

// clean is a text from a cluster as it may stand on a terminal: nothing in it moves the cursor, changes a colour or turns
// the direction of writing.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || unicode.Is(unicode.Cc, r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r):
			return '?'
		}
		return r
	}, text)
}

// table writes columns as kubectl does.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, headers ...string) table {
	t := table{tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)}
	if len(headers) > 0 {
		t.row(headers...)
	}
	return t
}

func (t table) row(cells ...string) {
	for i, cell := range cells {
		if cells[i] = clean(cell); cells[i] == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// since is the age of a moment, as kubectl writes it.
func since(moment time.Time) string {
	if moment.IsZero() {
		return ""
	}
	return duration.HumanDuration(time.Since(moment))
}

// bytesOf is a size with a binary unit.
func bytesOf(n int64) string {
	units := []string{"B", "Ki", "Mi", "Gi", "Ti", "Pi"}
	size, i := float64(n), 0
	for ; size >= 1024 && i < len(units)-1; i++ {
		size /= 1024
	}
	if i == 0 || size >= 100 || size == float64(int64(size)) {
		return fmt.Sprintf("%.0f%s", size, units[i])
	}
	return fmt.Sprintf("%.1f%s", size, units[i])
}
