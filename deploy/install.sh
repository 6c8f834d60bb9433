#!/bin/sh
# Make .venv from a lock file and put the project in it, editable.
#   deploy/install.sh [requirements.lock]
# Uses uv where it is on the path, else pip; both check every hash. PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
lock=${1:-requirements.lock}

fail() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

suits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if suits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "Perdure needs Python 3.11 or later${PYTHON:+, which $PYTHON is not}; found: $(python3 --version 2>&1 || true). Set PYTHON=/path/to/python3.11 if it is elsewhere."
}

make_venv() {
    python=$(find_python)
    rm -rf .venv
    if command -v uv >/dev/null; then
        uv venv --quiet --python "$python" .venv
        return
    fi
    # Debian ships Python without ensurepip, and then "python -m venv" leaves half a folder behind.
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            deploy/packages.sh "$package"
        else
            fail "$python cannot make virtual environments. On Debian and Ubuntu: sudo apt-get install $package (or install uv), then try again."
        fi
    fi
    "$python" -m venv .venv
}

if ! { [ -x .venv/bin/python ] && suits .venv/bin/python; }; then
    make_venv
fi

printf 'install: %s into .venv\n' "$lock"
# The build runs in .venv, on the locked setuptools: an isolated build would fetch one that nobody locked.
if command -v uv >/dev/null; then
    VIRTUAL_ENV=$PWD/.venv
    export VIRTUAL_ENV
    uv pip install --quiet --require-hashes -r "$lock"
    uv pip install --quiet --no-deps --no-build-isolation --editable .
else
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$lock"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
fi
