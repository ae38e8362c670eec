// Package hardening attacks the real program, and looks at what it leaves behind: debuggers and core files, canary DEKs
// and a canary PIN in log, audit trail, metrics, state and memory, floods on the socket, log lines in an outage, and what
// a real Prometheus makes of its metrics. Only tests that need bin/hsm-kms as a process of its own may live here; what
// can be shown inside a package is shown there. The program is built from this checkout, and run over SoftHSM, on Linux.
package hardening
