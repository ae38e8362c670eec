// Linux wakes a thread that sleeps within its timer slack, which it has from the thread that made it (prctl(2),
// PR_SET_TIMERSLACK). serve has half a millisecond of it, for sysmon: that thread of the Go runtime watches the others, and
// sleeps for 20 microseconds at a time while anything goes on. With the usual slack it takes a tenth of the processor time.
//
// The runtime makes that thread before any Go code of ours runs, so this is a constructor, and goes by the program's first
// argument. A worker, which inherits the slack from serve, gets the usual one again: the timers of a library are not ours to
// change. Other commands keep what they have.
#include <string.h>

#if defined(__linux__) && defined(__GLIBC__) // glibc alone hands the arguments of main to constructors

#include <sys/prctl.h>

enum { SLACK_OF_SERVE = 500000, USUAL_SLACK = 50000 }; // nanoseconds

__attribute__((constructor)) static void set_timer_slack(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "serve") == 0)
		prctl(PR_SET_TIMERSLACK, (unsigned long)SLACK_OF_SERVE, 0, 0, 0);
	else if (argc > 1 && strcmp(argv[1], "worker") == 0)
		prctl(PR_SET_TIMERSLACK, (unsigned long)USUAL_SLACK, 0, 0, 0);
}

#endif
