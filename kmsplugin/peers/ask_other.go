//go:build !linux && !darwin

package peers

import "errors"

// ask refuses: a system whose peer credentials we do not know how to read has none to admit.
func ask(int) (Peer, []uint32, error) {
	return Peer{}, nil, errors.New("peer credentials are known on Linux and macOS only")
}

func executable(int) string { return "" }
