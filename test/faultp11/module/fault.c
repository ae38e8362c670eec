/* fault.c: what happens before and after each forwarded call. */
#include "faultp11.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/*
 * Real calls hold it for reading; what a real module must not meet while calls are inside (C_Finalize, closing
 * all sessions) holds it for writing: SoftHSM, NSS and opencryptoki crash otherwise, and a crash would hide what
 * the test was about. C_Finalize under a call is counted instead (finalize_busy).
 */
static pthread_rwlock_t inside = PTHREAD_RWLOCK_INITIALIZER;

void real_lock(void) { pthread_rwlock_wrlock(&inside); }
void real_unlock(void) { pthread_rwlock_unlock(&inside); }
int calls_in_flight(void) { return (int)atomic_load(&module()->self->in_flight); }

void raise_to(word *value, uint64_t seen)
{
    uint64_t old = atomic_load(value);
    while (old < seen && !atomic_compare_exchange_weak(value, &old, seen))
        ;
}

/* Waits for a change of c->wake, or a moment: a lost wake-up must not become a hang of our own. */
static void wait_for_wake(struct control *c, uint64_t seen)
{
#if defined(__linux__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    struct timespec most = {.tv_nsec = 50 * 1000 * 1000};
    syscall(SYS_futex, (uint32_t *)&c->wake, FUTEX_WAIT, (uint32_t)seen, &most, NULL, 0);
#else
    (void)c;
    (void)seen;
    struct timespec moment = {.tv_nsec = 2 * 1000 * 1000};
    nanosleep(&moment, NULL);
#endif
}

/* Blocks while the slot's hang has the value it has now, if that value is meant for this side of the real call. */
static void hang(struct control *c, enum function fn, bool after)
{
    struct slot *s = &c->slots[fn];
    sword *hung = &module()->self->calls_hung[fn];
    uint64_t value = atomic_load(&s->hang);
    if (value == 0 || (value & 1) != (after ? 1 : 0))
        return;
    atomic_fetch_add(hung, 1);
    for (;;) {
        uint64_t wake = atomic_load(&c->wake);
        if (atomic_load(&s->hang) != value)
            break;
        wait_for_wake(c, wake);
    }
    atomic_fetch_sub(hung, 1);
}

/* Blocks while the fault that this call took is the one that the slot had last. */
static void hang_in_fault(struct control *c, const struct call *call, enum fault_mode mode)
{
    struct slot *s = &c->slots[call->fn];
    sword *hung = &module()->self->calls_hung[call->fn];
    if (!call->injected || call->mode != mode)
        return;
    atomic_fetch_add(hung, 1);
    for (;;) {
        uint64_t wake = atomic_load(&c->wake);
        if (atomic_load(&s->fault) >> 60 != mode)
            break;
        wait_for_wake(c, wake);
    }
    atomic_fetch_sub(hung, 1);
}

static void sleep_usec(uint64_t usec)
{
    struct timespec left = {.tv_sec = (time_t)(usec / 1000000), .tv_nsec = (long)(usec % 1000000) * 1000};
    while (usec > 0 && nanosleep(&left, &left) != 0)
        ;
}

/* Takes the fault that is set, if this call is its turn. */
static void take_fault(struct call *c, struct slot *s)
{
    uint64_t old = atomic_load(&s->fault), new;
    do {
        uint64_t times = old >> 32 & 0x3fff, skip = old >> 46 & 0x3fff;
        enum fault_mode mode = old >> 60;
        c->injected = false;
        if (times == 0 || (c->length_query && mode != FAULT_BEFORE))
            return;
        new = old;
        if (skip > 0) {
            new -= UINT64_C(1) << 46;
        } else {
            c->injected = true;
            c->mode = mode;
            c->code = (CK_RV)(old & 0xffffffff);
            if (times != TIMES_FOREVER)
                new -= UINT64_C(1) << 32;
        }
    } while (!atomic_compare_exchange_weak(&s->fault, &old, new));
    if (c->injected)
        atomic_fetch_add(&s->injected, 1);
}

