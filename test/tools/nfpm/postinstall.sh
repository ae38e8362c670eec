#!/bin/sh
# Makes the user, and tells systemd of the units, where there is one. It starts and enables nothing.
set -e
if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers hsm-kms.conf || true
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
