"""`make manifests`: builds every overlay and checks it. `--final DIR`: also refuses what must still be edited."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.k8s.manifests import COMPONENTS, K8S, OVERLAYS, KubectlError, Manifest, build, build_with_components, load
from tests.k8s.rules import RULES, breaches, placeholders
from tests.k8s.schemas import VERSIONS, schema_problems

_EXAMPLES = ("external-secrets.example.yaml", "kueue.example.yaml")


def main() -> int:
    """Returns 0 if nothing is wrong, 1 if a check fails, 2 if kubectl cannot build an overlay."""
    parser = argparse.ArgumentParser(prog="python -m tests.k8s", description=__doc__)
    parser.add_argument("overlays", nargs="*", type=Path, default=OVERLAYS, help="Default: those of k8s/overlays.")
    parser.add_argument("--final", action="store_true", help="Placeholders are problems: before you apply an overlay.")
    parser.add_argument("--output", type=Path, help="Folder for what was built.")
    options = parser.parse_args()
    problems: list[str] = []
    try:
        built = _built(options.overlays, with_components=not options.final)
    except KubectlError as error:
        _say(f"Error: {error}")
        return 2
    for name, manifests in built.items():
        left = placeholders(manifests)
        found = [problem for manifest in manifests for problem in schema_problems(manifest)]
        found += [f"{rule}: {line}" for rule, lines in breaches(manifests).items() for line in lines]
        found += [f"to be edited: {line}" for line in left] if options.final else []
        problems += [f"{name}: {problem}" for problem in found]
        _say(f"{name}: {len(manifests)} objects, {len(found)} problems, {len(left)} placeholders to edit.")
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            text = "---\n".join(_dump(manifest) for manifest in manifests)
            (options.output / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name in _EXAMPLES:
        problems += [f"{name}: {p}" for one in load((K8S / name).read_text()) for p in schema_problems(one)]
    _say(f"Schemas of Kubernetes {', '.join(VERSIONS)} and of the custom resources; {len(RULES)} rules.")
    for problem in problems:
        _say(f"  {problem}")
    return 1 if problems else 0


def _built(overlays: list[Path], *, with_components: bool) -> dict[str, list[Manifest]]:
    """By name each overlay as it is, and, to see that they fit, with the optional components."""
    built = {overlay.name: build(overlay) for overlay in overlays}
    if with_components:
        names = ", ".join(component.name for component in COMPONENTS)
        built |= {f"{overlay.name} with {names}": build_with_components(overlay) for overlay in overlays}
    return built


def _dump(manifest: dict) -> str:
    import yaml

    return yaml.safe_dump(manifest, sort_keys=False, width=1000)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
