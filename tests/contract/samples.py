"""What several tests of the contract need one of."""

from tests.service import Workspace


def pending_approval(workspace: Workspace) -> str:
    """The id of an approval that waits for somebody to decide."""
    tools = [{"type": "function", "name": "write", "permission_policy": {"type": "always_ask"}}]
    run = workspace.start({"tools": [{"name": "write", "input": {"file_path": "a", "content": "x"}}]}, tools=tools)
    run.until(lambda row: row["waiting_for"] == "approval")
    return workspace.get("/v1/approvals", run_id=run.id)["data"][0]["id"]
