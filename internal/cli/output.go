// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
)

// structured tells whether the output is for programs.
func (a *App) structured() bool { return a.output == formatJSON || a.output == formatYAML }

// writeTree prints a tree as the whole output.
func (a *App) writeTree(o object) error {
	if a.output == formatYAML {
		b, err := yaml.Marshal(o)
		if err != nil {
			return fmt.Errorf("encode YAML: %w", err)
		}
		_, err = a.Stdout.Write(b)
		return err
	}
	enc := json.NewEncoder(a.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(o)
}

// writeTreeLine prints a tree as one of many: a line of JSON, or a YAML
// document.
func (a *App) writeTreeLine(o object) error {
	if a.output == formatYAML {
		if _, err := io.WriteString(a.Stdout, "---\n"); err != nil {
			return err
		}
		return a.writeTree(o)
	}
	b, err := o.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	_, err = a.Stdout.Write(append(b, '\n'))
	return err
}

// table is text in columns. A column whose title begins with > is aligned to
// the right.
type table struct {
	titles []string
	rows   [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) error {
	right := make([]bool, len(t.titles))
	head := make([]string, len(t.titles))
	for i, title := range t.titles {
		head[i], right[i] = strings.CutPrefix(title, ">")
	}
	return writeColumns(w, append([][]string{head}, t.rows...), right)
}

// writeColumns pads cells to the width of their columns.
func writeColumns(w io.Writer, rows [][]string, right []bool) error {
	width := make([]int, len(right))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i > 0 {
				line.WriteString("  ")
			}
			if right[i] {
				line.WriteString(pad + cell)
			} else {
				line.WriteString(cell + pad)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// number groups digits by threes.
func number(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// bytesize writes a number of bytes with three significant digits or so.
func bytesize(n uint64) string {
	if n < 1024 {
		return strconv.FormatUint(n, 10) + " B"
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < len("KMGTPE")-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// age writes a duration by its two largest units.
func age(d time.Duration) string {
	d = d.Truncate(time.Second)
	day := 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}
