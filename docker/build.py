"""Builds the images: `light`, `train` and `review`, each with its SBOM beside it. `make images` calls this.

    docker/build.py --base IMAGE@sha256:... [--engine docker|podman] [--torch-wheel FILE] [light] [train] [review]

Three steps, so that an image's content is decided before the build begins:

1. wheels: what `docker/locks/<image>.txt` names is downloaded, each file checked against its sha256, into a cache that
   may be carried to a machine without a network;
2. build: from a context that holds those files and nothing else of the machine, with no network at all;
3. SBOM: what is installed in the finished image, as that image itself tells, in CycloneDX JSON.

Only the standard library is imported: any Python with pip will do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

_DOCKER = Path(__file__).resolve().parent
_ROOT = _DOCKER.parent
_IMAGES = ("light", "train", "review")
_PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]


class BuildError(Exception):
    """The build cannot go on; the message says what to do."""


def main() -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args()
    images = arguments.images or list(_IMAGES)
    try:
        base = _digest_of_base(arguments.engine, arguments.base)
        if not arguments.offline:
            _download(images, arguments.wheels, torch=arguments.torch_wheel)
        for image in images:
            tag = f"{arguments.prefix}plumbline-{image}:{arguments.tag or _version()}"
            with tempfile.TemporaryDirectory(prefix="plumbline-build-") as context:
                _lay_out(Path(context), image, arguments.wheels, torch=arguments.torch_wheel)
                _build(arguments, Path(context), image, tag, base)
            sbom = _write_sbom(arguments.engine, tag, arguments.output / f"plumbline-{image}.cdx.json")
            sys.stdout.write(f"{tag}  {_image_id(arguments.engine, tag)}  {sbom}\n")
    except BuildError as error:
        sys.stderr.write(f"docker/build.py: {error}\n")
        return 1
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"docker/build.py: {' '.join(map(str, error.cmd[:6]))} ... failed ({error.returncode})\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plumbline" / "wheels"
    parser = argparse.ArgumentParser(description="Builds Plumbline's images.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="light, train, review; default: all")
    parser.add_argument("--base", required=True, help="base image: NAME@sha256:..., or a local localhost/NAME:TAG")
    parser.add_argument("--build-base", help="image of the build stages, with python3-venv; default: the base image")
    parser.add_argument("--engine", choices=["docker", "podman"], default="docker")
    parser.add_argument("--prefix", default="", help="what stands before the image's name, e.g. registry.example/team/")
    parser.add_argument("--tag", help="default: the version in pyproject.toml")
    parser.add_argument("--torch-wheel", type=Path, help="another build of torch (CPU, ROCm) than the lock's CUDA one")
    parser.add_argument("--wheels", type=Path, default=cache, help="where wheels are kept")
    parser.add_argument("--offline", action="store_true", help="download nothing: the wheels are there")
    parser.add_argument("--output", type=Path, default=_ROOT / "build" / "images", help="where SBOMs go")
    return parser


def _digest_of_base(engine: str, base: str) -> str:
    """The digest of the base image: the one in its name, or the id of an image that was made here."""
    if found := re.search(r"@(sha256:[0-9a-f]{64})$", base):
        return found[1]
    if not base.startswith("localhost/"):
        raise BuildError(f"{base} names no digest; give NAME@sha256:..., so that every build has the same base")
    try:
        return _image_id(engine, base)
    except subprocess.CalledProcessError as error:
        raise BuildError(f"there is no image {base}; `make base-image` makes one without a registry") from error


def _download(images: list[str], wheels: Path, *, torch: Path | None) -> None:
    """Fetches what the locks name into one folder for all; pip checks each file against its sha256."""
    wheels.mkdir(parents=True, exist_ok=True)
    locks = dict.fromkeys(lock for image in images for lock in _locks(image, torch))
    _pip_download(locks, wheels, "--find-links", wheels)


def _locks(image: str, torch: Path | None) -> list[str]:
    """The locks behind an image; `build` serves packages that come as source, and is not installed."""
    heavy = ["torch-cuda"] if image == "train" and torch is None else []
    return ["build", image, *heavy]


def _pip_download(locks: Iterable[str], folder: Path, *options: str | Path) -> None:
    files = [word for lock in locks for word in ("-r", _DOCKER / "locks" / f"{lock}.txt")]
    subprocess.run([*_PIP, "download", "--no-deps", "--require-hashes", "--dest", folder, *options, *files], check=True)


def _lay_out(context: Path, image: str, wheels: Path, *, torch: Path | None) -> None:
    """Makes the build context: wheels, locks, Plumbline's wheel, and the Dockerfile."""
    (context / "requirements").mkdir()
    locks = _locks(image, torch)
    _pip_download(locks, context / "wheels", "--no-index", "--find-links", wheels)
    for lock in locks[1:]:
        shutil.copy(_DOCKER / "locks" / f"{lock}.txt", context / "requirements")
    if image == "train" and torch is not None:
        shutil.copy(torch, context / "wheels")
        (context / "requirements" / "torch.txt").write_text(_pin(torch))
    source = context / "source"
    source.mkdir()
    for name in ("components", "pipelines", "pyproject.toml", "README.md", "LICENSE"):
        _copy_source(_ROOT / name, source / name)
    options = ["--no-deps", "--no-index", "--find-links", str(wheels), "--wheel-dir", str(context / "application")]
    subprocess.run([*_PIP, "wheel", *options, str(source)], check=True)
    shutil.rmtree(source)
    for name in ("Dockerfile", "entrypoint.py"):
        shutil.copy(_DOCKER / name, context)


