#!/bin/sh
# Have what the tests need from the system; install it (Debian, as root) where it is missing.
#   deploy/packages.sh postgresql | redis-server | nodejs | bubblewrap | chromium | <any Debian package>
# Ends with 3 when it is missing and cannot be installed here; the caller decides whether that may be skipped.
set -eu
package=$1

present() {
    case $package in
    postgresql)
        command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1
        ;;
    nodejs)
        command -v node >/dev/null && command -v npm >/dev/null
        ;;
    redis-server)
        command -v redis-server >/dev/null || command -v valkey-server >/dev/null
        ;;
    bubblewrap)
        command -v bwrap >/dev/null
        ;;
    chromium)
        command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null
        ;;
    *)
        return 1
        ;;
    esac
}

if present; then
    exit 0
fi

case $package in
nodejs) packages="nodejs npm" ;;
*) packages=$package ;;
esac

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    printf 'packages: installing %s\n' "$packages"
    apt-get update -qq
    # shellcheck disable=SC2086  # two packages are two words
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends $packages >/dev/null
    exit 0
fi

printf '\n*** MISSING: %s. It is installed only by root on Debian; here, install it yourself.\n\n' "$packages" >&2
exit 3
