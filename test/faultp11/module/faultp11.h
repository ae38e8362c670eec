/*
 * faultp11.h: what the files of the module share. The module stands in front of a real PKCS#11 module, forwards
 * every call, and does to it what the control block says. README.md has the whole.
 *
 *   control.c   finds and opens the control block and the real module
 *   fault.c     what happens before and after each forwarded call
 *   misbehave.c what a call does to its process in passing
 *   sessions.c  which sessions are open on which slot
 *   special.c   the functions that need more than forwarding
 *   iv.c        those of encryption, where the HSM makes the nonce
 *   forward.c   all others, and the function list
 */
#ifndef FAULTP11_H
#define FAULTP11_H

#include <stdbool.h>
#include <stddef.h>

/* What pkcs11.h asks its user to define, for Unix. */
#define CK_PTR *
#define NULL_PTR 0
#define CK_DEFINE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(*name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(*name)
#include "pkcs11.h"

#include "control.h"

/* One instance of the module: a file loaded once into one process. */
struct module {
    struct control *control;
    struct process *self;      /* this process's entry in control */
    CK_FUNCTION_LIST_PTR real; /* NULL: setting up failed, and every call says CKR_GENERAL_ERROR */
    char *softhsm2_conf;       /* SOFTHSM2_CONF for the real C_Initialize; NULL: leave the environment alone */
    char *pin_pad;             /* file with the PIN that is entered at the pad; NULL: none */
};

/* The instance, set up at the first use. Never NULL; safe from any thread. */
const struct module *module(void);

/* A line on standard error, prefixed with the name of this module. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One forwarded call, from entry to return. */
struct call {
    enum function fn;
    bool length_query; /* set before call_enter: no output buffer was given, so that there is nothing to tamper with */
    bool injected;     /* a fault was taken; mode and code say which */
    bool real;         /* the real module is being called: call_leave gives it free again */
    enum fault_mode mode;
    CK_RV code;
    CK_RV rv; /* the real module's answer */
};

/*
 * call_enter counts the call, obeys commands, waits, and takes a fault. True: make the real call through
 * module()->real, put its answer into c->rv, then call call_leave; false: only call_leave. No C_Finalize and no
 * dropping of sessions reaches the real module between the two, because real modules crash on that.
 */
bool call_enter(struct call *c, enum function fn);

/* call_leave finishes the call and gives what to return. */
CK_RV call_leave(struct call *c);

/* call_tamper does FAULT_TRUNCATE and FAULT_CORRUPT to an output of *len bytes. */
void call_tamper(const struct call *c, CK_BYTE_PTR out, CK_ULONG_PTR len);

/* Does what a faulty library does to its process. */
void misbehave(enum misbehaviour how);

/* Whether the library has this trait now. */
bool has_trait(enum trait trait);

/* Keep other calls out of the real module, for C_Initialize, C_Finalize and the commands. */
void real_lock(void);
void real_unlock(void);

/* Calls of this process in flight, the caller's own included. */
int calls_in_flight(void);

/* Sessions that all living processes have open together: what a token's own limit would count. */
int64_t sessions_of_all(void);

/* value = max(value, seen), atomically. */
void raise_to(word *value, uint64_t seen);

/* The table of open sessions. All are safe from any thread. */
bool sessions_reserve(void);                                  /* room for one more under max_sessions? counts it */
void sessions_unreserve(void);                                /* it was not opened after all */
void sessions_add(CK_SESSION_HANDLE session, CK_SLOT_ID slot); /* it was: a reserved one gets its name */
void sessions_remove(CK_SESSION_HANDLE session);
void sessions_remove_slot(CK_SLOT_ID slot);
void sessions_remove_all(void);
/* Calls each(one session, its slot) once per slot that has sessions; each must not call back here. */
void sessions_each_slot(void (*each)(CK_SESSION_HANDLE, CK_SLOT_ID));

/* The functions of special.c and iv.c. */
CK_DECLARE_FUNCTION(CK_RV, fault_C_Initialize)(CK_VOID_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_Finalize)(CK_VOID_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_GetSlotList)(CK_BBOOL, CK_SLOT_ID_PTR, CK_ULONG_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_GetSlotInfo)(CK_SLOT_ID, CK_SLOT_INFO_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_GetTokenInfo)(CK_SLOT_ID, CK_TOKEN_INFO_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_OpenSession)(CK_SLOT_ID, CK_FLAGS, CK_VOID_PTR, CK_NOTIFY, CK_SESSION_HANDLE_PTR);
CK_DECLARE_FUNCTION(CK_RV, fault_C_CloseSession)(CK_SESSION_HANDLE);
CK_DECLARE_FUNCTION(CK_RV, fault_C_CloseAllSessions)(CK_SLOT_ID);
CK_DECLARE_FUNCTION(CK_RV, fault_C_Login)(CK_SESSION_HANDLE, CK_USER_TYPE, CK_UTF8CHAR_PTR, CK_ULONG);
CK_DECLARE_FUNCTION(CK_RV, fault_C_EncryptInit)(CK_SESSION_HANDLE, CK_MECHANISM_PTR, CK_OBJECT_HANDLE);
CK_DECLARE_FUNCTION(CK_RV, fault_C_Encrypt)(CK_SESSION_HANDLE, CK_BYTE_PTR, CK_ULONG, CK_BYTE_PTR, CK_ULONG_PTR);

/* The functions of keys.c. */
CK_DECLARE_FUNCTION(CK_RV, fault_C_FindObjects)(CK_SESSION_HANDLE, CK_OBJECT_HANDLE_PTR, CK_ULONG, CK_ULONG_PTR);
bool is_bad_key(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key); /* use of it fails with bad_key_code */
CK_DECLARE_FUNCTION(CK_RV, fault_C_DecryptInit)(CK_SESSION_HANDLE, CK_MECHANISM_PTR, CK_OBJECT_HANDLE);
CK_DECLARE_FUNCTION(CK_RV, fault_C_SignInit)(CK_SESSION_HANDLE, CK_MECHANISM_PTR, CK_OBJECT_HANDLE);

#endif
