package main

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/miekg/pkcs11"
)

// plant is a program of the scripts: it makes a key on a token, by generating it there or from outside, with the
// attributes that it is told.
func plant() {
	log.SetFlags(0)
	label := flag.String("token", "k8s", "the token's label")
	ring := flag.String("ring", "kube-secrets", "CKA_LABEL")
	id := flag.String("id", "made-elsewhere", "CKA_ID")
	private := flag.Bool("private", true, "CKA_PRIVATE")
	sensitive := flag.Bool("sensitive", true, "CKA_SENSITIVE")
	extractable := flag.Bool("extractable", false, "CKA_EXTRACTABLE")
	imported := flag.String("import", "", "32 bytes in hex, to be brought in from outside; empty: made in the token")
	login := flag.Bool("login", true, "log in")
	flag.Parse()
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true), pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, *private),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, *sensitive), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, *extractable),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, true), pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, *ring), pkcs11.NewAttribute(pkcs11.CKA_ID, []byte(*id)),
	}
	if err := planted(*label, *login, *imported, template); err != nil {
		log.Fatal(err)
	}
}

func planted(label string, login bool, imported string, template []*pkcs11.Attribute) error {
	ctx := pkcs11.New(os.Getenv("MODULE"))
	if ctx == nil {
		return fmt.Errorf("loading %s", os.Getenv("MODULE"))
	}
	defer ctx.Destroy()
	if err := ctx.Initialize(); err != nil {
		return err
	}
	defer func() { _ = ctx.Finalize() }()
	session, err := openToken(ctx, label)
	if err != nil {
		return err
	}
	if login {
		pin, err := os.ReadFile("hsm/" + label + ".pin")
		if err != nil {
			return err
		}
		if err := ctx.Login(session, pkcs11.CKU_USER, string(bytes.TrimSpace(pin))); err != nil {
			return err
		}
	}
	if imported == "" {
		_, err = ctx.GenerateKey(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_GEN, nil)},
			append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, 32)))
		return err
	}
	value, err := hex.DecodeString(imported)
	if err != nil {
		return err
	}
	_, err = ctx.CreateObject(session, append(template, pkcs11.NewAttribute(pkcs11.CKA_VALUE, value)))
	return err
}

// openToken opens a session to write on the first token of that label.
func openToken(ctx *pkcs11.Ctx, label string) (pkcs11.SessionHandle, error) {
	slots, err := ctx.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, slot := range slots {
		info, err := ctx.GetTokenInfo(slot)
		if err != nil {
			return 0, err
		}
		if info.Label == label {
			return ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
		}
	}
	return 0, fmt.Errorf("no token is labelled %s", label)
}
