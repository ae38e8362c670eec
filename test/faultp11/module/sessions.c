/* sessions.c keeps which sessions are open on which slot, to count them and to know what to drop. */
#include "faultp11.h"

#include <pthread.h>
#include <stdlib.h>

struct session {
    CK_SESSION_HANDLE handle;
    CK_SLOT_ID slot;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct session *table;
static size_t used, room;

bool sessions_reserve(void)
{
    uint64_t most = atomic_load(&module()->control->max_sessions);
    bool room_left;
    pthread_mutex_lock(&mutex); /* two of one process: two processes may go beyond the limit together, by one */
    room_left = most == 0 || sessions_of_all() < (int64_t)most;
    if (room_left)
        atomic_fetch_add(&module()->self->open_sessions, 1);
    pthread_mutex_unlock(&mutex);
    return room_left;
}

void sessions_unreserve(void) { atomic_fetch_sub(&module()->self->open_sessions, 1); }

void sessions_add(CK_SESSION_HANDLE session, CK_SLOT_ID slot)
{
    struct control *c = module()->control;
    pthread_mutex_lock(&mutex);
    if (used == room) {
        room = room ? 2 * room : 64;
        table = realloc(table, room * sizeof *table);
        if (!table)
            abort();
    }
    table[used++] = (struct session){session, slot};
    raise_to(&c->max_open_sessions, (uint64_t)used); /* not open_sessions: it has reservations in it */
    pthread_mutex_unlock(&mutex);
}

/* Keeps those at which keep(entry, which) says so, and counts the others as closed. */
static void sift(bool (*keep)(const struct session *, CK_ULONG), CK_ULONG which)
{
    size_t kept = 0;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < used; i++)
        if (keep(&table[i], which))
            table[kept++] = table[i];
    atomic_fetch_sub(&module()->self->open_sessions, (int64_t)(used - kept));
    used = kept;
    pthread_mutex_unlock(&mutex);
}

static bool on_another_slot(const struct session *s, CK_ULONG slot) { return s->slot != slot; }
static bool never(const struct session *s, CK_ULONG unused)
{
    (void)s;
    (void)unused;
    return false;
}

void sessions_remove_slot(CK_SLOT_ID slot) { sift(on_another_slot, slot); }
void sessions_remove_all(void) { sift(never, 0); }

/* Removes one entry at most: the real module may have given the number away again already. */
void sessions_remove(CK_SESSION_HANDLE session)
{
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < used; i++) {
        if (table[i].handle != session)
            continue;
        table[i] = table[--used];
        atomic_fetch_sub(&module()->self->open_sessions, 1);
        break;
    }
    pthread_mutex_unlock(&mutex);
}

void sessions_each_slot(void (*each)(CK_SESSION_HANDLE, CK_SLOT_ID))
{
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < used; i++) {
        size_t first = 0;
        while (table[first].slot != table[i].slot)
            first++;
        if (first == i)
            each(table[i].handle, table[i].slot);
    }
    pthread_mutex_unlock(&mutex);
}
