#ifndef GOMODULE_LIST_H
#define GOMODULE_LIST_H

// CK_FUNCTION_LIST (PKCS#11 v2.40, section 4.6).
typedef struct {
	struct { unsigned char major, minor; } version;
	void *function[68];
} function_list;

// load loads the real module and returns a copy of its list in which some functions are those of Go; NULL: it cannot.
function_list *load(const char *path);

unsigned long real_initialize(void *args);
unsigned long real_encrypt(unsigned long session, unsigned char *in, unsigned long in_len, unsigned char *out, unsigned long *out_len);

#endif
