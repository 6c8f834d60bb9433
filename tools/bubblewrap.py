"""The command line that runs a command in a bubblewrap sandbox (bwrap(1), version 0.8 or newer)."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

WORKSPACE = "/workspace"
TMP_BYTES = 256 << 20
SHARED_MEMORY_BYTES = 64 << 20
USER = 1000
"""Inside. Outside it is the service's own user or, where that is root, `sandbox.UNPRIVILEGED`."""

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": WORKSPACE,
    "USER": "agent",
    "LOGNAME": "agent",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": "/tmp",
}

STUBS: Mapping[str, str] = {
    "/etc/passwd": f"root:x:0:0:root:/:/usr/sbin/nologin\nagent:x:{USER}:{USER}:agent:{WORKSPACE}:/bin/bash\n",
    "/etc/group": f"root:x:0:\nagent:x:{USER}:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
}

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = (
    "alternatives",
    "ca-certificates",
    "ca-certificates.conf",
    "debian_version",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "pki/ca-trust",
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
"""What programs look for, and nothing that is this machine's own: no keys, no names, no settings of services."""


def options(
    source: str,
    *,
    hidden: str,
    private: Iterable[Path],
    network: bool,
    stubs: Mapping[str, int],
    filter: int | None,
    status: int,
) -> list[str]:
    """What the sandbox is to be. `source` becomes /workspace; `stubs`, `filter` and `status` are descriptors.

    `private`: what is not to be seen, should it be in one of the system's folders.
    """
    return [
        # Named beside --unshare-all, which only tries: without a user namespace the rest is worth little.
        *("--unshare-all", "--unshare-user", "--disable-userns"),
        *(["--share-net"] if network else []),
        *("--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"),
        *("--new-session", "--die-with-parent", "--cap-drop", "ALL"),
        *("--clearenv", *_each("--setenv", ENVIRONMENT.items())),
        *_system(network),
        *_covered(private),
        *_each("--ro-bind-data", ((str(descriptor), path) for path, descriptor in stubs.items())),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", str(SHARED_MEMORY_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm"),
        *("--size", str(TMP_BYTES), "--perms", "1777", "--tmpfs", "/tmp"),
        *("--bind", source, WORKSPACE),
        *("--size", "4096", "--tmpfs", f"{WORKSPACE}/{hidden}", "--remount-ro", f"{WORKSPACE}/{hidden}"),
        # Both are file systems in memory, and would be as large as the machine's.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
        *("--chdir", WORKSPACE),
        *(["--seccomp", str(filter)] if filter is not None else []),
        *("--json-status-fd", str(status)),
    ]


def command_line(options: int, command: str, processes: int) -> list[str]:
    """What follows `bwrap`, which reads its options from a descriptor: its command line can be seen in the sandbox.

    The limit on processes is set inside, where it counts those of the sandbox's user namespace (Linux 5.14).
    """
    return ["--args", str(options), "--", "/bin/bash", "-c", f"ulimit -u {processes}\n{command}"]


def _system(network: bool) -> Iterator[str]:
    for path in _SYSTEM:
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            yield from ("--ro-bind", path, path)
    for name in _ETC:
        path = f"/etc/{name}"
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.exists(path):
            yield from ("--ro-bind", path, path)
    resolver = Path("/etc/resolv.conf")
    if network and resolver.exists():
        yield from ("--ro-bind", str(resolver.resolve()), "/etc/resolv.conf")


def _covered(private: Iterable[Path]) -> Iterator[str]:
    """A service that is installed below /usr may well have its data there."""
    shown = [Path(path).resolve() for path in _SYSTEM if os.path.isdir(path)]
    covered: list[Path] = []
    for path in sorted(path.resolve() for path in private if path.exists()):  # a folder before what is in it
        if not any(map(path.is_relative_to, shown)) or any(map(path.is_relative_to, covered)):
            continue
        covered.append(path)
        if path.is_dir():
            yield from ("--size", "4096", "--tmpfs", str(path), "--remount-ro", str(path))
        else:
            yield from ("--ro-bind", "/dev/null", str(path))


def _each(option: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for first, second in pairs:
        yield from (option, first, second)
