"""Writes a CycloneDX 1.6 SBOM of the image that it runs in to stdout: Python distributions and Debian packages.

`docker/build.py` feeds it to the finished image, so that the list is of what is there, and not of what was asked for:

    docker run --rm -i IMAGE python3 - NAME DIGEST < docker/sbom.py
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import uuid
from typing import Any


def main() -> None:
    """Entry point."""
    image, digest = sys.argv[1:3]
    components = sorted([*_python(), *_debian()], key=lambda component: component["bom-ref"])
    identity = "\n".join([digest, *(component["bom-ref"] for component in components)])
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": "image", "name": image, "version": digest},
        },
        "components": components,
    }
    sys.stdout.write(json.dumps(bom))


def _python() -> list[dict[str, Any]]:
    """Every distribution that Python sees."""
    found = {}
    for distribution in importlib.metadata.distributions():
        about = distribution.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
        component = {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{distribution.version}",
            "name": name,
            "version": distribution.version,
            "purl": f"pkg:pypi/{name}@{distribution.version.replace('+', '%2B')}",
        }
        # `License` may hold a whole text; CycloneDX wants a name.
        if expression := about.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        elif (license_ := about.get("License")) and "\n" not in license_ and len(license_) < 100:
            component["licenses"] = [{"license": {"name": license_}}]
        found[component["bom-ref"]] = component
    return list(found.values())


def _debian() -> list[dict[str, Any]]:
    """Every Debian package, where the base is a Debian."""
    if not shutil.which("dpkg-query"):
        return []
    listing = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [_package(*line.split()) for line in listing.splitlines()]


def _package(name: str, version: str, architecture: str) -> dict[str, Any]:
    quoted = version.replace("+", "%2B").replace(":", "%3A")
    purl = f"pkg:deb/debian/{name}@{quoted}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


main()
