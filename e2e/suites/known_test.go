// SPDX-License-Identifier: Apache-2.0

package suites

// later explains the cases that expect what one end of a connection has sent
// to be at the other end when send returns, as on the kernel's loopback. By way
// of the DPU it takes some microseconds more.
const later = "the DPU's loopback is not synchronous: what was sent arrives a moment later"

const noErrorQueue = "IP_RECVERR: there is no error queue"

const urgent = "MSG_OOB: urgent data is not offloaded"

// known are the cases that pass on kernel sockets and not on the DPU, each with
// its reason. docs/compat.notes.md explains them to users.
var known = []struct{ pattern, why string }{
	{"test.test_ftplib.*.test_abort", urgent},
	{"test.test_asyncore.*.test_handle_expt", urgent},
	{"test.test_epoll.*.test_control_and_wait", later},
	{"tornado.test.tcpserver_test.*.test_stop_in_callback", later},
	{"poll_oob", urgent},
	{"tcp_oob", urgent},
	{"udp_send_unreachable", noErrorQueue},
	{"checks/ssl-hello-check.vtc", later},
	{"test.test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_*", later},
}
