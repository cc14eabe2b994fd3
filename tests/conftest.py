"""Shared by all tests: where real data lies, and a cache that is not the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("EDGESEG_DATA", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with CamVid and real weights; without it, the test is skipped and says so."""
    if not (DATA / "data" / "camvid").is_dir():
        pytest.skip(f"no data at {DATA}: set EDGESEG_DATA to the folder that holds data/camvid and models")
    return DATA


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
