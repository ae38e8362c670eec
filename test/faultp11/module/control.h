/*
 * control.h: the control block, a file of fixed layout that the module and the tests map at the same time.
 *
 * Every field is one 64-bit word, read and written atomically by both sides, in native byte order. control.go
 * has the same structure: change both, and CONTROL_VERSION, together.
 */
#ifndef FAULTP11_CONTROL_H
#define FAULTP11_CONTROL_H

#include <stdatomic.h>
#include <stdint.h>

#define CONTROL_MAGIC UINT64_C(0x6661756c74703131) /* "faultp11" */
#define CONTROL_VERSION UINT64_C(5)

typedef _Atomic uint64_t word;
typedef _Atomic int64_t sword;

/* The number of each function: its line in functions.def. */
enum function {
#define F(name, ...) FN_##name,
#define O(name, ...) FN_##name,
#define S(name) FN_##name,
#include "functions.def"
#undef F
#undef O
#undef S
    FN_COUNT
};

/*
 * A fault is one word, so that a call always takes a whole fault, never half of the old one and half of the new:
 *
 *   bits  0..31  the CK_RV to return; FAULT_DELAY: microseconds
 *   bits 32..45  times left: 0 off, TIMES_FOREVER until told otherwise
 *   bits 46..59  calls to let pass first
 *   bits 60..63  enum fault_mode
 */
enum fault_mode {
    FAULT_BEFORE = 0,   /* the real call is not made */
    FAULT_AFTER = 1,    /* the real call is made, then the code is returned: done but reported as failed */
    FAULT_TRUNCATE = 2, /* the real call's output loses its last byte */
    FAULT_CORRUPT = 3,  /* one bit of the first byte of the real call's output is flipped */
    FAULT_DELAY = 4,    /* the real call is made later */
    FAULT_HANG = 5,     /* the call blocks before the real call until the slot has another fault, or none */
    FAULT_HANG_AFTER = 6,
    FAULT_DIE = 7,      /* the process ends, as enum death says; the real call is not made */
    FAULT_MISBEHAVE = 8, /* the real call is made, after what enum misbehaviour says */
};
enum death {
    DEATH_SEGFAULT = 0,
    DEATH_ABORT = 1,
    DEATH_EXIT = 2,       /* exit(3), with the exit handlers */
    DEATH_HEAP_SMASH = 3, /* free finds the heap overwritten */
};
enum misbehaviour {
    FLOOD_STDOUT = 0,           /* 16 MiB in lines of 64 bytes */
    FLOOD_STDERR = 1,
    TAKE_SIGNALS = 2,           /* handlers of its own for SIGTERM, SIGSEGV, SIGPIPE, SIGCHLD, SIGPROF, SIGURG */
    TAKE_SIGNALS_OFF_STACK = 3, /* the same without SA_ONSTACK */
    FORK_HELPER = 4,            /* a child that keeps every descriptor */
    FORK_DAEMON = 5,            /* the same, in a session of its own, which its parent does not end with its group */
    HANG_IN_HANDLERS = 6,       /* handlers for the same signals that never return */
};
#define TIMES_FOREVER UINT64_C(0x3fff)

enum trait {
    TRAIT_SLOT_INFO_FIRST = 1, /* C_GetTokenInfo fails until C_GetSlotList was asked for a length, and then C_GetSlotInfo for the slot */
    TRAIT_ONE_THREAD = 2,      /* C_Initialize with CKF_OS_LOCKING_OK is CKR_CANT_LOCK */
    TRAIT_STRLEN = 4,          /* C_Login reads the PIN up to a zero byte, whatever its length is said to be */
    TRAIT_PIN_PAD = 8,         /* C_Login takes no PIN: the token asks for it, and is given the one in the sidecar's pinpad= file */
    TRAIT_FROZEN = 16,         /* the library shows no key that is made after it has shown some; a new process does */
    TRAIT_READ_WRITE_ONLY = 32, /* C_OpenSession without CKF_RW_SESSION is CKR_FUNCTION_FAILED */
};

/* Who makes the nonce of an AES-GCM encryption, and where it then is. */
enum iv_mode {
    IV_OF_CALLER = 0,
    IV_WRITTEN_BACK = 1, /* the module: 12 bytes, written to the caller's, which must be zero */
    IV_APPENDED = 2,     /* the module: 16 bytes, after the tag */
};

/* What the module's nonces are. */
enum iv_source {
    IV_RANDOM = 0,
    IV_ZERO = 1,
    IV_CONSTANT = 2,
    IV_COUNTER = 3,
    IV_RESERVED = 4, /* begins with the nonce of the fingerprint */
};

/* One function: what to do with its calls, and what was seen. */
struct slot {
    word fault;         /* see above */
    word delay_usec;    /* sleep this long before the real call */
    word hang;          /* 0 off; else a value never used before, whose lowest bit says: after the real call */
    word calls;         /* entered, faulty or not */
    word max_in_flight; /* the most of them in flight at once, in one process */
    word injected;      /* calls to which a fault was done */
};

/*
 * What one process has open and in flight. A process that was killed leaves its entry behind: readers pass over it,
 * and the next process that finds no free one takes it.
 */
struct process {
    word pid;                     /* 0: free */
    sword open_sessions;          /* opened minus closed, on the real module */
    sword in_flight;              /* calls entered and not yet returned */
    sword calls_in_flight[FN_COUNT];
    sword calls_hung[FN_COUNT];   /* those that wait in a hang now */
};
#define MAX_PROCESSES 64

struct control {
    word magic, version, size;

    /* What to do. */
    word delay_all_usec; /* as delay_usec, for every function, added to it */
    word max_sessions;   /* C_OpenSession beyond this many says CKR_SESSION_COUNT; 0: no limit */
    word token_flags;    /* OR-ed into CK_TOKEN_INFO.flags */
    word hide_slots;     /* not 0: C_GetSlotList finds none */
    word traits;         /* TRAIT_..., what the library demands of its caller */
    word bad_key;        /* use of the key with this name fails with bad_key_code; 0: of none */
    word bad_key_code;
    word drop_sessions;  /* each increment: C_CloseAllSessions on the real module, once, at the next call */
    word drop_login;     /* each increment: C_Logout on the real module, once, at the next call */
    word hang_serial;    /* source of the values of hang */
    word wake;           /* incremented, and its lower half's futex woken, when a hang may have ended */
    word iv_mode;        /* enum iv_mode */
    word iv_source;      /* enum iv_source << 32 | times left, TIMES_FOREVER until told otherwise; after those: random */
    word iv_counter;     /* the last nonce of IV_COUNTER */

    /* What was seen. */
    word drop_sessions_done; /* the drop_sessions that was obeyed last */
    word drop_login_done;    /* the drop_login that was obeyed last */
    word max_open_sessions;  /* the most sessions open at once, in one process */
    word logins;             /* C_Login that the real module accepted */
    word finalize_busy;      /* C_Finalize while another call of the same process was in flight */
    word max_in_flight;      /* over all functions, in one process */
    word helper;             /* the process that FORK_HELPER or FORK_DAEMON made last */

    struct slot slots[FN_COUNT];
    struct process processes[MAX_PROCESSES];
};

_Static_assert(FN_COUNT == 68, "PKCS#11 v2.40 has 68 functions");
_Static_assert(sizeof(struct control) == 8 * (24 + 6 * FN_COUNT + MAX_PROCESSES * (3 + 2 * FN_COUNT)), "words only, no padding");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock would not be shared between processes");

#endif
