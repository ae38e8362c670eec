package worker

import (
	"slices"
	"strings"
)

// passed are the variables that every worker gets: what a process needs, and what the vendors of PKCS#11 libraries
// document. A name that ends with * is a prefix. docs/configuration.md has the list.
var passed = [...]string{
	"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "HOSTNAME", "PWD", "TERM",
	"LD_LIBRARY_PATH", "MALLOC_*", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
	"http_proxy", "https_proxy", "no_proxy", "CREDENTIALS_DIRECTORY",
	"SOFTHSM2_CONF", "P11_KIT_*", "PKCS11_*", "OPENSC_*", "NSS_*", "TPM2_PKCS11_*", "TPM2TOOLS_*", "TSS2_*", "OCK_*",
	"ChrystokiConfigurationPath", "CLOUDHSM_*", "KMS_PKCS11_CONFIG", "GOOGLE_*", "NFAST_*", "CKNFAST_*", "YUBIHSM_*", "CS_*", "CRYPTOSERVER", "ET_*",
	"SECUROSYS_*", "P11NETHSM_CONFIG_FILE", "VAULT_*", "AZURE_*", "AWS_*", "GRPC_*", "KUBERNETES_*",
}

// withheld are the variables that are not for a worker: systemd's and Go's concern the process that got them.
var withheld = [...]string{
	"NOTIFY_SOCKET", "LISTEN_*", "WATCHDOG_*", "MAINPID", "MANAGERPID", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_*",
	"MEMORY_PRESSURE_*", "FDSTORE", "RUNTIME_DIRECTORY", "STATE_DIRECTORY", "CACHE_DIRECTORY", "LOGS_DIRECTORY",
	"CONFIGURATION_DIRECTORY", "SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS", "TRIGGER_*",
	"GODEBUG", "GOTRACEBACK", "GOGC", "GOMEMLIMIT", "GOMAXPROCS", "GOCOVERDIR", "GORACE",
}

// Environment is what of the environment a worker gets, and of that the names that it gets in this release only, because
// neither the list nor passEnv has them.
func Environment(environ, passEnv []string) (env, unlisted []string) {
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		if matches(withheld[:], name) {
			continue
		}
		env = append(env, variable)
		if !matches(passed[:], name) && !matches(passEnv, name) {
			unlisted = append(unlisted, name)
		}
	}
	slices.Sort(unlisted)
	return env, unlisted
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, isPrefix := strings.CutSuffix(pattern, "*")
		return name == pattern || isPrefix && strings.HasPrefix(name, prefix)
	})
}
