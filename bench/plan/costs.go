// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"fmt"
)

// Cost is CPU time, in µs.
type Cost struct {
	Request float64
	Byte    float64
	Conn    float64
}

// of is the mean cost of a request, with so many bytes and new connections.
func (c Cost) of(bytes, conns float64) float64 {
	return c.Request + c.Byte*bytes + c.Conn*conns
}

// Costs of both sides, on the cores that they were measured on, and where they
// come from.
type Costs struct {
	Host, DPU Cost
	Source    Sources
}

// Sources of the parts of a Cost.
type Sources struct{ Request, Byte, Conn string }

// Point is a measurement to learn costs from.
type Point struct {
	Bytes int  // of a body
	Close bool // a new connection for each request
	Host  float64
	DPU   float64 // µs of CPU time a request
}

// Fit learns costs from measurements: at least two sizes over lasting
// connections, by least squares of the relative error, and one with a connection
// for each request.
func Fit(points []Point, source string) (Costs, error) {
	c := Costs{Source: Sources{source, source, source}}
	for _, side := range []struct {
		out *Cost
		get func(Point) float64
	}{{&c.Host, func(p Point) float64 { return p.Host }}, {&c.DPU, func(p Point) float64 { return p.DPU }}} {
		if err := side.out.fit(points, side.get); err != nil {
			return c, err
		}
	}
	return c, nil
}

func (c *Cost) fit(points []Point, get func(Point) float64) error {
	// y = a + b·x, each point weighted by 1/y².
	var w, wx, wy, wxx, wxy float64
	for _, p := range points {
		x, y := float64(p.Bytes), get(p)
		if y <= 0 {
			return fmt.Errorf("%d bytes: %v µs were measured", p.Bytes, y)
		}
		if p.Close {
			continue
		}
		k := 1 / (y * y)
		w, wx, wy, wxx, wxy = w+k, wx+k*x, wy+k*y, wxx+k*x*x, wxy+k*x*y
	}
	det := w*wxx - wx*wx
	if !(det > 1e-9*w*wxx) {
		return errors.New("two sizes are needed to tell what a request costs from what a byte costs")
	}
	c.Request, c.Byte = (wxx*wy-wx*wxy)/det, max(0, (w*wxy-wx*wy)/det)
	n := 0.0
	for _, p := range points {
		if p.Close {
			n++
			c.Conn += get(p) - c.of(float64(p.Bytes), 0)
		}
	}
	if n > 0 {
		c.Conn = max(0, c.Conn/n)
	}
	if c.Request <= 0 {
		return fmt.Errorf("the sizes give %v µs for a request without a byte: measure sizes that are further apart", c.Request)
	}
	return nil
}

// constants lists the costs.
func (c Costs) constants() []Constant {
	var all []Constant
	for _, s := range []struct {
		name string
		cost Cost
	}{{"host", c.Host}, {"DPU", c.DPU}} {
		all = append(all,
			Constant{s.name + " CPU a request", s.cost.Request, "µs", c.Source.Request},
			Constant{s.name + " CPU a byte", s.cost.Byte, "µs", c.Source.Byte},
			Constant{s.name + " CPU a connection", s.cost.Conn, "µs", c.Source.Conn})
	}
	return all
}