def _pin(wheel: Path) -> str:
    """A requirement for exactly this file."""
    name, version = wheel.name.split("-")[:2]
    with open(wheel, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{name}=={version} --hash=sha256:{digest}\n"


def _copy_source(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    else:
        shutil.copy(source, target)


def _build(arguments: argparse.Namespace, context: Path, image: str, tag: str, base_digest: str) -> None:
    """Runs the engine's build, without a network."""
    revision, created = _revision()
    values = {
        "BASE_IMAGE": arguments.base,
        "BUILD_IMAGE": arguments.build_base or arguments.base,
        "BASE_DIGEST": base_digest,
        "NAME": image,
        "VERSION": _version(),
        "REVISION": revision,
        "CREATED": created,
    }
    command = [arguments.engine, "build", "--quiet", "--network", "none", "--tag", tag]
    command += ["--target", "review" if image == "review" else "step"]
    if arguments.engine == "podman":
        command += ["--format", "docker"]  # OCI's own format has no HEALTHCHECK
    for name, value in values.items():
        command += ["--build-arg", f"{name}={value}"]
    subprocess.run([*command, str(context)], check=True, stdout=subprocess.DEVNULL, env=_builder(arguments.engine))


def _builder(engine: str) -> dict[str, str]:
    """The environment of the build: Docker's own builder where the BuildKit plug-in is missing."""
    has_buildkit = subprocess.run([engine, "buildx", "version"], check=False, capture_output=True).returncode == 0
    return dict(os.environ) if has_buildkit else {**os.environ, "DOCKER_BUILDKIT": "0"}


def _version() -> str:
    return tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]


def _revision() -> tuple[str, str]:
    """Commit that is built (`-dirty` with changes of what goes into the image), and its time."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", _ROOT, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "components", "pipelines", "pyproject.toml", "docker")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else ""), git("show", "-s", "--format=%cI", "HEAD")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        return os.environ.get("REVISION", "unknown"), ""


def _image_id(engine: str, tag: str) -> str:
    command = [engine, "image", "inspect", "--format", "{{.Id}}", tag]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return found if found.startswith("sha256:") else f"sha256:{found}"


def _write_sbom(engine: str, tag: str, path: Path) -> Path:
    """Lets the image tell what is installed in it."""
    command = [engine, "run", "--rm", "--interactive", "--network", "none", "--read-only", "--cap-drop", "ALL", tag]
    told = subprocess.run(
        [*command, "python3", "-", tag, _image_id(engine, tag)],
        check=True,
        stdout=subprocess.PIPE,
        input=(_DOCKER / "sbom.py").read_bytes(),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(json.loads(told.stdout), indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
