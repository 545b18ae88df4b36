// SPDX-License-Identifier: Apache-2.0

package shim_test

import (
	"fmt"
	"io"
	"log"
	"net/http"

	"pno/shim"
)

// A web server whose connections live on the DPU. Try it with
//
//	pno sim --publish 127.0.0.1:8080=198.18.0.2:8080 -- ./server
func ExampleListen() {
	ln, err := shim.Listen("tcp", ":8080")
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(ln, http.FileServer(http.Dir("/usr/share/doc"))))
}

// An HTTP client whose connections live on the DPU.
func ExampleDialer_DialContext() {
	client := http.Client{Transport: &http.Transport{DialContext: new(shim.Dialer).DialContext}}
	r, err := client.Get("http://198.18.0.100:9000/")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	n, err := io.Copy(io.Discard, r.Body)
	fmt.Println(n, err)
}
