// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"pno/internal/buildinfo"
	"pno/internal/cpufeat"
	"pno/internal/terminal"
	adminv1 "pno/proto/pno/admin/v1"
)

func (a *App) newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the build of offloadctl, and of the daemons that run",
		Args:  cobra.NoArgs,
		RunE:  a.run(a.runVersion),
	}
}

// runVersion does not need a daemon: whoever asks for a version may do so
// because nothing runs.
func (a *App) runVersion(ctx context.Context) error {
	d, err := a.connect(ctx, needAny)
	var coded *exitError
	if err != nil && (!errors.As(err, &coded) || coded.code != exitUnreachable) {
		return err
	}
	defer d.close()
	features := cpufeat.Detect()
	own := &adminv1.Status{
		Version: buildinfo.Version(), GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Cpu: &adminv1.Cpu{Model: features.Model, Features: features.Names},
	}
	if a.structured() {
		o := object{{"offloadctl", versionTree(own)}}
		for _, one := range d.each() {
			o = append(o, member{one.name, versionTree(one.status)})
		}
		return a.writeTree(o)
	}
	t := table{titles: []string{"PROGRAM", "VERSION", "BUILT BY", "PLATFORM", "CPU"}}
	row := func(name string, s *adminv1.Status) {
		t.add(name, terminal.Printable(s.GetVersion()), terminal.Printable(s.GetGoVersion()), terminal.Printable(s.GetPlatform()), a.cpuCell(s.GetCpu()))
	}
	row("offloadctl", own)
	for _, one := range d.each() {
		row(one.name, one.status)
	}
	return t.write(a.Stdout)
}

// cpuCell leaves the long list of features to the wide form.
func (a *App) cpuCell(c *adminv1.Cpu) string {
	if a.output == formatWide {
		return cpu(c)
	}
	return cpu(&adminv1.Cpu{Model: c.GetModel()})
}

func versionTree(s *adminv1.Status) object {
	features := s.GetCpu().GetFeatures()
	if features == nil {
		features = []string{}
	}
	return object{
		{"version", s.GetVersion()}, {"go_version", s.GetGoVersion()}, {"platform", s.GetPlatform()},
		{"cpu", object{{"model", strings.TrimSpace(s.GetCpu().GetModel())}, {"features", features}}},
	}
}
