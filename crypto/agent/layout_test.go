// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"strings"
	"testing"

	"pno/crypto/keyref"
	"pno/crypto/signing"
	"pno/internal/cheader"
)

// The Go structs must be those of protocol.h.
func TestHeaderMatches(t *testing.T) {
	k := cheader.New(t, "protocol.h")
	describe := func(name string, v any, size int) {
		k.Struct(name, v)
		if n := binary.Size(v); n != size {
			t.Errorf("%s: %d bytes, %d in the codec", name, n, size)
		}
	}
	describe("pno_agent_msg", Header{}, headerSize)
	describe("pno_agent_hello", Hello{}, helloSize)
	describe("pno_agent_welcome", Welcome{}, welcomeSize)
	describe("pno_agent_refused", Refused{}, refusedSize)
	describe("pno_agent_op", OpHead{}, opSize)
	describe("pno_agent_result", ResultHead{}, resultSize)
	describe("pno_key_ref", keyref.Head{}, 48)
	for name, value := range map[string]uint64{
		"AGENT_MAGIC": Magic, "AGENT_VERSION": Version, "AGENT_PACKET": MaxPacket, "AGENT_NAME": NameLen, "AGENT_TEXT": TextLen,
		"AGENT_GRACE_MS": GraceMillis, "AGENT_INPUT": signing.MaxInput, "AGENT_OUTPUT": signing.MaxOutput,
		"AGENT_HELLO": uint64(TypeHello), "AGENT_WELCOME": uint64(TypeWelcome), "AGENT_REFUSED": uint64(TypeRefused),
		"AGENT_OP": uint64(TypeOp), "AGENT_RESULT": uint64(TypeResult), "KEY_ID_LEN": uint64(len(signing.KeyID{})),
		"INPUT_DIGEST": uint64(signing.Digest), "INPUT_MESSAGE": uint64(signing.Message),
		"INPUT_TLS13_SERVER": uint64(signing.TLS13Server), "INPUT_TLS13_CLIENT": uint64(signing.TLS13Client),
		"INPUT_TLS12_PREMASTER": uint64(signing.TLS12Premaster),
		"RSA_PKCS1_SHA256":      uint64(signing.RSAPKCS1SHA256), "RSA_PKCS1_SHA384": uint64(signing.RSAPKCS1SHA384),
		"RSA_PKCS1_SHA512": uint64(signing.RSAPKCS1SHA512), "RSA_PSS_RSAE_SHA256": uint64(signing.RSAPSSSHA256),
		"RSA_PSS_RSAE_SHA384": uint64(signing.RSAPSSSHA384), "RSA_PSS_RSAE_SHA512": uint64(signing.RSAPSSSHA512),
		"ECDSA_P256_SHA256": uint64(signing.ECDSAP256SHA256), "ECDSA_P384_SHA384": uint64(signing.ECDSAP384SHA384),
		"ECDSA_P521_SHA512": uint64(signing.ECDSAP521SHA512), "ED25519": uint64(signing.Ed25519),
	} {
		k.Value("PNO_"+name, value)
	}
	for _, s := range signing.Statuses {
		k.Value("PNO_STATUS_"+strings.ToUpper(s.String()), uint64(s))
	}
	k.Text("PNO_AGENT_DEFAULT", DefaultPath)
	k.Text("PNO_KEY_PEM_LABEL", keyref.Label)
	k.Run(".")
}
