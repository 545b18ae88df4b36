// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"pno/crypto/keyref"
	"pno/crypto/keystore"
	"pno/crypto/secmem"
	"pno/crypto/signing"
)

// keyFlags say where the keys are: flags, or a worker's configuration.
type keyFlags struct {
	config, dir, kek string
}

func newKeysCmd(code *int) *cobra.Command {
	k := &keyFlags{}
	cmd := &cobra.Command{Use: "keys", Short: "Keep the key store",
		PersistentPreRunE: func(*cobra.Command, []string) error {
			*code = exitFailed
			return secmem.HoldProcess(false)
		}}
	f := cmd.PersistentFlags()
	f.StringVar(&k.config, "config", "/etc/pno/cryptod.yaml", "the worker's configuration `file`, for where the keys are")
	f.StringVar(&k.dir, "dir", "", "`folder` of the keys, instead of the configuration's")
	f.StringVar(&k.kek, "kek", "", "key-encryption key, instead of the configuration's: file:/path, credential:name, env:NAME, pkcs11:…")
	cmd.AddCommand(newInitCmd(), k.importCmd(), k.listCmd(), k.exportCmd(), k.rotateCmd(), k.removeCmd())
	return cmd
}

// open opens the store, with its KEK if need be.
func (k *keyFlags) open(withKEK bool) (*keystore.Store, func(), error) {
	dir, spec := k.dir, k.kek
	if dir == "" || spec == "" && withKEK {
		set, err := loadSettings(k.config)
		if err != nil {
			return nil, nil, fmt.Errorf("%w\nor give --dir and --kek", err)
		}
		if dir == "" {
			dir = set.Keys.Dir
		}
		if spec == "" {
			spec = set.Keys.KEK
		}
	}
	if !withKEK {
		s, err := keystore.Open(dir, nil)
		return s, func() {}, err
	}
	kek, err := keystore.OpenKEK(spec)
	if err != nil {
		return nil, nil, err
	}
	s, err := keystore.Open(dir, kek)
	if err != nil {
		return nil, nil, errors.Join(err, kek.Close())
	}
	return s, func() { _ = kek.Close() }, nil
}

// with runs fn on the open store. The KEK is there only if asked for.
func (k *keyFlags) with(kek bool, fn func(*keystore.Store) error) error {
	store, done, err := k.open(kek)
	if err != nil {
		return err
	}
	defer done()
	return fn(store)
}

// find runs fn on one key of the store, by name or id.
func (k *keyFlags) find(which string, fn func(*keystore.Store, *keystore.Entry) error) error {
	return k.with(false, func(store *keystore.Store) error {
		e, err := store.Find(which)
		if err != nil {
			return err
		}
		return fn(store, e)
	})
}

func newInitCmd() *cobra.Command {
	return &cobra.Command{
		Use: "new-kek FILE", Short: "Write a fresh key-encryption key to a file",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return keystore.NewKEKFile(args[0]) },
	}
}

func (k *keyFlags) importCmd() *cobra.Command {
	var opts keystore.Options
	var passFile string
	var expires time.Duration
	cmd := &cobra.Command{
		Use: "import NAME FILE", Short: "Seal a private key (PEM or DER, - for standard input) and add it",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Name = args[0]
			if expires > 0 {
				opts.Expires = time.Now().Add(expires)
			}
			return k.with(true, func(store *keystore.Store) error {
				key, err := readKey(cmd.InOrStdin(), args[1], passFile)
				if err != nil {
					return err
				}
				defer key.Close()
				e, err := store.Import(key, opts)
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), e.ID)
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&opts.TLS13Only, "tls13-only", false, "the key signs TLS 1.3 handshakes and nothing else")
	f.StringVar(&passFile, "passphrase-file", "", "`file` with the passphrase of an encrypted key")
	f.DurationVar(&expires, "expires", 0, "the key opens for that long only, as 24h: for sealed copies on a proxy")
	return cmd
}

