# Dockerfile.kind: a kind node with the plugin and SoftHSM in it. For trials only: token, key and PIN are in the image.
# Build it in a folder with your configuration as config.yaml and the other files of `hsm-kms manifests kind`; the image of
# `hsm-kms manifests dockerfile` is hsm-kms:dev:
#   docker build -f Dockerfile.kind -t hsm-kms-kind .
ARG HSM_KMS=hsm-kms:dev
# The node of kind v0.33.0. Another release of kind has other ones, by digest, in its release notes: --build-arg NODE=...
ARG NODE=kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5
FROM ${HSM_KMS} AS hsm-kms

FROM ${NODE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends softhsm2 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=hsm-kms /usr/local/bin/hsm-kms {{quote .Program}}
COPY config.yaml {{quote .ConfigPath}}
COPY encryption.yaml {{quote .EncryptionConfig}}
COPY hsm-kms.service hsm-kms.socket /etc/systemd/system/
# The token belongs to the plugin's user, and so does all that the commands below make.
RUN useradd --system --groups softhsm hsm-kms \
 && install -d -m 0700 -o hsm-kms -g hsm-kms {{quote .StateDir}} /var/lib/softhsm/tokens \
 && chmod 0755 {{quote .ConfigDir}} && chmod 0644 {{quote .ConfigPath}} && chmod 0600 {{quote .EncryptionConfig}}
{{- range .Tokens}}
RUN (umask 077 && od -An -N8 -tx8 /dev/urandom | tr -d ' \n' > {{quote .File}}) && chown hsm-kms {{quote .File}}
{{- end}}
# The first token, with the label that the configuration names, and the first key.
{{- with index .Tokens 0}}
ARG LABEL={{if .Label}}{{quote .Label}}{{else}}k8s{{end}}
RUN PIN="$(cat {{quote .File}})" \
 && setpriv --reuid hsm-kms --regid hsm-kms --groups softhsm softhsm2-util --init-token --free --label "${LABEL}" --so-pin "${PIN}" --pin "${PIN}"
{{- end}}
RUN CREDENTIALS_DIRECTORY=/etc/hsm-kms setpriv --reuid hsm-kms --regid hsm-kms --groups softhsm {{quote .Program}} keys create --config {{quote .ConfigPath}}
# From here on systemd reads the PIN, as root, and hands it to the plugin.
RUN chown root{{range .Tokens}} {{quote .File}}{{end}}
RUN systemctl enable hsm-kms.socket hsm-kms.service
