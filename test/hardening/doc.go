// Package hardening attacks the real program, and looks at what it leaves behind: debuggers and core files, canary DEKs
// and a canary PIN in log, audit trail, metrics, state and memory, floods on the socket, log lines in an outage, and what
// a real Prometheus makes of its metrics. Only what needs bin/hsm-kms as a process of its own is
// tested here; what can be tested inside a package is tested there. The program is built from this checkout, and run over SoftHSM, on Linux.
package hardening
