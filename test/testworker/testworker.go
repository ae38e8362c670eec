// Package testworker makes a test binary the worker of the tokens that its own tests use, and has a data race in a worker fail
// the tests: the race detector's report would otherwise be a line of the module's output in some log. Only that belongs here.
//
//	func TestMain(m *testing.M) {
//		testworker.Main()
//		os.Exit(testworker.Run(m))
//	}
package testworker

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hsm-kms/hsm-kms/hsm/worker"
)

// Reports is the environment variable with the folder for the reports of workers. The name is one that every worker gets. A
// test that gives a process an environment of its own passes it on.
const Reports = "PKCS11_TEST_RACES"

// Main is a worker, and does not return, if this process was started as one.
func Main() {
	if !worker.Asked(os.Args) {
		return
	}
	if err := reportTo(os.Getenv(Reports)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, worker.Main())
	os.Exit(2)
}

// reportTo has the race detector write its reports to files in the folder. It reads its options when a process starts, and
// a worker does not get those of the program: so the process is started again in its place.
func reportTo(folder string) error {
	if !raceEnabled || folder == "" || os.Getenv("GORACE") != "" {
		return nil
	}
	options := "GORACE=atexit_sleep_ms=0 log_path=" + filepath.Join(folder, "race")
	return fmt.Errorf("starting a worker again: %w", syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), options)))
}

// Run runs the tests and returns the exit code of the test binary: that of the tests, or 66, the race detector's, if a worker
// has had a data race.
func Run(m interface{ Run() int }) int {
	if !raceEnabled || os.Getenv(Reports) != "" { // another process reads them
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
