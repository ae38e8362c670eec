package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hsm-kms/hsm-kms/test/faultp11"
)

// TestTwoRotationsAtOneMoment: two machines, whose locks are their own, look at the ring before either has made its key. The
// one that ends last sees both keys, says so, and names the one to withdraw.
func TestTwoRotationsAtOneMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t, makeShared(t))
	r.write()
	here := r.configPath()
	slow := r.tokens[0].faults
	other := faultp11.New(t, r.tokens[0].store.Module, faultp11.Options{SoftHSMConf: r.tokens[0].store.Conf()})
	text, err := os.ReadFile(here)
	if err != nil {
		t.Fatal(err)
	}
	there := r.file("there.yaml", strings.NewReplacer(slow.Path(), other.Path(), r.state, r.state+"-there").Replace(string(text)))

	release := slow.Hang("C_GenerateKey")
	type ended struct {
		code        int
		out, errOut bytes.Buffer
	}
	rotate := func(config, in string) *ended {
		e := &ended{}
		e.code = run(t.Context(), []string{"keys", "rotate", "--activate-in", in, "-o", "json", "--config", config}, &e.out, &e.errOut)
		return e
	}
	done := make(chan *ended)
	go func() { done <- rotate(here, "20m") }()
	for deadline := time.Now().Add(20 * time.Second); slow.Calls("C_GenerateKey") == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first rotation never came to make its key")
		}
	}
	second := rotate(there, "30m")
	release()
	first := <-done

	var madeFirst, madeSecond rotatedJSON
	if err := json.Unmarshal(second.out.Bytes(), &madeSecond); err != nil || second.code != 0 || madeSecond.MadeMeanwhile != nil {
		t.Fatalf("the one that saw no other: exit %d, %s%s", second.code, second.out.String(), second.errOut.String())
	}
	if err := json.Unmarshal(first.out.Bytes(), &madeFirst); err != nil || first.code != 1 {
		t.Fatalf("the one that ended last: exit %d, %v, %s%s", first.code, err, first.out.String(), first.errOut.String())
	}
	if len(madeFirst.MadeMeanwhile) != 1 || madeFirst.MadeMeanwhile[0] != madeSecond.KeyID || madeFirst.KeyID == madeSecond.KeyID {
		t.Errorf("it made %s, and names %v; the other made %s", madeFirst.KeyID, madeFirst.MadeMeanwhile, madeSecond.KeyID)
	}
	for _, want := range []string{"two rotations at one moment", madeFirst.KeyID, madeSecond.KeyID, "withdraw this one before its activation: hsm-kms keys retire " + madeSecond.KeyID} {
		if !strings.Contains(first.errOut.String(), want) {
			t.Errorf("it does not say %q: %s", want, first.errOut.String())
		}
	}
}
