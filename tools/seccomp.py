"""A filter of system calls for sandboxed commands, as a program for the kernel (seccomp, classic BPF; see seccomp(2)).

Refused is what a command has no use for and what the sandbox does not bound otherwise: the keyrings, which no namespace
separates; memory that belongs to no process, so that no limit on processes counts it; new namespaces; and the parts of the
kernel in which most holes were found.
"""

import platform
import struct

_ENOSYS, _EPERM = 38, 1
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_OR_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and, of unshare, NEWTIME
_X32 = 0x40000000

# Name: number on x86_64, number on aarch64.
_REFUSED = {
    "shmget": (29, 194),
    "ptrace": (101, 117),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "clone3": (435, 435),  # its flags are out of a filter's sight; the C library falls back to clone
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
_CLONE = (56, 220)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def program() -> bytes | None:
    """The filter for this machine; None for a kind of machine whose numbers we do not have."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return None
    column, architecture = machine
    lines = [
        _line(_LOAD, 0, 0, _ARCHITECTURE),
        _line(_JUMP_EQUAL, 1, 0, architecture),
        _line(_RETURN, 0, 0, _KILL),  # a 32-bit program would have other numbers
        _line(_LOAD, 0, 0, _NUMBER),
        _line(_JUMP_GREATER_OR_EQUAL, 0, 1, _X32),
        _line(_RETURN, 0, 0, _ERRNO | _ENOSYS),
    ]
    for numbers in _REFUSED.values():
        lines += [_line(_JUMP_EQUAL, 0, 1, numbers[column]), _line(_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    lines += [
        _line(_JUMP_EQUAL, 0, 3, _CLONE[column]),
        _line(_LOAD, 0, 0, _FIRST_ARGUMENT),
        _line(_JUMP_ANY_BIT, 0, 1, _NEW_NAMESPACES & ~0x80),
        _line(_RETURN, 0, 0, _ERRNO | _EPERM),
        _line(_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(lines)


def _line(code: int, jump_if_true: int, jump_if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, jump_if_true, jump_if_false, value)
