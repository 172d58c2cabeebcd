"""The peer's environment: trl 1.12.0, the last release with PPO, beside the same torch, transformers and peft.

It is a virtual environment of its own (`benchmarks/.peer-venv`), because Plumbline runs on a newer TRL.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["REQUIREMENTS", "ensure"]

logger = logging.getLogger(__name__)

REQUIREMENTS = ("torch==2.13.0", "trl==1.12.0", "transformers==5.23.0", "peft==0.21.2", "accelerate", "datasets")
"""In one command, so that nothing pulls another torch."""

_FOLDER = Path(__file__).parents[1] / ".peer-venv"
_STAMP = "requirements.txt"


def ensure(folder: Path = _FOLDER) -> Path:
    """Builds the environment unless it is there.

    Args:
        folder: Where it is.

    Returns:
        Its python.

    Raises:
        CalledProcessError: pip failed.
    """
    python = folder / "bin/python"
    stamp, wanted = folder / _STAMP, "\n".join(REQUIREMENTS) + "\n"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        logger.info("building the peer's environment in %s (about a minute, 2 GB).", folder)
        venv.EnvBuilder(with_pip=True, clear=True).create(folder)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
        subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_text(wanted, encoding="utf-8")
    return python
