// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package keystore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/miekg/pkcs11"
)

const (
	gcmNonce = 12
	gcmTag   = 128
)

// tokenKEK is an AES key that never leaves its PKCS #11 token.
type tokenKEK struct {
	id string

	mu      sync.Mutex // a session does one thing at a time
	lib     *pkcs11.Ctx
	session pkcs11.SessionHandle
	key     pkcs11.ObjectHandle
}

func openToken(rest string) (KEK, error) {
	set, err := tokenSettings(rest)
	if err != nil {
		return nil, err
	}
	pin, err := readPIN(set["pin-file"])
	if err != nil {
		return nil, fmt.Errorf("open KEK: %w", err)
	}
	lib := pkcs11.New(set["module"])
	if lib == nil {
		return nil, fmt.Errorf("open KEK: %s is not a PKCS #11 module", set["module"])
	}
	k := &tokenKEK{id: "pkcs11-" + set["token"] + "/" + set["object"], lib: lib}
	if err := k.login(set["token"], set["object"], pin); err != nil {
		_ = k.Close() // the login is the error to tell
		return nil, fmt.Errorf("open KEK %s: %w", k.id, err)
	}
	return k, nil
}

func readPIN(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s: others may read the PIN (mode %#o); chmod 600 it", path, info.Mode().Perm())
	}
	pin, err := os.ReadFile(path)
	return strings.TrimSpace(string(pin)), err
}

func (k *tokenKEK) login(token, object, pin string) error {
	if err := k.lib.Initialize(); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return fmt.Errorf("initialise the module: %w", err)
	}
	slot, err := k.slot(token)
	if err != nil {
		return err
	}
	if k.session, err = k.lib.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	if err := k.lib.Login(k.session, pkcs11.CKU_USER, pin); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		return fmt.Errorf("log in: %w", err)
	}
	want := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, object),
	}
	if err := k.lib.FindObjectsInit(k.session, want); err != nil {
		return fmt.Errorf("look for the key: %w", err)
	}
	found, _, err := k.lib.FindObjects(k.session, 2)
	if err := errors.Join(err, k.lib.FindObjectsFinal(k.session)); err != nil {
		return fmt.Errorf("look for the key: %w", err)
	}
	if len(found) != 1 {
		return fmt.Errorf("%d AES keys are labelled %q, want one", len(found), object)
	}
	k.key = found[0]
	return nil
}

func (k *tokenKEK) slot(token string) (uint, error) {
	slots, err := k.lib.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("list the tokens: %w", err)
	}
	for _, s := range slots {
		info, err := k.lib.GetTokenInfo(s)
		if err == nil && strings.TrimRight(info.Label, " \x00") == token {
			return s, nil
		}
	}
	return 0, fmt.Errorf("none of %d tokens is labelled %q", len(slots), token)
}

func (k *tokenKEK) ID() string { return k.id }

func (k *tokenKEK) Wrap(secret, aad []byte) ([]byte, error) {
	nonce := make([]byte, gcmNonce)
	rand.Read(nonce)
	k.mu.Lock()
	defer k.mu.Unlock()
	params := pkcs11.NewGCMParams(nonce, aad, gcmTag)
	defer params.Free()
	if err := k.lib.EncryptInit(k.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k.key); err != nil {
		return nil, fmt.Errorf("encrypt in the token: %w", err)
	}
	out, err := k.lib.Encrypt(k.session, secret)
	if err != nil {
		return nil, fmt.Errorf("encrypt in the token: %w", err)
	}
	if iv := params.IV(); len(iv) == gcmNonce {
		nonce = iv // some tokens make their own
	}
	return append(append([]byte(nil), nonce...), out...), nil
}

func (k *tokenKEK) Unwrap(wrapped, aad []byte) ([]byte, error) {
	if len(wrapped) <= gcmNonce {
		return nil, errSealed
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	params := pkcs11.NewGCMParams(wrapped[:gcmNonce], aad, gcmTag)
	defer params.Free()
	if err := k.lib.DecryptInit(k.session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, k.key); err != nil {
		return nil, fmt.Errorf("decrypt in the token: %w", err)
	}
	out, err := k.lib.Decrypt(k.session, wrapped[gcmNonce:])
	if err != nil {
		return nil, fmt.Errorf("%w (token: %v)", errSealed, err)
	}
	return out, nil
}

// Close leaves the module initialised: it is one a process, and another KEK may
// live on it.
func (k *tokenKEK) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session == 0 {
		return nil
	}
	err := k.lib.CloseSession(k.session)
	k.session = 0
	return err
}
