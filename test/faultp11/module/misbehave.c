/* misbehave.c: what a call does to its process in passing. */
#include "faultp11.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void flood(int fd)
{
    char line[64];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (size_t i = 0; i < 16 * 1024 * 1024 / sizeof line; i++)
        if (write(fd, line, sizeof line) < 0)
            return;
}

static struct sigaction before[NSIG];

/* Hands the signal on to the handler that was there before, as crash reporters do. */
static void handle(int signal, siginfo_t *info, void *context)
{
    const struct sigaction *old = &before[signal];
    if ((old->sa_flags & SA_SIGINFO) && old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN)
        old->sa_sigaction(signal, info, context);
}

static void hang(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)info;
    (void)context;
    for (;;)
        pause();
}

static void take_signals(void (*handler)(int, siginfo_t *, void *), int flags)
{
    static const int all[] = {SIGTERM, SIGSEGV, SIGPIPE, SIGCHLD, SIGPROF, SIGURG};
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | flags};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        sigaction(all[i], NULL, &before[all[i]]);
        sigaction(all[i], &action, NULL);
    }
}

/* The child waits for its end, with every descriptor that the process has. */
static void fork_helper(bool daemon)
{
    pid_t child = fork();
    if (child == 0) {
        if (daemon)
            setsid();
        for (;;)
            pause();
    }
    if (child > 0)
        atomic_store(&module()->control->helper, (uint64_t)child);
}

void misbehave(enum misbehaviour how)
{
    switch (how) {
    case FLOOD_STDOUT:
        return flood(STDOUT_FILENO);
    case FLOOD_STDERR:
        return flood(STDERR_FILENO);
    case TAKE_SIGNALS:
        return take_signals(handle, SA_ONSTACK);
    case TAKE_SIGNALS_OFF_STACK:
        return take_signals(handle, 0);
    case FORK_HELPER:
        return fork_helper(false);
    case FORK_DAEMON:
        return fork_helper(true);
    case HANG_IN_HANDLERS:
        return take_signals(hang, SA_ONSTACK);
    }
}
