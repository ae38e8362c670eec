package proc

import (
	"fmt"
	"net"
)

// FreeAddress finds an address on loopback that nobody listens on. Another process may take it before the child that it is for.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("looking for a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
