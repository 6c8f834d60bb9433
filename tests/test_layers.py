"""The import contracts of pyproject.toml bite: each one is broken once on purpose, in a copy."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.single_database

ROOT = Path(__file__).parent.parent


class Contract(BaseModel):
    id: str
    name: str


class ImportLinter(BaseModel):
    root_packages: tuple[str, ...]
    contracts: tuple[Contract, ...]


LINTER = ImportLinter.model_validate(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"])

# Contract: a module, and an import that does not belong there.
BREAKS = {
    "layers": ("activities/tools.py", "import workflows.options"),
    "independence": ("live/memory.py", "import storage.tables"),
    "domain": ("domain/runs.py", "import sqlalchemy"),
    "frameworks": ("storage/runs.py", "from temporalio.client import Client"),
    "workflows": ("workflows/agent_run.py", "from storage.runs import Runs"),
    "api": ("api/app.py", "from activities.tools import ToolActivities"),
    "settings": ("providers/registry.py", "def late() -> None:\n    from settings import Settings"),
}


def test_every_contract_is_broken_once() -> None:
    assert list(BREAKS) == [contract.id for contract in LINTER.contracts]


@pytest.mark.parametrize("contract", LINTER.contracts, ids=lambda contract: contract.id)
def test_a_forbidden_import_breaks_the_contract(contract: Contract, tmp_path: Path) -> None:
    module, forbidden = BREAKS[contract.id]
    for package in LINTER.root_packages:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert f"{contract.name} KEPT" in _lint(tmp_path)

    with (tmp_path / module).open("a") as source:
        source.write(f"\n{forbidden}\n")

    assert f"{contract.name} BROKEN" in _lint(tmp_path)


def _lint(directory: Path) -> str:
    # The console script, with only the copy on the path: the tests' own path leads to the originals.
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=60).stdout
