package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// ErrProfile: the token cannot serve the ring's profile. Nothing was made.
var ErrProfile = errors.New("the token cannot serve the profile")

// incapable is an error by which the token says that it does not do what the profile needs.
type incapable struct{ error }

// errNoTrial: the token makes no key that ends with its session, or does not show it.
var errNoTrial = errors.New("the token has no session keys")

// trialLabel is the CKA_LABEL of the session keys with which a profile is tried. It is not the ring's: a token that
// keeps such a key against its promise must not have one more version of the ring.
const trialLabel = "hsm-kms trial"

// prove makes sure, before a key is made that stays, that the token can serve one of its kind: a session key from the same
// template is described, has its fingerprint taken, seals and opens. It returns the first of the optional attributes that
// the token takes.
//
// On a token without session keys nothing can be proven beforehand. The key is then made all the same and looked at
// afterwards: one that does not work stays on the token and is never served.
func (m *maker) prove(ctx context.Context) (from int, err error) {
	profile := m.t.common.Profile
	from, err = m.try(ctx, profile)
	cannot := incapable{}
	if err != nil && !errors.Is(err, errNoTrial) && !errors.As(err, &cannot) {
		from, err = m.try(ctx, profile) // what failed may have been that one call
	}
	if err == nil || errors.Is(err, errNoTrial) {
		return from, nil
	}
	if errors.Is(err, envelope.ErrNonceMemory) { // it says nothing of the token
		return 0, fmt.Errorf("proving the profile %s: %w", profile, err)
	}
	lacks, _ := offers(m.api, m.gen.slot, profile)
	unproven := fmt.Errorf("token %s: %w %s: %w%s", m.t.cfg.Name, ErrProfile, profile, err, notOffered(lacks))
	if works := m.otherProfile(ctx, profile); works != "" {
		return 0, hint.Wrap(unproven, "set "+works+" in the configuration: it works on this token")
	}
	if errors.As(err, &cannot) || errors.Is(err, envelope.ErrSelfTest) {
		return 0, hint.Wrap(unproven, "no other profile works on this token either; docs/hsm-support.md says what a token must offer")
	}
	return 0, fmt.Errorf("proving the profile %s: %w", profile, err)
}

// otherProfile tries what the token can do instead, the best first, and gives what to configure; "": nothing works. A token
// that takes no nonce from us is best used without one, by an HMAC.
func (m *maker) otherProfile(ctx context.Context, not envelope.Profile) string {
	configured := m.t.own.appended
	defer func() { m.t.own.appended = configured }()
	works := func(profile envelope.Profile, appended bool) bool {
		m.t.own.appended = appended
		_, err := m.try(ctx, profile)
		return err == nil
	}
	if not == envelope.AESGCMHSMIV && works(not, !configured) {
		return fmt.Sprintf("ivAppended: %t for this token", !configured)
	}
	for _, profile := range envelope.Profiles() {
		if profile != not && works(profile, false) {
			return "profile: " + profile.String()
		}
	}
	if not != envelope.AESGCMHSMIV && works(envelope.AESGCMHSMIV, true) {
		return "profile: aes-gcm-hsm-iv, and ivAppended: true for this token,"
	}
	return ""
}

func notOffered(lacks []string) (text string) {
	for _, mechanism := range lacks {
		text += "; the token does not offer " + mechanism
	}
	return text
}

// try makes a session key for the profile and uses it.
func (m *maker) try(ctx context.Context, profile envelope.Profile) (from int, err error) {
	from, err = m.generate(ctx, profile, false, 0, func(call func() error) error { return call() })
	switch {
	case err == nil:
	case refusesTemplate(err):
		return 0, fmt.Errorf("%w: %w", errNoTrial, err)
	case cannotMake(err):
		return 0, incapable{fmt.Errorf("it makes no keys for it: %w", err)}
	default:
		return 0, err
	}
	reader := m.t.reader(m.api, m.gen.slot, m.gen.admin)
	reader.ring, reader.profile = trialLabel, profile
	defer func() { m.gen.admin = reader.session }()
	table, err := reader.read(nil)
	switch {
	case err != nil:
		return 0, fmt.Errorf("trying a session key: %w", err)
	case len(table.keys) == 0:
		return 0, errNoTrial
	case len(table.byID) == 0:
		return 0, incapable{fmt.Errorf("of a session key: %s", table.keys[0].Refused)}
	}
	if err := reader.testNewest(ctx, table); err != nil {
		return 0, fmt.Errorf("trying a session key: %w", err)
	}
	if profile != envelope.AESGCMHSMIV {
		return from, nil
	}
	for id := range table.byID { // a reading lets a token pass that repeats nonces, because it can still open
		err := reader.own.memory.Check(reader.own.token, id.Fingerprint)
		if errors.Is(err, envelope.ErrNonceRepeated) {
			return 0, incapable{fmt.Errorf("of a session key: %w", err)}
		}
		if err != nil {
			return 0, err
		}
	}
	return from, nil
}
