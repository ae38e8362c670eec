#include "crossing.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

// CK_FUNCTION_LIST (PKCS#11 v2.40, section 4.6): a version of two bytes, then the functions in the order of
// the header file. Only the positions in use are named.
typedef struct {
	struct { unsigned char major, minor; } version;
	void *function[68];
} function_list;

enum { OPEN_SESSION = 12, CLOSE_SESSION = 13, LOGIN = 18, ENCRYPT_INIT = 29, ENCRYPT = 30, DECRYPT_INIT = 33, DECRYPT = 34, SIGN_INIT = 42, SIGN = 43 };

enum { CKM_SHA256_HMAC = 0x251, CKM_AES_ECB = 0x1081, CKM_AES_GCM = 0x1087, CKU_USER = 1, GCM_TAG_BITS = 128 };

enum { CKR_FUNCTION_FAILED = 0x6, CKF_RW_SESSION = 0x2 };

typedef struct {
	ck_ulong mechanism;
	void *parameter;
	ck_ulong parameter_len;
} mechanism;

// CK_GCM_PARAMS as in the v2.40 errata and v3.0, with ulIvBits: all modules of the last ten years.
typedef struct {
	unsigned char *iv;
	ck_ulong iv_len, iv_bits;
	unsigned char *aad;
	ck_ulong aad_len, tag_bits;
} gcm_params;

typedef ck_ulong (*init_fn)(ck_ulong session, mechanism *m, ck_ulong key);
typedef ck_ulong (*operation_fn)(ck_ulong session, unsigned char *in, ck_ulong in_len, unsigned char *out, ck_ulong *out_len);
typedef ck_ulong (*open_fn)(ck_ulong slot, ck_ulong flags, void *application, void *notify, ck_ulong *session);
typedef ck_ulong (*close_fn)(ck_ulong session);
typedef ck_ulong (*login_fn)(ck_ulong session, ck_ulong user, unsigned char *pin, ck_ulong pin_len);

void *crossing_load(const char *path, char *why, size_t why_size, ck_ulong *rv)
{
	why[0] = 0;
	*rv = 0;
	void *module = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
	if (module == NULL) {
		const char *text = dlerror(); // of this thread, which may be another one at the next call from Go
		snprintf(why, why_size, "%s", text != NULL ? text : "dlopen failed and does not say why");
		return NULL;
	}
	ck_ulong (*get_list)(function_list **) = (ck_ulong (*)(function_list **))dlsym(module, "C_GetFunctionList");
	if (get_list == NULL) {
		snprintf(why, why_size, "it has no C_GetFunctionList: it is not a PKCS#11 module");
		return NULL;
	}
	function_list *list = NULL;
	*rv = get_list(&list);
	if (*rv == 0 && list == NULL)
		snprintf(why, why_size, "its C_GetFunctionList gives no function list");
	return *rv == 0 ? list : NULL;
}

long long crossing_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (long long)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void run(function_list *list, int init, int operation, mechanism *m, ck_ulong session, ck_ulong key,
                unsigned char *in, ck_ulong in_len, unsigned char *out, ck_ulong out_cap, crossing *c)
{
	memset(c, 0, sizeof *c);
	long long start = crossing_now();
	c->init_rv = ((init_fn)list->function[init])(session, m, key);
	long long between = crossing_now();
	c->init_ns = between - start;
	if (c->init_rv != 0)
		return;
	c->second = 1;
	c->out_len = out_cap;
	c->rv = ((operation_fn)list->function[operation])(session, in, in_len, out, &c->out_len);
	c->ns = crossing_now() - between;
}

void crossing_gcm(void *list, int decrypt, ck_ulong session, ck_ulong key, unsigned char *iv, ck_ulong iv_len,
                  unsigned char *aad, ck_ulong aad_len, unsigned char *in, ck_ulong in_len, unsigned char *out,
                  ck_ulong out_cap, crossing *c)
{
	gcm_params p = { iv, iv_len, iv_len * 8, aad, aad_len, GCM_TAG_BITS };
	mechanism m = { CKM_AES_GCM, &p, sizeof p };
	run(list, decrypt ? DECRYPT_INIT : ENCRYPT_INIT, decrypt ? DECRYPT : ENCRYPT, &m, session, key, in, in_len,
	    out, out_cap, c);
}

void crossing_ecb(void *list, ck_ulong session, ck_ulong key, unsigned char *in, ck_ulong in_len,
                  unsigned char *out, ck_ulong out_cap, crossing *c)
{
	mechanism m = { CKM_AES_ECB, NULL, 0 };
	run(list, ENCRYPT_INIT, ENCRYPT, &m, session, key, in, in_len, out, out_cap, c);
}

void crossing_hmac(void *list, ck_ulong session, ck_ulong key, unsigned char *in, ck_ulong in_len,
                   unsigned char *out, ck_ulong out_cap, crossing *c)
{
	mechanism m = { CKM_SHA256_HMAC, NULL, 0 };
	run(list, SIGN_INIT, SIGN, &m, session, key, in, in_len, out, out_cap, c);
}

static pthread_mutex_t sessions = PTHREAD_MUTEX_INITIALIZER;

// Some libraries have no read-only sessions, and say CKR_FUNCTION_FAILED to a caller who asks for one (AWS CloudHSM's SDK 5).
ck_ulong crossing_open(void *list, ck_ulong slot, ck_ulong flags, ck_ulong *session)
{
	open_fn open = (open_fn)((function_list *)list)->function[OPEN_SESSION];
	pthread_mutex_lock(&sessions);
	ck_ulong rv = open(slot, flags, NULL, NULL, session);
	if (rv == CKR_FUNCTION_FAILED && !(flags & CKF_RW_SESSION))
		rv = open(slot, flags | CKF_RW_SESSION, NULL, NULL, session);
	pthread_mutex_unlock(&sessions);
	return rv;
}

ck_ulong crossing_close(void *list, ck_ulong session)
{
	pthread_mutex_lock(&sessions);
	ck_ulong rv = ((close_fn)((function_list *)list)->function[CLOSE_SESSION])(session);
	pthread_mutex_unlock(&sessions);
	return rv;
}

ck_ulong crossing_login(void *list, ck_ulong session, unsigned char *pin, ck_ulong pin_len)
{
	return ((login_fn)((function_list *)list)->function[LOGIN])(session, CKU_USER, pin, pin_len);
}
