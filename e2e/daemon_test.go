// SPDX-License-Identifier: Apache-2.0

package e2e

// daemonConf is where the daemons of one lab are.
type daemonConf struct {
	hostdSocket string
}

func (l *lab) startDaemons() { l.t.Fatal("not yet") }

func (l *lab) checkOffloaded() {}

func (l *lab) dpuHolds() (connections int, ringUsed uint64) { return 0, 0 }

func (l *lab) startDPUD() {}

func (l *lab) startHostd() {}

// needOffload skips a test that has no sense with kernel sockets.
func (l *lab) needOffload() {
	if l.mode != modeOffload {
		l.t.Skip("the control run has no daemons to kill")
	}
}

func (l *lab) checkGone(p *proc) {}
