// SPDX-License-Identifier: Apache-2.0

package suites

import (
	"testing"
	"time"
)

// kind says how the cases of a module are run.
type kind int

const (
	unittest kind = iota
	pytest
	vtc   // a directory of test cases for varnishtest
	built // cases that are commands of their own
)

// module is a part of a suite that runs in one process.
type module struct {
	suite, name string
	kind        kind
	match       []string // cases to run, as globs; all if empty
	without     []string // cases to leave out
	list        func(*testing.T) []aCase
	jobs        int // of these cases at a time
	limit       time.Duration
}

const (
	cpython  = "CPython 3.11 (libpython3.11-testsuite)"
	tornado  = "Tornado (python3-tornado)"
	twisted  = "Twisted (python3-twisted)"
	trio     = "Trio (python3-trio)"
	varnish  = "varnishtest and HAProxy, cases of our own (varnish)"
	wholeRun = 15 * time.Minute
)

// suite makes modules with a common prefix.
func suite(title, prefix string, k kind, names ...string) (list []module) {
	for _, name := range names {
		list = append(list, module{suite: title, name: prefix + name, kind: k, limit: wholeRun})
	}
	return list
}

// all is what make suites runs.
func all() []module {
	list := suite(cpython, "test.", unittest, "test_epoll", "test_select", "test_poll", "test_selectors", "test_socket",
		"test_socketserver", "test_ssl", "test_httpservers", "test_httplib", "test_ftplib", "test_smtplib", "test_poplib",
		"test_imaplib", "test_telnetlib", "test_xmlrpc", "test_urllib2_localnet", "test_wsgiref", "test_logging", "test_asyncore",
		"test_asynchat", "test_smtpd", "test_os", "test_eintr", "test_signal", "test_docxmlrpc", "test_robotparser",
		"test_multiprocessing_fork")
	for i := range list {
		switch list[i].name {
		case "test.test_socket":
			list[i].without = []string{"*VSOCK*"} // hangs natively, too, on machines with AF_VSOCK
		case "test.test_os":
			list[i].match = []string{"*Sendfile*", "*FD*"}
		}
	}
	list = append(list, suite(cpython, "test.test_asyncio.", unittest, "test_base_events", "test_buffered_proto", "test_events",
		"test_proactor_events", "test_selector_events", "test_sendfile", "test_server", "test_sock_lowlevel",
		"test_ssl", "test_sslproto", "test_streams", "test_subprocess", "test_transports", "test_unix_events")...)
	list = append(list, suite(tornado, "tornado.test.", unittest, "iostream_test", "httpserver_test", "simple_httpclient_test",
		"httpclient_test", "tcpclient_test", "tcpserver_test", "ioloop_test", "netutil_test", "websocket_test", "web_test")...)
	list = append(list, suite(twisted, "twisted.", unittest, "internet.test.test_tcp", "internet.test.test_tls",
		"internet.test.test_endpoints", "internet.test.test_posixbase", "internet.test.test_core", "internet.test.test_fdset",
		"internet.test.test_udp", "test.test_tcp", "test.test_ssl", "test.test_udp", "test.test_loopback", "test.test_ftp", "test.test_amp",
		"web.test.test_webclient", "web.test.test_http")...)
	list = append(list, suite(trio, "trio.", pytest, "tests.test_socket", "tests.test_highlevel_socket",
		"tests.test_highlevel_open_tcp_listeners", "tests.test_highlevel_open_tcp_stream", "tests.test_dtls", "_core.tests.test_io")...)
	list = append(list, suite(varnish, "", vtc, "haproxy")...)
	return append(list,
		module{suite: "libuv (source of libuv1)", name: "libuv", kind: built, list: libuv, jobs: 1, limit: wholeRun},
		module{suite: "HAProxy's reg-tests (source of haproxy)", name: "reg-tests", kind: built, list: regTests, jobs: 1, limit: wholeRun},
		module{suite: "Node.js (source of nodejs)", name: "node", kind: built, list: node, jobs: 2, limit: 2 * wholeRun})
}

// quick is the part that make test runs.
func quick() []module {
	list := suite(cpython, "test.", unittest, "test_epoll", "test_socketserver", "test_socket", "test_asyncio.test_server")
	list[2].match = []string{"test.test_socket.BasicTCP*", "test.test_socket.NonBlockingTCP*", "test.test_socket.FileObject*",
		"test.test_socket.RecvmsgTCP*", "test.test_socket.SendmsgStream*", "test.test_socket.ContextManagers*", "test.test_socket.InheritanceTest*"}
	list = append(list, suite(twisted, "twisted.", unittest, "test.test_ssl")...)
	list = append(list, suite(trio, "trio.", pytest, "tests.test_highlevel_socket")...)
	proxy := suite(varnish, "", vtc, "haproxy")
	proxy[0].match = []string{"aborts.vtc", "relay.vtc", "refused.vtc", "reuse.vtc", "tcp.vtc"}
	return append(list, proxy...)
}
