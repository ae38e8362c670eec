package hsmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/hsm"
	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// errand is what another process of the test binary is to do for this one.
type errand struct {
	Token    hsm.TokenConfig
	Ring     string
	Profile  envelope.Profile
	StateDir string
	Do       string // one of the constants
	CKAID    []byte // of the key that is made or deleted
}

const (
	doGenerate = "generate"
	doDelete   = "delete"
	doLogIn    = "log in"
	doByHand   = "log in by hand"
)

const errandMark = "HSM_KMS_TEST_ERRAND"

// Main does the errand that this process was started for, or is a worker, if any, and ends it; else it runs the tests.
func Main(m interface{ Run() int }) {
	if worker.Asked(os.Args) {
		fmt.Fprintln(os.Stderr, worker.Main())
		os.Exit(2)
	}
	text := os.Getenv(errandMark)
	if text == "" {
		os.Exit(m.Run())
	}
	var e errand
	err := json.Unmarshal([]byte(text), &e)
	if err == nil {
		err = e.do()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func (e errand) do() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	common := hsm.Config{Ring: e.Ring, Profile: e.Profile, StateDir: e.StateDir}
	switch {
	case e.Do == doGenerate && e.Token.Reserved != "":
		return e.generateReserved()
	case e.Do == doGenerate:
		_, err := hsm.Generate(ctx, common, e.Token, e.CKAID)
		return err
	case e.Do == doDelete:
		return e.remove()
	case e.Do == doByHand:
		_, _, err := e.open()
		return err
	}
	set := hsm.Open(common, []hsm.TokenConfig{e.Token})
	ctx, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		set.Run(ctx)
	}()
	err := set.Connected(ctx)[0]
	stop()
	<-ended
	return err
}

func (s Subject) generateElsewhere(ctx context.Context, _ string, ckaID []byte) error {
	return s.errand(ctx, doGenerate, ckaID)
}

// Generate makes a key through PKCS#11 in another process, as `keys create` does.
func (s Subject) Generate(ctx context.Context) error {
	id, err := envelope.NewCKAID(time.Now())
	if err != nil {
		return err
	}
	return s.errand(ctx, doGenerate, id)
}

// LogInElsewhere connects in another process, as a restart of the plugin does, and returns what that said.
func (s Subject) LogInElsewhere(ctx context.Context) error { return s.errand(ctx, doLogIn, nil) }

// LogInByHand logs in past package hsm, as an operator does with the vendor's tool.
func (s Subject) LogInByHand(ctx context.Context) error { return s.errand(ctx, doByHand, nil) }

// DeleteKey destroys the key with the CKA_ID ckaID in another process.
func (s Subject) DeleteKey(ctx context.Context, ckaID []byte) error {
	return s.errand(ctx, doDelete, ckaID)
}

func (s Subject) errand(ctx context.Context, do string, ckaID []byte) error {
	text, err := json.Marshal(errand{
		Do: do, CKAID: ckaID, Token: s.Token, Ring: s.Common.Ring, Profile: s.Common.Profile, StateDir: s.Common.StateDir,
	})
	if err != nil {
		return fmt.Errorf("describing an errand: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the test binary: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	// Without the sleep of a second by which the race detector ends a process.
	cmd.Env = append(os.Environ(), errandMark+"="+string(text), "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("in another process: %w: %s", err, out)
	}
	return nil
}