/* Ends the process as a faulty library would. The compiler must not see what is wrong here. */
static void die(enum death how)
{
    switch (how) {
    case DEATH_SEGFAULT: {
        volatile int *volatile nowhere = NULL;
        *nowhere = 1;
        break;
    }
    case DEATH_ABORT:
        abort();
    case DEATH_EXIT:
        exit(3);
    case DEATH_HEAP_SMASH: {
        char *volatile block = malloc(24);
        memset(block - 16, 0xff, 64);
        free(block);
        abort(); /* an allocator that notices nothing */
    }
    }
}

static void close_sessions(CK_SESSION_HANDLE session, CK_SLOT_ID slot)
{
    (void)session;
    module()->real->C_CloseAllSessions(slot);
}

static void log_out(CK_SESSION_HANDLE session, CK_SLOT_ID slot)
{
    (void)slot;
    module()->real->C_Logout(session);
}

/* True for the one call that must obey a command given since the last time. */
static bool commanded(word *given, word *done)
{
    uint64_t want = atomic_load(given), have = atomic_load(done);
    return want != have && atomic_compare_exchange_strong(done, &have, want);
}

/* Does what drop_sessions and drop_login ask, with the real module's own means, so that its effects are real. */
static void obey(struct control *c)
{
    if (commanded(&c->drop_login, &c->drop_login_done)) {
        real_lock();
        sessions_each_slot(log_out);
        real_unlock();
    }
    if (commanded(&c->drop_sessions, &c->drop_sessions_done)) {
        real_lock();
        sessions_each_slot(close_sessions);
        sessions_remove_all();
        real_unlock();
    }
}

bool has_trait(enum trait trait) { return (atomic_load(&module()->control->traits) & trait) != 0; }

bool call_enter(struct call *c, enum function fn)
{
    struct control *ctl = module()->control;
    c->fn = fn;
    if (!module()->real)
        return false;
    struct slot *s = &ctl->slots[fn];
    struct process *self = module()->self;
    raise_to(&ctl->max_in_flight, (uint64_t)atomic_fetch_add(&self->in_flight, 1) + 1);
    raise_to(&s->max_in_flight, (uint64_t)atomic_fetch_add(&self->calls_in_flight[fn], 1) + 1);
    atomic_fetch_add(&s->calls, 1); /* last: one who waits for this count finds the call in flight */

    bool brackets = fn == FN_C_Initialize || fn == FN_C_Finalize; /* they take the lock for writing themselves */
    if (!brackets)
        obey(ctl);
    sleep_usec(atomic_load(&ctl->delay_all_usec) + atomic_load(&s->delay_usec));
    hang(ctl, fn, false);
    take_fault(c, s); /* after the hang, so that a test can still decide how a hung call ends */
    if (c->injected && c->mode == FAULT_DIE)
        die((enum death)c->code);
    if (c->injected && c->mode == FAULT_MISBEHAVE)
        misbehave((enum misbehaviour)c->code);
    if (c->injected && c->mode == FAULT_BEFORE)
        return false;
    if (c->injected && c->mode == FAULT_DELAY)
        sleep_usec(c->code);
    hang_in_fault(ctl, c, FAULT_HANG);
    if (!brackets) {
        pthread_rwlock_rdlock(&inside);
        c->real = true;
    }
    return true;
}

CK_RV call_leave(struct call *c)
{
    struct control *ctl = module()->control;
    if (!module()->real)
        return CKR_GENERAL_ERROR;
    struct process *self = module()->self;
    if (c->real)
        pthread_rwlock_unlock(&inside);
    hang(ctl, c->fn, true);
    hang_in_fault(ctl, c, FAULT_HANG_AFTER);
    if (c->injected && (c->mode == FAULT_BEFORE || c->mode == FAULT_AFTER))
        c->rv = c->code;
    atomic_fetch_sub(&self->calls_in_flight[c->fn], 1);
    atomic_fetch_sub(&self->in_flight, 1);
    return c->rv;
}

void call_tamper(const struct call *c, CK_BYTE_PTR out, CK_ULONG_PTR len)
{
    if (!c->injected || c->rv != CKR_OK || !out || !len || *len == 0)
        return;
    if (c->mode == FAULT_TRUNCATE)
        *len -= 1;
    else if (c->mode == FAULT_CORRUPT)
        out[0] ^= 1;
}
