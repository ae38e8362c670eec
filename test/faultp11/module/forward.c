/* forward.c forwards all functions that need nothing special, and gives the function list. */
#include "faultp11.h"

#define F(name, parameters, arguments)                                                                                 \
    static CK_RV fault_##name parameters                                                                               \
    {                                                                                                                  \
        struct call call_ = {0};                                                                                       \
        if (call_enter(&call_, FN_##name))                                                                             \
            call_.rv = module()->real->name arguments;                                                                 \
        return call_leave(&call_);                                                                                     \
    }
#define O(name, parameters, arguments, out, length)                                                                    \
    static CK_RV fault_##name parameters                                                                               \
    {                                                                                                                  \
        struct call call_ = {.length_query = (out) == NULL};                                                           \
        if (call_enter(&call_, FN_##name)) {                                                                           \
            call_.rv = module()->real->name arguments;                                                                 \
            call_tamper(&call_, out, length);                                                                          \
        }                                                                                                              \
        return call_leave(&call_);                                                                                     \
    }
#define S(name)
#include "functions.def"
#undef F
#undef O
#undef S

static CK_RV fault_C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list);

static CK_FUNCTION_LIST functions = {
    .version = {CRYPTOKI_VERSION_MAJOR, CRYPTOKI_VERSION_MINOR},
#define F(name, ...) .name = fault_##name,
#define O(name, ...) .name = fault_##name,
#define S(name) .name = fault_##name,
#include "functions.def"
#undef F
#undef O
#undef S
};

/*
 * The list is given even when setting up failed, which C_Initialize then says: some clients ignore the answer
 * of C_GetFunctionList and would crash on the missing list.
 */
static CK_RV fault_C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    if (!list)
        return CKR_ARGUMENTS_BAD;
    (void)module();
    *list = &functions;
    return CKR_OK;
}

/* The only symbol that this file of code shows to others, so that several copies of it do not mix. */
__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
    return fault_C_GetFunctionList(list);
}
