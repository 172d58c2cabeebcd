"""Which account of which machine a process runs under: what is known of a name that somebody merely gave.

Linux keeps the user who signed in (`loginuid`) through `su` and `sudo`; where it is not kept, as in most containers, it
is the process's own user. Neither is taken from the environment, which whoever starts the process writes.
"""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

__all__ = ["account", "user_of"]

_LOGIN_UID = Path("/proc/self/loginuid")
_UNSET = 2**32 - 1


def account() -> str:
    """`user@machine`; a user without a name is `uid-1000`."""
    return f"{_user_name(_uid())}@{socket.gethostname()}"


def user_of(found: str) -> str:
    """The user of an account, on whichever machine."""
    return found.partition("@")[0]


def _uid() -> int:
    try:
        signed_in = int(_LOGIN_UID.read_text())
    except (OSError, ValueError):
        return os.getuid()
    return os.getuid() if signed_in == _UNSET else signed_in


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"
