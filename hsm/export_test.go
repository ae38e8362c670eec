package hsm

import (
	"context"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/hsm-kms/hsm-kms/hsm/p11"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// KeyErrors are return values by which tokens speak of one key that they cannot use.
var KeyErrors = []p11.RV{
	pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_TOKEN_NOT_PRESENT,
	pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_GENERAL_ERROR, 0x8000001A,
}

// WithClock is c with another clock for the attempt guard.
func WithClock(c Config, now func() time.Time) Config {
	c.clock = now
	return c
}

// WithViewAge is c with another age at which views are compared.
func WithViewAge(c Config, age time.Duration) Config {
	c.viewAge = age
	return c
}

// WithWorkerProgram is c with workers that are another program; empty: the test binary, as without.
func WithWorkerProgram(c Config, path string) Config {
	c.launch = func(ctx context.Context, cfg worker.Config) (workerProcess, error) {
		cfg.Program = path
		return launch(ctx, cfg)
	}
	return c
}
