package kmsplugin

import (
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// namedInAnswer bounds how many key_ids an answer names.
const namedInAnswer = 8

// answerTo is the gRPC error for a peer. Only NotFound says more than its class: the key_id that was asked for, and what
// the ring holds. It is put together from key_ids alone, since the cause may name a token.
func answerTo(class problem.Class, keyID string, view func(keyID string) envelope.View) error {
	if class.Code != codes.NotFound {
		return class.Error()
	}
	return status.Error(class.Code, class.Words+" "+quoted(keyID)+": "+held(keyID, view(keyID)))
}

// quoted keeps a peer's own text on one line and within bounds.
func quoted(text string) string {
	if len(text) > envelope.MaxKeyID {
		return fmt.Sprintf("of %d bytes", len(text))
	}
	return fmt.Sprintf("%q", text)
}

// plain is for a field of the log: as it is, so that it can be searched for as the audit trail has it, or quoted when it
// has anything in it that a key_id or a uid of kube-apiserver has not.
func plain(text string) string {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }
	if len(text) > envelope.MaxKeyID || strings.ContainsFunc(text, odd) {
		return quoted(text)
	}
	return text
}

// held says what the ring holds in place of keyID. The same version with another fingerprint is said plainly: this
// node's token and the one that sealed hold different keys under one label and CKA_ID.
func held(keyID string, view envelope.View) string {
	asked, _, err := envelope.ParseUsedKeyID(keyID)
	if err != nil {
		return "not a key_id of this plugin"
	}
	var ids []string
	for i := len(view.Versions) - 1; i >= 0; i-- {
		v := &view.Versions[i]
		switch {
		case v.ID == asked && v.State == envelope.Refused:
			return "the HSM holds it, and the plugin does not serve it; the plugin's log has the reason"
		case v.State == envelope.Refused:
			continue
		case v.ID.Ring == asked.Ring && v.ID.Version == asked.Version && v.ID != asked:
			return "the HSM holds that version with other key material, " + v.ID.String()
		}
		ids = append(ids, v.ID.String())
	}
	if len(ids) == 0 {
		return "the ring holds no key"
	}
	more := ""
	if len(ids) > namedInAnswer {
		more = fmt.Sprintf(" and %d more", len(ids)-namedInAnswer)
		ids = ids[:namedInAnswer]
	}
	return "the ring holds " + strings.Join(ids, ", ") + more
}
