/* special.c: the functions that need more than forwarding. */
#include "faultp11.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/*
 * SoftHSM reads SOFTHSM2_CONF in C_Initialize, and the environment is the whole process's: a lock on the folder
 * for temporary files (it exists, and nothing is left behind) keeps other instances out meanwhile. Another lock
 * of ours would be per instance, for each has its own variables.
 */
static CK_RV initialize_with_conf(CK_VOID_PTR args, const char *conf)
{
    const char *folder = getenv("TMPDIR");
    int lock = open(folder && *folder ? folder : "/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) != 0) {
        complain("locking the folder for temporary files, to set SOFTHSM2_CONF: look at TMPDIR");
        if (lock >= 0)
            close(lock);
        return CKR_GENERAL_ERROR;
    }
    const char *now = getenv("SOFTHSM2_CONF");
    char *before = now ? strdup(now) : NULL;
    setenv("SOFTHSM2_CONF", conf, 1);
    CK_RV rv = module()->real->C_Initialize(args);
    if (before)
        setenv("SOFTHSM2_CONF", before, 1);
    else
        unsetenv("SOFTHSM2_CONF");
    free(before);
    close(lock);
    return rv;
}

/* The slots that C_GetSlotInfo was asked for since C_Initialize, for TRAIT_SLOT_INFO_FIRST. */
static _Atomic bool length_asked, slot_asked[64];

CK_RV fault_C_Initialize(CK_VOID_PTR args)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_Initialize)) {
        atomic_store(&length_asked, false);
        for (size_t i = 0; i < sizeof slot_asked / sizeof *slot_asked; i++)
            atomic_store(&slot_asked[i], false);
        if (has_trait(TRAIT_ONE_THREAD) && args && (((CK_C_INITIALIZE_ARGS_PTR)args)->flags & CKF_OS_LOCKING_OK)) {
            c.rv = CKR_CANT_LOCK;
            return call_leave(&c);
        }
        real_lock();
        const char *conf = module()->softhsm2_conf;
        c.rv = conf ? initialize_with_conf(args, conf) : module()->real->C_Initialize(args);
        real_unlock();
    }
    return call_leave(&c);
}

CK_RV fault_C_Finalize(CK_VOID_PTR reserved)
{
    struct call c = {0};
    bool go = call_enter(&c, FN_C_Finalize);
    int others = calls_in_flight() - 1;
    if (module()->real && others > 0) {
        atomic_fetch_add(&module()->control->finalize_busy, 1);
        complain("C_Finalize while %d other calls are in flight: a real module may crash here", others);
    }
    if (go) {
        real_lock();
        c.rv = module()->real->C_Finalize(reserved);
        if (c.rv == CKR_OK)
            sessions_remove_all();
        real_unlock();
    }
    return call_leave(&c);
}

CK_RV fault_C_GetSlotList(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_GetSlotList)) {
        if (!list)
            atomic_store(&length_asked, true);
        bool hide = atomic_load(&module()->control->hide_slots) != 0;
        c.rv = module()->real->C_GetSlotList(present, hide ? NULL : list, count);
        if (c.rv == CKR_OK && hide)
            *count = 0;
    }
    return call_leave(&c);
}

/* SoftHSM numbers slots by their serial numbers, so they go by a hash here. */
static _Atomic bool *asked(CK_SLOT_ID slot) { return &slot_asked[slot % (sizeof slot_asked / sizeof *slot_asked)]; }

CK_RV fault_C_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO_PTR info)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_GetSlotInfo)) {
        c.rv = module()->real->C_GetSlotInfo(slot, info);
        if (c.rv == CKR_OK && atomic_load(&length_asked))
            atomic_store(asked(slot), true);
    }
    return call_leave(&c);
}

CK_RV fault_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_GetTokenInfo)) {
        if (has_trait(TRAIT_SLOT_INFO_FIRST) && !atomic_load(asked(slot)))
            c.rv = CKR_TOKEN_NOT_PRESENT;
        else
            c.rv = module()->real->C_GetTokenInfo(slot, info);
        if (c.rv == CKR_OK) {
            info->flags |= (CK_FLAGS)atomic_load(&module()->control->token_flags);
            if (has_trait(TRAIT_PIN_PAD))
                info->flags |= CKF_PROTECTED_AUTHENTICATION_PATH;
        }
    }
    return call_leave(&c);
}

CK_RV fault_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify,
                          CK_SESSION_HANDLE_PTR session)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_OpenSession)) {
        if (has_trait(TRAIT_READ_WRITE_ONLY) && !(flags & CKF_RW_SESSION)) {
            c.rv = CKR_FUNCTION_FAILED;
        } else if (!sessions_reserve()) {
            c.rv = CKR_SESSION_COUNT;
        } else if ((c.rv = module()->real->C_OpenSession(slot, flags, app, notify, session)) == CKR_OK) {
            sessions_add(*session, slot);
        } else {
            sessions_unreserve();
        }
    }
    return call_leave(&c);
}

CK_RV fault_C_CloseSession(CK_SESSION_HANDLE session)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_CloseSession)) {
        c.rv = module()->real->C_CloseSession(session);
        if (c.rv == CKR_OK)
            sessions_remove(session);
    }
    return call_leave(&c);
}

CK_RV fault_C_CloseAllSessions(CK_SLOT_ID slot)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_CloseAllSessions)) {
        c.rv = module()->real->C_CloseAllSessions(slot);
        if (c.rv == CKR_OK)
            sessions_remove_slot(slot);
    }
    return call_leave(&c);
}

/* A person at the pad enters the PIN that is in the file. */
static CK_RV login_at_pad(CK_SESSION_HANDLE session, CK_USER_TYPE user)
{
    char pin[257] = {0};
    FILE *f = module()->pin_pad ? fopen(module()->pin_pad, "re") : NULL;
    if (!f || !fgets(pin, sizeof pin, f))
        complain("a token with a PIN pad needs pinpad= in the sidecar file");
    if (f)
        fclose(f);
    pin[strcspn(pin, "\r\n")] = '\0';
    return module()->real->C_Login(session, user, (CK_UTF8CHAR_PTR)pin, strlen(pin));
}

CK_RV fault_C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG len)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_Login)) {
        if (has_trait(TRAIT_PIN_PAD) && pin)
            c.rv = CKR_ARGUMENTS_BAD;
        else if (has_trait(TRAIT_PIN_PAD))
            c.rv = login_at_pad(session, user);
        else
            c.rv = module()->real->C_Login(session, user, pin, has_trait(TRAIT_STRLEN) ? strlen((char *)pin) : len);
        if (c.rv == CKR_OK)
            atomic_fetch_add(&module()->control->logins, 1);
    }
    return call_leave(&c);
}
