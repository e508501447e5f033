"""A filter of system calls, as the BPF program that bubblewrap loads.

It refuses what no program for a problem needs and what reaches past namespaces and limits: memory that no limit counts
(memfd, System V segments), other processes' memory, keyrings, io_uring, new namespaces, sockets of any kind but local
ones (a network namespace does not hold vsock).
"""

from __future__ import annotations

import errno
import platform
import struct

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_NEW_NAMESPACES = 0x7E020000
_UNIX = 1
_X32 = 0x40000000

_SAME_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442,
    "memfd_secret": 447,
}  # fmt: skip

_DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "shmget": 29, "ptrace": 101, "syslog": 103, "personality": 135, "pivot_root": 155, "chroot": 161, "acct": 163,
        "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "init_module": 175, "delete_module": 176,
        "quotactl": 179, "mq_open": 240, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "unshare": 272, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "finit_module": 313, "memfd_create": 319, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "acct": 89, "personality": 92,
        "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106, "syslog": 116, "ptrace": 117,
        "reboot": 142, "mq_open": 180, "shmget": 194, "add_key": 217, "request_key": 218, "keyctl": 219,
        "swapon": 224, "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
        "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip

_OTHERS = {
    "x86_64": {"audit": 0xC000003E, "clone": 56, "clone3": 435, "socket": 41},
    "aarch64": {"audit": 0xC00000B7, "clone": 220, "clone3": 435, "socket": 198},
}


def filter_program(machine: str = platform.machine()) -> bytes | None:
    """The filter for processors of this kind; None where its numbers of system calls are not listed here."""
    if machine not in _DENIED:
        return None
    of = _OTHERS[machine]
    program = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, of["audit"]), (_RETURN, 0, 0, _KILL)]
    program.append((_LOAD, 0, 0, _NUMBER))
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for number in (*_DENIED[machine].values(), *_SAME_EVERYWHERE.values()):
        program += _if_called(number, [_refused(errno.EPERM)])
    # Its flags lie in memory, where no filter sees them; without it the C library asks for `clone`.
    program += _if_called(of["clone3"], [_refused(errno.ENOSYS)])
    first = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    program += _if_called(of["clone"], [first, (_ANY_BIT, 0, 1, _NEW_NAMESPACES), _refused(errno.EPERM), _allowed()])
    program += _if_called(of["socket"], [first, (_EQUAL, 1, 0, _UNIX), _refused(errno.EAFNOSUPPORT), _allowed()])
    program.append(_allowed())
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


_Instruction = tuple[int, int, int, int]


def _if_called(number: int, then: list[_Instruction]) -> list[_Instruction]:
    return [(_EQUAL, 0, len(then), number), *then]


def _refused(error: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERROR | error)


def _allowed() -> _Instruction:
    return (_RETURN, 0, 0, _ALLOW)
