package softhsm

import (
	"fmt"
	"os"
	"os/exec"
)

// places are where packages put the module: Debian (and its multi-arch folders), Fedora, Alpine, Homebrew, a build
// from source. The same list is in test/tools/need.sh.
var places = [...]string{
	"/usr/lib/softhsm/libsofthsm2.so",
	"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/lib64/softhsm/libsofthsm2.so",
	"/usr/lib/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
	"/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

// Module finds SoftHSM's PKCS#11 module: $SOFTHSM2_MODULE or where the packages put it.
func Module() (string, error) {
	if _, err := exec.LookPath("softhsm2-util"); err != nil {
		return "", fmt.Errorf("looking for SoftHSM: %w (run test/tools/need.sh, which installs it)", err)
	}
	if path := os.Getenv("SOFTHSM2_MODULE"); path != "" {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("using SOFTHSM2_MODULE: %w", err)
		}
		return path, nil
	}
	for _, path := range places {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("looking for SoftHSM: no libsofthsm2.so in any of %q (run test/tools/need.sh or set SOFTHSM2_MODULE)", places)
}
