// SPDX-License-Identifier: Apache-2.0

package dpu_test

import (
	"encoding/binary"

	"pno/offload"
)

func (s *hsock) getOpt(level, name uint32) (offload.OptVal, uint32) {
	o := offload.OptVal{Level: level, Name: name}
	b := make([]byte, offload.OptValSize)
	o.Put(b)
	a := s.h.request(s.shard, offload.OpGetOpt, s.handle, 0, b)
	if a.errno != 0 {
		return o, a.errno
	}
	o, err := offload.GetOptVal(a.payload)
	if err != nil {
		s.h.t.Fatal(err)
	}
	return o, 0
}

func (s *hsock) setOpt(level, name, v uint32) uint32 {
	o := offload.OptVal{Level: level, Name: name, Len: 4}
	binary.LittleEndian.PutUint32(o.Val[:], v)
	b := make([]byte, offload.OptValSize)
	o.Put(b)
	return s.h.request(s.shard, offload.OpSetOpt, s.handle, 0, b).errno
}
