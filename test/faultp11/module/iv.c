/*
 * iv.c: a library whose HSM makes the nonce of AES-GCM, as AWS CloudHSM (12 bytes, written to where the caller's IV is) and
 * Luna in FIPS mode (16 bytes, after the tag) do by their documents. The real module gets the nonce that is made here.
 */
#include "faultp11.h"

#include <pthread.h>
#include <string.h>
#include <sys/random.h>

#define MOST_IV 16

/* What a session's C_EncryptInit leaves for its C_Encrypt. */
struct pending {
    CK_SESSION_HANDLE session;
    bool used;
    enum iv_mode mode;
    CK_BYTE_PTR to; /* where the caller's IV is */
    CK_BYTE iv[MOST_IV];
    CK_ULONG len;
};

static struct pending pending[256];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Forgets what the session had, and gives a place for what it has now; NULL: none is left. */
static struct pending *place(CK_SESSION_HANDLE session)
{
    struct pending *at = NULL;
    for (size_t i = 0; i < sizeof pending / sizeof *pending; i++) {
        if (pending[i].used && pending[i].session == session)
            pending[i].used = false;
        if (!pending[i].used && !at)
            at = &pending[i];
    }
    return at;
}

/* Finds what the session's C_EncryptInit left; a length query leaves it there. */
static bool find(CK_SESSION_HANDLE session, struct pending *out, bool keep)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < sizeof pending / sizeof *pending; i++) {
        if (pending[i].used && pending[i].session == session) {
            *out = pending[i];
            pending[i].used = keep;
            found = true;
        }
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* The source of this nonce: the one that is set while its times last, then the random one. */
static enum iv_source source(struct control *c)
{
    uint64_t old = atomic_load(&c->iv_source), new;
    do {
        if ((old & 0xffffffff) == 0)
            return IV_RANDOM;
        new = (old & 0xffffffff) == TIMES_FOREVER ? old : old - 1;
    } while (!atomic_compare_exchange_weak(&c->iv_source, &old, new));
    return (enum iv_source)(old >> 32);
}

static void make_iv(struct control *c, CK_BYTE *iv, CK_ULONG len)
{
    memset(iv, 0, len);
    switch (source(c)) {
    case IV_RANDOM:
        if (getrandom(iv, len, 0) != (ssize_t)len)
            complain("getrandom failed");
        return;
    case IV_ZERO:
        return;
    case IV_CONSTANT:
        memset(iv, 0xC0, len);
        return;
    case IV_COUNTER: {
        uint64_t n = atomic_fetch_add(&c->iv_counter, 1) + 1;
        for (int i = 0; i < 8; i++)
            iv[len - 1 - i] = (CK_BYTE)(n >> 8 * i);
        return;
    }
    case IV_RESERVED:
        memcpy(iv, "hsm-kms/fp/1", 12);
        return;
    }
}

static bool all_zero(const CK_BYTE *p, CK_ULONG n)
{
    for (CK_ULONG i = 0; i < n; i++)
        if (p[i] != 0)
            return false;
    return true;
}

CK_RV fault_C_EncryptInit(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
    struct call c = {0};
    if (!call_enter(&c, FN_C_EncryptInit))
        return call_leave(&c);
    if (is_bad_key(session, key)) {
        c.rv = (CK_RV)atomic_load(&module()->control->bad_key_code);
        return call_leave(&c);
    }
    enum iv_mode mode = (enum iv_mode)atomic_load(&module()->control->iv_mode);
    if (mode == IV_OF_CALLER || !mechanism || mechanism->mechanism != CKM_AES_GCM) {
        c.rv = module()->real->C_EncryptInit(session, mechanism, key);
        return call_leave(&c);
    }
    struct pending p = {.session = session, .used = true, .mode = mode, .len = mode == IV_APPENDED ? 16 : 12};
    CK_GCM_PARAMS params = *(CK_GCM_PARAMS *)mechanism->pParameter;
    if (params.ulIvLen != p.len || !all_zero(params.pIv, params.ulIvLen)) {
        c.rv = CKR_MECHANISM_PARAM_INVALID; /* it takes no IV from its caller */
        return call_leave(&c);
    }
    p.to = params.pIv;
    make_iv(module()->control, p.iv, p.len);
    params.pIv = p.iv;
    params.ulIvBits = p.len * 8;
    CK_MECHANISM own = {CKM_AES_GCM, &params, sizeof params};
    c.rv = module()->real->C_EncryptInit(session, &own, key);
    pthread_mutex_lock(&lock);
    struct pending *at = place(session);
    if (c.rv == CKR_OK && at)
        *at = p;
    else if (c.rv == CKR_OK)
        complain("too many encryptions at once: enlarge pending[]");
    pthread_mutex_unlock(&lock);
    return call_leave(&c);
}

CK_RV fault_C_Encrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)
{
    struct call c = {.length_query = out == NULL};
    struct pending p;
    if (!call_enter(&c, FN_C_Encrypt))
        return call_leave(&c);
    bool own = find(session, &p, out == NULL);
    CK_ULONG room = out_len ? *out_len : 0;
    c.rv = module()->real->C_Encrypt(session, in, in_len, out, out_len);
    if (own && c.rv == CKR_OK && p.mode == IV_WRITTEN_BACK && out)
        memcpy(p.to, p.iv, p.len);
    if (own && c.rv == CKR_OK && p.mode == IV_APPENDED) {
        if (out && room < *out_len + p.len)
            c.rv = CKR_BUFFER_TOO_SMALL;
        else if (out)
            memcpy(out + *out_len, p.iv, p.len);
        *out_len += p.len;
    }
    call_tamper(&c, out, out_len);
    return call_leave(&c);
}
