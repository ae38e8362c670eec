//go:build race

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The race detector reads its options from the environment with which a process was started, and a worker does not get those
// of the program. So a worker is started again with them, before the Go runtime begins: that takes a millisecond.
__attribute__((constructor)) static void report_to_folder(int argc, char **argv, char **envp) {
	const char *folder = getenv("PKCS11_TEST_RACES");
	char options[4096];
	int n;

	if (argc < 2 || strcmp(argv[1], "worker") != 0 || folder == NULL || getenv("GORACE") != NULL)
		return;
	n = snprintf(options, sizeof options, "atexit_sleep_ms=0 log_path=%s/race", folder);
	if (n < 0 || (size_t)n >= sizeof options || setenv("GORACE", options, 1) != 0) {
		fprintf(stderr, "the folder for race reports has a name that is too long\n");
		_exit(2);
	}
	(void)envp;
	execv("/proc/self/exe", argv);
	perror("starting a worker again");
	_exit(2);
}
