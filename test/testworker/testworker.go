// Package testworker makes a test binary the worker of the tokens that its own tests use, and has a data race in a worker fail
// the tests: the race detector's report would otherwise be a line of the module's output in some log. It depends on
// hsm/worker. To import it is enough to be a worker; what a worker reports needs
//
//	func TestMain(m *testing.M) { os.Exit(testworker.Run(m)) }
//
// A worker begins when this package is initialised, and not in TestMain: the packages that only the tests need take longer
// to be initialised than a worker takes to start.
package testworker

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// Reports is the environment variable with the folder for the reports of workers (race.c). The name is one that every worker
// gets. A test that gives a process an environment of its own passes it on.
const Reports = "PKCS11_TEST_RACES"

func init() {
	if worker.Asked(os.Args) {
		fmt.Fprintln(os.Stderr, worker.Main())
		os.Exit(2)
	}
}

// Plain builds a worker without the race detector in dir, for tests that start hundreds of them: with the detector a process takes
// 20 ms of processor time to begin, without it 3. They use it in a short run only, where the tests of hsm/worker still have
// the detector in the workers; other runs have it everywhere.
func Plain(dir string) (path string, err error) {
	path = filepath.Join(dir, "worker")
	out, err := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "github.com/hsm-kms/hsm-kms/test/testworker/plain").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building a worker without the race detector: %w: %s", err, out)
	}
	return path, nil
}

// MoreAtOnce has twice as many tests run at once as there are processors, unless the command line says how many: for tests
// that mostly wait. TestMain calls it before Run.
func MoreAtOnce() {
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if parallel.Value.String() != parallel.DefValue {
		return
	}
	if err := parallel.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
		panic(err)
	}
}

// Run runs the tests and returns the exit code of the test binary: that of the tests, or 66, the race detector's, if a worker
// has had a data race.
func Run(m interface{ Run() int }) int {
	if !RaceEnabled || os.Getenv(Reports) != "" { // another process reads them
		return m.Run()
	}
	folder, err := os.MkdirTemp("", "races-")
	if err == nil {
		err = os.Setenv(Reports, folder)
	}
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)
	code := m.Run()
	reports, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil {
		panic(err)
	}
	for _, path := range reports {
		text, _ := os.ReadFile(path)
		fmt.Fprintf(os.Stderr, "a worker had a data race:\n%s\n", text)
		code = 66
	}
	return code
}
