// One crossing from Go to C for what would be two or three: the Init of an operation and the operation.
//
// Why not the wrappers of miekg/pkcs11: they ask for the output's length first (a third call, a round trip on
// a network HSM), leak the output buffer when the operation fails, and free plaintext without wiping it. Here
// the caller's own buffers are used, the output is large enough at once (which NSS's AES-GCM needs besides),
// and the mechanism's parameters live on the C stack.
#ifndef HSM_KMS_CROSSING_H
#define HSM_KMS_CROSSING_H

#include <stddef.h>

enum { CROSSING_GENERAL_ERROR = 5 }; // CKR_GENERAL_ERROR

typedef unsigned long ck_ulong; // CK_ULONG, CK_RV and every handle (PKCS#11 v2.40, section 3)

// What an operation of two calls did: each call's CK_RV, nanoseconds, and whether the second was made.
typedef struct {
	ck_ulong init_rv, rv, out_len;
	long long init_ns, ns;
	int second;
} crossing;

// crossing_load opens the module and asks for its function list; on failure it returns NULL and a message in why, cut to
// why_size, or an empty one and the CK_RV of C_GetFunctionList in *rv.
void *crossing_load(const char *path, char *why, size_t why_size, ck_ulong *rv);

// crossing_gcm is CKM_AES_GCM. The module may write to iv until the second call has returned: some make the IV themselves.
void crossing_gcm(void *list, int decrypt, ck_ulong session, ck_ulong key, unsigned char *iv, ck_ulong iv_len,
                  unsigned char *aad, ck_ulong aad_len, unsigned char *in, ck_ulong in_len, unsigned char *out,
                  ck_ulong out_cap, crossing *c);
// crossing_ecb is CKM_AES_ECB, which has no parameter, in C_Encrypt.
void crossing_ecb(void *list, ck_ulong session, ck_ulong key, unsigned char *in, ck_ulong in_len,
                  unsigned char *out, ck_ulong out_cap, crossing *c);
void crossing_hmac(void *list, ck_ulong session, ck_ulong key, unsigned char *in, ck_ulong in_len,
                   unsigned char *out, ck_ulong out_cap, crossing *c);
// crossing_open and crossing_close are C_OpenSession and C_CloseSession, one at a time in the process: tpm2-pkcs11 1.9.0
// does not lock its session table, gives one handle to two callers of C_OpenSession, and crashes when both use it.
ck_ulong crossing_open(void *list, ck_ulong slot, ck_ulong flags, ck_ulong *session);
ck_ulong crossing_close(void *list, ck_ulong session);

// crossing_now is CLOCK_MONOTONIC in nanoseconds.
long long crossing_now(void);

ck_ulong crossing_login(void *list, ck_ulong session, unsigned char *pin, ck_ulong pin_len);

#endif