func readKey(stdin io.Reader, path, passFile string) (keystore.Secret, error) {
	const most = 64 << 10
	var in = stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return keystore.Secret{}, fmt.Errorf("read private key: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, most))
	defer clear(data)
	if err != nil {
		return keystore.Secret{}, fmt.Errorf("read private key: %w", err)
	}
	var pass []byte
	if passFile != "" {
		text, err := os.ReadFile(passFile)
		if err != nil {
			return keystore.Secret{}, fmt.Errorf("read passphrase: %w", err)
		}
		defer clear(text)
		for pass = text; len(pass) > 0 && (pass[len(pass)-1] == '\n' || pass[len(pass)-1] == '\r'); {
			pass = pass[:len(pass)-1]
		}
	}
	key, err := keystore.Decode(data, pass)
	if errors.Is(err, keystore.ErrPassphrase) && passFile == "" {
		err = fmt.Errorf("%w; give --passphrase-file", err)
	}
	return key, err
}

// listed is a key as `keys list -o json` shows it.
type listed struct {
	Name      string     `json:"name"`
	IDText    string     `json:"id"`
	Type      string     `json:"type"`
	TLS13Only bool       `json:"tls13_only"`
	Created   time.Time  `json:"created"`
	Expires   *time.Time `json:"expires,omitempty"`
	KEK       string     `json:"kek"`
}

func (k *keyFlags) listCmd() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use: "list", Short: "Show the keys; none is opened", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return k.with(false, func(store *keystore.Store) error {
				entries, err := store.List() // what can be read, and why the rest cannot
				return errors.Join(printKeys(cmd.OutOrStdout(), output, rows(entries)), err)
			})
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func rows(entries []*keystore.Entry) []listed {
	out := make([]listed, len(entries))
	for i, e := range entries {
		out[i] = listed{Name: e.Name, IDText: e.ID.String(), Type: signing.KeyType(e.Public), TLS13Only: e.TLS13Only, Created: e.Created, KEK: e.KEK}
		if !e.Expires.IsZero() {
			out[i].Expires = &e.Expires
		}
	}
	return out
}

func printKeys(w io.Writer, output string, rows []listed) error {
	switch output {
	case "json":
		return writeJSON(w, rows)
	case "table":
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tTYPE\tUSE\tID\tCREATED\tEXPIRES\tKEK")
		for _, r := range rows {
			use, expires := "any", "-"
			if r.TLS13Only {
				use = "tls1.3"
			}
			if r.Expires != nil {
				expires = r.Expires.Format(time.RFC3339)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Type, use, r.IDText, r.Created.Format(time.RFC3339), expires, r.KEK)
		}
		return t.Flush()
	}
	return fmt.Errorf("%q is not a form of output; use table or json", output)
}

func (k *keyFlags) exportCmd() *cobra.Command {
	var asRef bool
	cmd := &cobra.Command{
		Use: "export-public NAME|ID", Short: "Write the public half of a key, or what a proxy is given in place of it",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.find(args[0], func(_ *keystore.Store, e *keystore.Entry) error {
				out := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: e.SPKI})
				if asRef {
					out = keyref.Ref{SPKI: e.SPKI, TLS13Only: e.TLS13Only}.PEM()
				}
				_, err := cmd.OutOrStdout().Write(out)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&asRef, "pem", false, "the block for nginx and HAProxy that the provider reads, in place of a private key")
	return cmd
}

func (k *keyFlags) rotateCmd() *cobra.Command {
	var next string
	cmd := &cobra.Command{
		Use: "rotate", Short: "Seal every key anew under another key-encryption key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if next == "" {
				return errors.New("give --new-kek: the key-encryption key to change to")
			}
			return k.with(true, func(store *keystore.Store) error {
				to, err := keystore.OpenKEK(next)
				if err != nil {
					return err
				}
				n, err := store.Rotate(to)
				fmt.Fprintf(cmd.OutOrStdout(), "%d keys under %s\n", n, to.ID())
				return errors.Join(err, to.Close())
			})
		},
	}
	cmd.Flags().StringVar(&next, "new-kek", "", "key-encryption key to change to, as for --kek")
	return cmd
}

func (k *keyFlags) removeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "remove NAME|ID", Short: "Delete a key; workers stop using it within their reload interval",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.find(args[0], (*keystore.Store).Remove)
		},
	}
}
