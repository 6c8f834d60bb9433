from pathlib import Path

import pytest

from domain.tools import ToolContext


def tool_use(directory: Path, id: str = "toolu_1") -> ToolContext:
    return ToolContext(workspace_id="wrkspc_1", session_id="sesn_1", run_id="run_1", tool_use_id=id, directory=directory)


@pytest.fixture
def context(tmp_path: Path) -> ToolContext:
    return tool_use(tmp_path / "run")
