#!/usr/bin/env bash
# sign.sh signs dist/SHA256SUMS with the ECDSA key (PEM) that RELEASE_KEY names, as openssl and cosign verify it:
# docs/install.md. Without RELEASE_KEY it does nothing. It is run again whenever SHA256SUMS has become longer.
set -euo pipefail
cd "$(dirname "$0")/../.."
rm -f dist/SHA256SUMS.sig
if [[ -n ${RELEASE_KEY:-} ]]; then
	openssl dgst -sha256 -sign "$RELEASE_KEY" dist/SHA256SUMS | base64 -w0 >dist/SHA256SUMS.sig
	echo "sign: dist/SHA256SUMS.sig" >&2
fi
