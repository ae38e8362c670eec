package kmsplugin

import (
	"context"
	"encoding/json"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/kmsplugin/hold/holdfile"
)

// holdTrailer is the gRPC trailer of Status in which the outage hold is told, as JSON of holdfile.State.
const holdTrailer = "hsm-kms-hold-bin"

// maxHoldTold bounds the trailer in bytes: MaxMissing key_ids and some numbers.
const maxHoldTold = 16 << 10

// tellHold says what the hold has; nil: outageHold is off. kube-apiserver does not look at trailers.
func tellHold(ctx context.Context, state *holdfile.State) {
	if state == nil {
		return
	}
	if text, err := json.Marshal(state); err == nil { // it always is
		_ = grpc.SetTrailer(ctx, metadata.Pairs(holdTrailer, string(text))) // fails only outside a gRPC call
	}
}

// holdIn reads the trailer; nil: the plugin has no hold, or says nothing of it that can be understood.
func holdIn(trailer metadata.MD) *holdfile.State {
	told := trailer.Get(holdTrailer)
	if len(told) != 1 || len(told[0]) > maxHoldTold {
		return nil
	}
	state := &holdfile.State{}
	if err := json.Unmarshal([]byte(told[0]), state); err != nil || state.Limit <= 0 {
		return nil
	}
	return state
}
