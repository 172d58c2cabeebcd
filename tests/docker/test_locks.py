"""The locks of the images agree with constraints.txt, so that an image runs what the tests ran."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_PIN = re.compile(r"^([\w.-]+)==([^\s\\]+)", re.MULTILINE)


def _pins(path: Path) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in _PIN.findall(path.read_text())}


@pytest.mark.parametrize("image", ["light", "train", "review", "torch-cuda"])
def test_every_pin_is_that_of_the_constraints(image: str) -> None:
    pins, constraints = _pins(_ROOT / "docker" / "locks" / f"{image}.txt"), _pins(_ROOT / "constraints.txt")
    apart = {name for name in pins if name not in constraints}
    assert {name: pins[name] for name in pins.keys() - apart} == {n: constraints[n] for n in pins.keys() - apart}
    if image == "torch-cuda":  # the CUDA libraries of PyPI's torch are not in the tests' environment
        assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in apart)
    else:
        assert apart <= {"setuptools"}


@pytest.mark.parametrize("image", ["light", "train", "review", "torch-cuda", "build"])
def test_every_pin_has_a_hash(image: str) -> None:
    text = (_ROOT / "docker" / "locks" / f"{image}.txt").read_text()
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert all("--hash=sha256:" in block for block in blocks)


@pytest.mark.parametrize(("image", "extra"), [("light", "data"), ("train", "train"), ("review", "review")])
def test_every_dependency_of_the_image_is_locked(image: str, extra: str) -> None:
    import tomllib

    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"][extra]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", one)[0]).lower() for one in wanted}  # pyright: ignore
    locked = _pins(_ROOT / "docker" / "locks" / f"{image}.txt").keys()
    assert names - locked == ({"torch"} if image == "train" else set())
