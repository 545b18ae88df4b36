// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"pno/host"
)

// tellSystemd says READY once processes can attach, and feeds the watchdog as
// long as the server answers. Without systemd it does nothing.
func tellSystemd(ctx context.Context, srv *host.Server, log *slog.Logger) {
	select {
	case <-srv.Ready():
	case <-ctx.Done():
		return
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd not told that hostd is ready", "reason", err)
	}
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		srv.Report() // takes the lock that every part of the server needs
		_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
	}
}

func notifyStopping() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }
