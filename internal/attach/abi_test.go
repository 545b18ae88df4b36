// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"strings"
	"testing"

	"pno/internal/cheader"
)

// The Go structs must be those of shim/attach.h.
func TestHeaderMatches(t *testing.T) {
	structs := map[string]Message{
		"hello": &Hello{}, "welcome": &Welcome{}, "refused": &Refused{}, "channel_open": &ChannelOpen{},
		"channel": &Channel{}, "forked": &Forked{}, "register_socket": &RegisterSocket{},
		"unregister_socket": &UnregisterSocket{}, "lookup_socket": &LookupSocket{}, "socket": &Socket{},
		"ready": &Ready{}, "ack": &Ack{},
	}
	k := cheader.New(t, "attach.h")
	k.Struct("pno_msg", &Header{})
	k.Struct("pno_rule", &Rule{})
	for name, m := range structs {
		k.Struct("pno_msg_"+name, m)
		k.Value("PNO_MSG_"+strings.ToUpper(name), uint64(typeOf(m)))
	}
	for name, value := range map[string]uint64{
		"ATTACH_MAGIC": Magic, "ATTACH_VERSION": Version, "MAX_RULES": MaxRules, "NAME_LEN": NameLen,
		"TEXT_LEN": TextLen, "TOKEN_LEN": TokenLen, "POLICY_LEN": PolicyLen, "HELLO_TOKEN": HelloToken, "HELLO_PROBE": HelloProbe,
		"ACTION_OFFLOAD": 1, "ACTION_KERNEL": 2, "ACTION_REFUSE": 3,
		"RULE_LISTEN": RuleListen, "RULE_CONNECT": RuleConnect,
		"SOCK_LISTENER": SockListener, "SOCK_CONN": SockConn, "SOCK_BOUND": SockBound,
	} {
		k.Value("PNO_"+name, value)
	}
	k.Text("PNO_ATTACH_DEFAULT", DefaultPath)
	k.Run("../../shim")
}
