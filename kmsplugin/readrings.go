package kmsplugin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/hsm-kms/hsm-kms/envelope"
	"github.com/hsm-kms/hsm-kms/kmsplugin/health"
	"github.com/hsm-kms/hsm-kms/kmsplugin/problem"
)

// readRingTrailer is the gRPC trailer of Status in which the read rings are told, one value each: name, number of keys,
// how many are proven, "serving" or "retiring", and "ok" or the words of what is wrong, separated by blanks.
const readRingTrailer = "hsm-kms-read-ring"

func tellReadRings(ctx context.Context, readers []*health.Reader) {
	if len(readers) == 0 {
		return
	}
	trailer := metadata.MD{}
	for _, reader := range readers {
		trailer.Append(readRingTrailer, readRingValue(reader.Report()))
	}
	_ = grpc.SetTrailer(ctx, trailer) // fails only outside a gRPC call
}

func readRingValue(r health.ReadRing) string {
	use := "serving"
	if r.Retiring {
		use = "retiring"
	}
	return fmt.Sprintf("%s %d %d %s %s", r.Ring, r.Keys, r.Proven, use, problem.Of(r.Problem).Words)
}

// readRingsIn reads the trailer. What it does not understand, of a newer plugin perhaps, it leaves out.
func readRingsIn(trailer metadata.MD) []health.ReadRing {
	var rings []health.ReadRing
	for _, value := range trailer.Get(readRingTrailer) {
		if r, err := parseReadRing(value); err == nil {
			rings = append(rings, r)
		}
	}
	return rings
}

func parseReadRing(value string) (health.ReadRing, error) {
	fields := strings.SplitN(value, " ", 5)
	if len(fields) != 5 || !envelope.ValidRing(fields[0]) {
		return health.ReadRing{}, errors.New("a read ring has a name and 4 more fields")
	}
	r := health.ReadRing{Ring: fields[0], Retiring: fields[3] == "retiring"}
	var err, provenErr error
	r.Keys, err = strconv.Atoi(fields[1])
	r.Proven, provenErr = strconv.Atoi(fields[2])
	if fields[4] != "ok" {
		r.Problem = errors.New(fields[4])
	}
	return r, errors.Join(err, provenErr)
}

// ReadProblem is what is wrong with the read rings, each with its name; nil: nothing. It asks nobody and does not wait.
func (p *Plugin) ReadProblem() error {
	var errs []error
	for _, reader := range p.options.ReadRings {
		if r := reader.Report(); r.Problem != nil {
			errs = append(errs, fmt.Errorf("the read ring %s: %w", r.Ring, r.Problem))
		}
	}
	return errors.Join(errs...)
}
