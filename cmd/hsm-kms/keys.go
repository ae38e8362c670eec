package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/app"
	"github.com/hsm-kms/hsm-kms/cmd/hsm-kms/internal/keyops"
	"github.com/hsm-kms/hsm-kms/envelope"
)

func (c *command) keys() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "keys",
		Short: "Make, list, rotate, bind and retire the keys of the ring",
		Long: `The key ring is every secret key on the token that has the ring's label. The token is its only store. The keys commands
work on the first token of the configuration; list reads all of them.`,
	})
	cmd.AddCommand(c.keysCreate(), c.keysRotate(), c.keysList(), c.keysRetire(), c.keysBind())
	return cmd
}

// keyJSON is one version of the ring for programs. Fields and names are a contract.
type keyJSON struct {
	KeyID            string   `json:"keyID"`
	Ring             string   `json:"ring"`
	ID               string   `json:"id"`
	State            string   `json:"state"`
	Activates        *string  `json:"activates"`
	Fingerprint      string   `json:"fingerprint"`
	Sensitive        *bool    `json:"sensitive"` // this and the next three: null when the token has not been read, or does not say
	Extractable      *bool    `json:"extractable"`
	NeverExtractable *bool    `json:"neverExtractable"`
	Local            *bool    `json:"local"`
	Tokens           []string `json:"tokens"`
	Problem          string   `json:"problem,omitempty"`
	Cluster          string   `json:"cluster,omitempty"`   // that the ring belongs to
	Emergency        bool     `json:"emergency,omitempty"` // made with --without-token
	Deferred         bool     `json:"deferred,omitempty"`  // due, and held back
	Reason           string   `json:"reason,omitempty"`    // deferred: why
	Until            string   `json:"until,omitempty"`     // deferred: when it becomes current at the latest; none: without limit
	Missing          []string `json:"missing,omitempty"`   // of the current key: the tokens that lack it, or cannot use it
}

// rfc3339Milli is RFC 3339 with milliseconds, the precision of an activation.
const rfc3339Milli = "2006-01-02T15:04:05.000Z07:00"

func keyOf(v envelope.Version) keyJSON {
	k := keyJSON{
		Ring: v.ID.Ring, ID: hex.EncodeToString(v.CKAID), State: string(v.State), Tokens: v.Tokens, Problem: v.Refused,
		Emergency: v.ID.Emergency(),
	}
	if a := v.Attributes; a.Known {
		k.Sensitive, k.Extractable, k.NeverExtractable, k.Local = &a.Sensitive, &a.Extractable, &a.NeverExtractable, &a.Local
	}
	if !v.Activation.IsZero() {
		at := v.Activation.UTC().Format(rfc3339Milli)
		k.Activates = &at
	}
	if v.ID.Fingerprint != [envelope.FingerprintSize]byte{} {
		k.KeyID, k.Fingerprint = v.ID.String(), v.ID.FingerprintHex()
	}
	return k
}

func (c *command) keysList() *cobra.Command {
	return c.withConfig(c.withRing(c.withOutput(&cobra.Command{
		Use:   "list",
		Short: "List every version of the ring, and which is current",
		Long: `Lists the keys of keyRing, or with --ring those of a read ring. No key of a read ring is current: pending ones stay so.
Exits 1 when a token cannot be read, when it is not clear which key is current, or when a key of a read ring works on no token.`,
		Example: `  hsm-kms keys list
  hsm-kms keys list --ring kube-old
  hsm-kms keys list -o json | jq -r '.[] | select(.state == "current") | .keyID'`,
		Args: cobra.NoArgs,
		RunE: c.runKeysList,
	})))
}

func (c *command) runKeysList(cmd *cobra.Command, _ []string) error {
	a, err := c.load()
	if err != nil {
		return err
	}
	list, err := keyops.List(cmd.Context(), a)
	if list == nil {
		return err
	}
	if printErr := c.printKeys(a, list); printErr != nil {
		return printErr
	}
	return err
}

// listed is keyOf with what the whole ring says of the version.
func listed(view envelope.View, v envelope.Version) keyJSON {
	k := keyOf(v)
	if v.State == envelope.Current {
		k.Missing = view.Missing()
	}
	if view.Deferred != nil && view.Deferred.ID == v.ID && v.State != envelope.Refused {
		k.Deferred, k.Reason = true, v.WhyHeldBack()
		if until := v.HeldUntil(); !until.IsZero() {
			k.Until = until.UTC().Format(rfc3339Milli)
		}
	}
	return k
}

func (c *command) printKeys(a *app.Context, list *keyops.Listing) error {
	view, versions, cluster := list.View, list.Versions, list.Cluster
	if c.structured() {
		list := []keyJSON{}
		for _, v := range versions {
			k := listed(view, v)
			k.Cluster = cluster
			list = append(list, k)
		}
		return c.json(list)
	}
	if len(versions) == 0 {
		_, err := fmt.Fprintln(c.out, "The ring is empty. Make the first key with: hsm-kms keys create"+ofRing(a))
		return err
	}
	rows := [][]string{{"STATE", "ACTIVATES", "KEY ID", "TOKENS", "EXTRACTABLE", "MADE IN HSM"}}
	if c.output == wide {
		rows[0] = append(rows[0], "SENSITIVE", "NEVER EXTRACTABLE", "CKA_ID (HEX)")
	}
	for _, v := range versions {
		k := keyOf(v)
		at := "always"
		if k.Activates != nil {
			at = v.Activation.UTC().Format(time.RFC3339)
		}
		row := []string{k.State, at, keyops.Name(v), strings.Join(k.Tokens, ","), toldOf(k.Extractable), toldOf(k.Local)}
		if c.output == wide {
			row = append(row, toldOf(k.Sensitive), toldOf(k.NeverExtractable), k.ID)
		}
		rows = append(rows, row)
	}
	if err := c.headed(rows); err != nil {
		return err
	}
	if cluster != "" {
		fmt.Fprintf(c.out, "\nThe ring belongs to the cluster %s.\n", cluster)
	}
	if a.Read == nil && len(a.File.ReadRings) > 0 {
		fmt.Fprintf(c.out, "\nThese rings are read too; hsm-kms keys list --ring NAME lists their keys: %s\n", strings.Join(a.File.RingNames()[1:], ", "))
	}
	for _, v := range versions {
		k := listed(view, v)
		switch {
		case v.Refused != "":
			fmt.Fprintf(c.out, "\n%s on %s is not served: %s\n", keyops.Name(v), strings.Join(v.Tokens, ","), v.Refused)
		case k.Deferred:
			fmt.Fprintf(c.out, "\n%s is due, and held back: %s\n", keyops.Name(v), k.Reason)
		case k.Missing != nil:
			fmt.Fprintf(c.out, "\n%s is current, and missing or unusable on %s\n", keyops.Name(v), strings.Join(k.Missing, ","))
		}
	}
	return nil
}

// ofRing is what a command in a hint needs to be about the same ring.
func ofRing(a *app.Context) string {
	if a.Read == nil {
		return ""
	}
	return " --ring " + a.Read.KeyRing
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// toldOf is what a token told of a key; nil: nothing.
func toldOf(b *bool) string {
	if b == nil {
		return "unknown"
	}
	return yesNo(*b)
}
