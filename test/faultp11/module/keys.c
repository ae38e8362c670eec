/* keys.c: a token that cannot use one of its keys, and a library that reads its keys once. */
#include "faultp11.h"

#include <pthread.h>

/* FNV-1a over the object's CKA_ID: what Control.BadKey names it by. */
static uint64_t name_of(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)
{
    CK_BYTE id[256];
    CK_ATTRIBUTE attribute = {CKA_ID, id, sizeof id};
    uint64_t name = UINT64_C(14695981039346656037);
    if (module()->real->C_GetAttributeValue(session, object, &attribute, 1) != CKR_OK || attribute.ulValueLen > sizeof id)
        return 0;
    for (CK_ULONG i = 0; i < attribute.ulValueLen; i++)
        name = (name ^ id[i]) * UINT64_C(1099511628211);
    return name;
}

bool is_bad_key(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key)
{
    uint64_t bad = atomic_load(&module()->control->bad_key);
    return bad != 0 && name_of(session, key) == bad;
}

#define KEYED(name)                                                                                                    \
    CK_RV fault_##name(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)                    \
    {                                                                                                                  \
        struct call c = {0};                                                                                           \
        if (call_enter(&c, FN_##name))                                                                                 \
            c.rv = is_bad_key(session, key) ? (CK_RV)atomic_load(&module()->control->bad_key_code)                         \
                                        : module()->real->name(session, mechanism, key);                               \
        return call_leave(&c);                                                                                         \
    }
KEYED(C_DecryptInit)
KEYED(C_SignInit)

/*
 * TRAIT_FROZEN: what a search of this process may find ends with the highest handle of the first search that found
 * something, because SoftHSM numbers objects as it shows them.
 */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static CK_OBJECT_HANDLE highest;

static void freeze(CK_OBJECT_HANDLE_PTR found, CK_ULONG_PTR count)
{
    pthread_mutex_lock(&mutex);
    if (highest == 0)
        for (CK_ULONG i = 0; i < *count; i++)
            highest = found[i] > highest ? found[i] : highest;
    CK_ULONG kept = 0;
    for (CK_ULONG i = 0; i < *count; i++)
        if (found[i] <= highest)
            found[kept++] = found[i];
    *count = kept;
    pthread_mutex_unlock(&mutex);
}

CK_RV fault_C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR found, CK_ULONG most, CK_ULONG_PTR count)
{
    struct call c = {0};
    if (call_enter(&c, FN_C_FindObjects)) {
        c.rv = module()->real->C_FindObjects(session, found, most, count);
        if (c.rv == CKR_OK && has_trait(TRAIT_FROZEN))
            freeze(found, count);
    }
    return call_leave(&c);
}
