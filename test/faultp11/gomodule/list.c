#include "list.h"

#include <dlfcn.h>
#include <stddef.h>

#include "_cgo_export.h"

enum { INITIALIZE = 0, GET_FUNCTION_LIST = 3, ENCRYPT = 30 };

static function_list *real, list;

function_list *load(const char *path)
{
	void *handle = path != NULL ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
	unsigned long (*get)(function_list **) = handle != NULL ? (unsigned long (*)(function_list **))dlsym(handle, "C_GetFunctionList") : NULL;
	if (get == NULL || get(&real) != 0)
		return NULL;
	list = *real;
	list.function[INITIALIZE] = (void *)goInitialize;
	list.function[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
	list.function[ENCRYPT] = (void *)goEncrypt;
	return &list;
}

unsigned long real_initialize(void *args)
{
	return ((unsigned long (*)(void *))real->function[INITIALIZE])(args);
}

unsigned long real_encrypt(unsigned long session, unsigned char *in, unsigned long in_len, unsigned char *out, unsigned long *out_len)
{
	return ((unsigned long (*)(unsigned long, unsigned char *, unsigned long, unsigned char *, unsigned long *))
	                real->function[ENCRYPT])(session, in, in_len, out, out_len);
}
