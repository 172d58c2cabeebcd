from __future__ import annotations

import os

import pytest

from tests.k8s.manifests import OVERLAYS, KubectlError, Manifest, build, build_with_components


@pytest.fixture(scope="session")
def overlays() -> dict[str, list[Manifest]]:
    """Every overlay as kubectl builds it, as it is and (`dev+`) with all components.

    Without kubectl the tests are skipped, where CI does not require it.
    """
    try:
        plain = {overlay.name: build(overlay) for overlay in OVERLAYS}
        return plain | {f"{overlay.name}+": build_with_components(overlay) for overlay in OVERLAYS}
    except KubectlError as error:
        if os.environ.get("PLUMBLINE_REQUIRE_KUBECTL") == "1" or "kubectl is not" not in str(error):
            pytest.fail(str(error))
        pytest.skip(str(error))
