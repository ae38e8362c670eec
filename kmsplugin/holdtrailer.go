package kmsplugin

import (
	"context"
	"encoding/json"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// holdTrailer is the gRPC trailer of Status with the state of the outage hold: holdfile.State as JSON.
const holdTrailer = "hsm-kms-hold-bin"

// maxHoldTrailer bounds the trailer in bytes: MaxMissing key_ids and some numbers.
const maxHoldTrailer = 16 << 10

// sendHold sends the state of the hold; nil: outageHold is off. kube-apiserver does not look at trailers.
func sendHold(ctx context.Context, state *holdfile.State) {
	if state == nil {
		return
	}
	if text, err := json.Marshal(state); err == nil { // it always is
		_ = grpc.SetTrailer(ctx, metadata.Pairs(holdTrailer, string(text))) // fails only outside a gRPC call
	}
}

// holdIn reads the trailer; nil: the plugin has no hold, or says nothing of it that can be understood.
func holdIn(trailer metadata.MD) *holdfile.State {
	texts := trailer.Get(holdTrailer)
	if len(texts) != 1 || len(texts[0]) > maxHoldTrailer {
		return nil
	}
	state := &holdfile.State{}
	if err := json.Unmarshal([]byte(texts[0]), state); err != nil || state.Limit <= 0 {
		return nil
	}
	return state
}
