package faultp11

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed module/functions.def
var functionsDef string

// functionCount is the number of functions of PKCS#11 v2.40; module/control.h asserts the same.
const functionCount = 68

// names reads the functions from the file that the C side is made of, so that both number them alike.
var names = sync.OnceValue(func() []string {
	var all []string
	for _, m := range regexp.MustCompile(`(?m)^[FOS]\((C_\w+)`).FindAllStringSubmatch(functionsDef, -1) {
		all = append(all, m[1])
	}
	if len(all) != functionCount {
		panic(fmt.Sprintf("faultp11: functions.def has %d functions, want %d", len(all), functionCount))
	}
	return all
})

// Functions gives the names of all functions that can be told to fail, in the order of CK_FUNCTION_LIST.
func Functions() []string {
	return slices.DeleteFunc(slices.Clone(names()), func(n string) bool { return n == "C_GetFunctionList" })
}

// TokenFunctions gives those that need the token or a session with it: all except C_Initialize, C_Finalize, C_GetInfo
// and C_GetSlotList, which a module answers by itself when its token is gone.
func TokenFunctions() []string {
	return slices.DeleteFunc(Functions(), func(n string) bool {
		return slices.Contains([]string{"C_Initialize", "C_Finalize", "C_GetInfo", "C_GetSlotList"}, n)
	})
}

// number gives the slot of a function. It panics on a name that PKCS#11 v2.40 does not have: a test that injects
// nothing because of a misspelt name would pass for the wrong reason.
func number(fn string) int {
	i := slices.Index(names(), fn)
	if i < 0 || fn == "C_GetFunctionList" {
		panic(fmt.Sprintf("faultp11: no function %q; the names are %s", fn, strings.Join(Functions(), " ")))
	}
	return i
}
