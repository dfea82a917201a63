#!/bin/sh
# venv.sh locked NAME    an environment in /venv with what images/requirements/NAME.txt locks, by hash, from wheels
#                        only: nothing is compiled. The environment of pip itself is in /tools, and stays behind.
# venv.sh vendor REQUIREMENT...  what only NVIDIA's index has as wheels: by version, without a hash that we could keep.
# venv.sh project        the project, which lies in /src, into that environment. Needs no network.
# Two steps, so that the first is done again only when the lock has changed.
set -eu
pip="/tools/bin/pip --disable-pip-version-check --no-cache-dir --quiet"
by_hash="--require-hashes --no-deps --only-binary :all:"

case $1 in
locked)
    python -m venv /tools
    $pip install $by_hash -r "/src/images/requirements/build.txt"
    python -m venv --without-pip /venv
    $pip --python /venv/bin/python install $by_hash -r "/src/images/requirements/$2.txt"
    # What only developers use: tests (but not what numpy.testing imports from them), stubs, headers, archives.
    cd /venv
    find . -path '*/tests/*' \( -name 'test_*.py' -o -name 'test_*.pyc' \) -delete
    find . -path '*/tests/*' -type d \( -name data -o -name src -o -name examples \) -prune -exec rm -rf {} +
    find . \( -name '*.pyi' -o -name '*.a' -o -name '*.h' -o -name '*.pxd' \) -delete
    ;;
vendor)
    shift
    $pip --python /venv/bin/python install --no-deps --only-binary :all: \
        --extra-index-url https://pypi.nvidia.com "$@"
    ;;
project)
    $pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src
    $pip --python /venv/bin/python install --no-deps --no-index /wheels/*.whl
    ;;
esac
