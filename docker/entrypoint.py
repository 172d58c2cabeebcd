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
    """Entry point; returns the exit status, 128 + n for a signal."""
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # what comes before it can be passed on waits
    child = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, signals))

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


if __name__ == "__main__":
    sys.exit(main())
