"""The first process of a container: hands SIGTERM to the process that does the work, and ends as that one ends.

KFP starts a step as `sh -ec "... python3 ..."`, and a shell hands no signal on: without this, a preempted step would
learn nothing until it is killed, and could not save. Shells are passed over, and only the process right below them is
told: what it started is its own business (torchrun tells its workers itself).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

_SHELLS = {"sh", "dash", "bash"}
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
"""Exit statuses by which a shell tells why a program did not start."""


def _workers(pid: int) -> list[int]:
    """`pid`, or, where it is a shell, the processes below it."""
    try:
        if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() not in _SHELLS:
            return [pid]
        below = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [worker for child in below for worker in _workers(int(child))] or [pid]


def main() -> int:
    """Entry point; returns the exit status: 128 + n for a signal, 126 or 127 where the program does not start."""
    if len(sys.argv) < 2:
        return _refuse("no command is given.", _NOT_FOUND)
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # what comes before it can be passed on waits
    try:
        child = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals))
    except FileNotFoundError:
        return _refuse(f"there is no command {sys.argv[1]!r} in this image, or its interpreter is missing.", _NOT_FOUND)
    except OSError as error:  # no right to execute it, a folder, another machine's program
        return _refuse(f"{sys.argv[1]!r} cannot be executed: {error.strerror}.", _NOT_EXECUTABLE)

    def pass_on(number: int, _: object) -> None:
        for worker in _workers(child.pid):
            with contextlib.suppress(ProcessLookupError):  # it has ended in between
                os.kill(worker, number)

    for number in signals:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    while True:  # as process 1 it also reaps what others leave behind
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _refuse(problem: str, status: int) -> int:
    sys.stderr.write(f"entrypoint: {problem}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
