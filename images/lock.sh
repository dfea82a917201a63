#!/usr/bin/env bash
# Writes images/requirements/*.txt anew from pyproject.toml: for each image every package with its version and the
# hashes of its files. Asks the package index; what images share, they have in one version.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$1
lock() {
    local name=$1; shift
    echo "locking $name"
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command "make lock" --output-file "$new/$name.txt" "$@"
}
# Beside the locks, which are replaced when all that takes their place is there: an index that does not answer costs
# nothing.
mkdir -p .cache/lock
new=$(mktemp -d .cache/lock/new.XXXXXX)
trap 'rm -rf "$new"' EXIT
export UV_CONSTRAINT=images/constraints.txt
shared=$new/preprocess.txt
extras() { local extra; for extra; do printf -- '--extra=%s ' "$extra"; done; }

lock preprocess $(extras kafka redis) pyproject.toml
lock inference-cpu $(extras kafka redis onnxruntime) --constraint $shared pyproject.toml
lock inference-torch $(extras kafka redis onnxruntime torch) --constraint $shared pyproject.toml
lock inference-dali $(extras kafka redis onnxruntime torch dali) --constraint $new/inference-torch.txt pyproject.toml
lock model $(extras models) --constraint $shared pyproject.toml
lock loadgen $(extras kafka) --constraint $shared pyproject.toml
# Only their photographs are taken, so what they depend on is not.
lock photographs --no-deps - <<< $'scikit-image>=0.24\nscikit-learn>=1.5'
# Only the face detector's weights are taken; what it depends on is a torch of years ago.
lock face-detector --no-deps - <<< 'facenet-pytorch==2.6.0'
# What makes the project's own wheel.
lock build - <<< $'setuptools>=77\nwheel'

chmod 644 "$new"/*.txt
rm -f images/requirements/*.txt
mv "$new"/*.txt images/requirements/
