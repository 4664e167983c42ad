"""What surrounds the code: dependency bounds, the wheel, the workflow."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fer_lightning"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_dependency_has_bounds_and_a_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    dependencies = [line.strip() for line in lines if re.match(r' +"[\w.-]+[<>=]', line)]
    assert len(dependencies) > 20
    for line in dependencies:
        assert re.fullmatch(r'"[\w.-]+(==[\w.]+|>=[\w.]+,<[\w.]+)", +# \S.+', line), line


def test_lowest_versions_are_the_lower_bounds(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    dependencies = project["dependencies"] + [d for name in extras if name != "dev" for d in extras[name]]
    lowest = {re.sub(r"[>=]=([\w.]+).*", r"==\1", dependency) for dependency in dependencies}
    lines = (ROOT / "requirements-min.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == lowest


def test_wheel_contains_config_groups_and_page_templates(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"fer_lightning/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert "fer_lightning/conf/config.yaml" in configs
    assert configs <= packed
    templates = {f"fer_lightning/report/templates/{path.name}" for path in (PACKAGE / "report/templates").iterdir()}
    assert (
        {"fer_lightning/report/templates/style.css", "fer_lightning/report/templates/run.html"} <= templates <= packed
    )
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"fer_lightning"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_fits_the_schema(workflow: Path) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)]
    check = subprocess.run(command, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(workflow: Path) -> None:
    uses = re.findall(r"uses: *(.+)", workflow.read_text(encoding="utf-8"))
    assert uses
    for action in uses:
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action), action
