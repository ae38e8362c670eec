#include "process.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

void die_by_signals(void)
{
	const int all[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGTRAP, SIGSYS };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		signal(all[i], SIG_DFL);
}

static int is_ignored(int number)
{
	return number == SIGTERM || number == SIGINT || number == SIGHUP || number == SIGPIPE;
}

void tame_signals(void)
{
	for (int number = 1; number < NSIG; number++) {
		struct sigaction action;
		if (sigaction(number, NULL, &action) != 0)
			continue; // the C library's own
		if (action.sa_handler == SIG_IGN)
			continue;
		if (is_ignored(number))
			signal(number, SIG_IGN);
		else if (action.sa_handler != SIG_DFL && !(action.sa_flags & SA_ONSTACK)) {
			action.sa_flags |= SA_ONSTACK;
			sigaction(number, &action, NULL);
		}
	}
}

struct end {
	int fd, limit_ms;
};

static struct end end; // of the one thread

static void *end_process(void *unused)
{
	struct pollfd watched = { .fd = end.fd, .events = 0 }; // POLLHUP comes unasked
	while (poll(&watched, 1, -1) < 0 && errno == EINTR)
		;
	struct timespec left = { end.limit_ms / 1000, (long)(end.limit_ms % 1000) * 1000000 };
	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
	kill(-getpid(), SIGKILL); // and what the library has forked
	_exit(1);
	return unused;
}

int end_with(int fd, int limit_ms)
{
	sigset_t all, before;
	pthread_t thread;
	end.fd = fd;
	end.limit_ms = limit_ms;
	sigfillset(&all);
	int failed = pthread_sigmask(SIG_SETMASK, &all, &before); // the thread runs no handler of a module
	if (failed == 0) {
		failed = pthread_create(&thread, NULL, end_process, NULL);
		pthread_sigmask(SIG_SETMASK, &before, NULL);
	}
	if (failed == 0)
		pthread_detach(thread);
	return failed;
}
