"""The package shown in docs/networks.md, built and installed by pip into a separate folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from shown_package import install_shown_package


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package was installed into."""
    target = tmp_path_factory.mktemp("toy_installed")
    install_shown_package(target)
    return target
