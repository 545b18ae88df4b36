// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// plot is a line chart, drawn as SVG: enough for a README.
type plot struct {
	title, x, y string
	logX        bool
	series      []series
}

// series is one line; all of a plot's have the same x values or fewer.
type series struct {
	name   string
	points []point
}

type point struct{ x, y float64 }

// Geometry in pixels.
const (
	plotWidth, plotHeight              = 640, 360
	marginLeft, marginRight, marginTop = 70, 20, 40
	marginBottom                       = 60
	innerWidth                         = plotWidth - marginLeft - marginRight
	innerHeight                        = plotHeight - marginTop - marginBottom
	ticks                              = 5
	font                               = `font-family="sans-serif" font-size="12"`
)

var colours = []string{"#c0392b", "#2471a3", "#1e8449", "#7d3c98"}

// svg draws the plot. Without a point there is only its frame.
func (p plot) svg() string {
	var b strings.Builder
	lo, hi, top := p.bounds()
	px := func(x float64) float64 {
		x, a, z := p.scale(x), p.scale(lo), p.scale(hi)
		if z == a {
			return marginLeft + innerWidth/2
		}
		return marginLeft + innerWidth*(x-a)/(z-a)
	}
	py := func(y float64) float64 { return marginTop + innerHeight*(1-y/top) }
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	p.text(&b, plotWidth/2, 22, "middle", p.title)
	p.text(&b, plotWidth/2, plotHeight-34, "middle", p.x)
	fmt.Fprintf(&b, `<text transform="translate(16 %d) rotate(-90)" text-anchor="middle" %s>%s</text>`+"\n",
		marginTop+innerHeight/2, font, html.EscapeString(p.y))
	for i := range ticks + 1 {
		y := top * float64(i) / ticks
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1[3]f" stroke="#ddd"/>`+"\n", marginLeft, plotWidth-marginRight, py(y))
		p.text(&b, marginLeft-6, py(y)+4, "end", short(y))
	}
	for _, x := range p.xs() {
		p.text(&b, px(x), marginTop+innerHeight+16, "middle", short(x))
	}
	for i, s := range p.series {
		colour := colours[i%len(colours)]
		var line strings.Builder
		for _, pt := range s.points {
			fmt.Fprintf(&line, "%.1f,%.1f ", px(pt.x), py(pt.y))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px(pt.x), py(pt.y), colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.TrimSpace(line.String()), colour)
		x := marginLeft + i*innerWidth/len(p.series)
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="14" height="4" fill="%s"/>`+"\n", x, plotHeight-18, colour)
		p.text(&b, float64(x+20), plotHeight-12, "start", s.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (p plot) text(b *strings.Builder, x, y float64, anchor, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" %s>%s</text>`+"\n", x, y, anchor, font, html.EscapeString(s))
}

func (p plot) scale(x float64) float64 {
	if p.logX && x > 0 {
		return math.Log2(x)
	}
	return x
}

// bounds returns the range of x and a round number above every y.
func (p plot) bounds() (lo, hi, top float64) {
	first := true
	for _, s := range p.series {
		for _, pt := range s.points {
			if first {
				lo, hi, first = pt.x, pt.x, false
			}
			lo, hi, top = min(lo, pt.x), max(hi, pt.x), max(top, pt.y)
		}
	}
	if top <= 0 {
		return lo, hi, 1
	}
	step := math.Pow(10, math.Floor(math.Log10(top)))
	return lo, hi, step * math.Ceil(top/step*2) / 2
}

// xs are the x values of the longest series: they label the axis.
func (p plot) xs() (xs []float64) {
	var longest []point
	for _, s := range p.series {
		if len(s.points) > len(longest) {
			longest = s.points
		}
	}
	for _, pt := range longest {
		xs = append(xs, pt.x)
	}
	return xs
}

// short writes a number for an axis.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	default:
		return fmt.Sprintf("%.4g", v)
	}
}
