package plugin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hsm-kms/hsm-kms/test/tools/kubebin"
)

// Programs are what the end-to-end tests run.
type Programs struct {
	HSMKMS string
	Kube   kubebin.Set
}

// FindPrograms finds or builds them, once for all tests of a process.
func FindPrograms() (Programs, error) { return findPrograms() }

var findPrograms = sync.OnceValues(func() (Programs, error) {
	set, err := kubebin.Find(context.Background(), os.Stderr)
	if err != nil {
		return Programs{}, err
	}
	bin, err := findProgram()
	return Programs{bin, set}, err
})

// FindProgram takes the hsm-kms of HSM_KMS_BIN, as `make e2e` has built it, or builds one, once for all tests of a process.
func FindProgram() (string, error) { return findProgram() }

var findProgram = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("HSM_KMS_BIN"); bin != "" {
		return bin, nil
	}
	gomod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("placing the program: %w", err)
	}
	bin := filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), "bin", "hsm-kms")
	if out, err := exec.Command("go", "build", "-o", bin, "github.com/hsm-kms/hsm-kms/cmd/hsm-kms").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building hsm-kms: %w: %s", err, out)
	}
	return bin, nil
})
