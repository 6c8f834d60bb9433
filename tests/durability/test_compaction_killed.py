"""A worker dies while the context is compacted: the next one does it again, once, and the turn is answered."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.durability.process import AUTH, Fleet
from tests.providers.strict import strict_model

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(120)]

CONFIG = """
[providers.small]
kind = "openai_compatible"
base_url = "{url}/v1"
context_tokens = 4000
"""
LONG = "Much was said and little of it was of any use to anybody at all. " * 70


def test_a_compaction_whose_worker_dies_is_made_again(tmp_path: Path) -> None:
    with strict_model(4_000) as model, Fleet(tmp_path) as fleet:
        (tmp_path / "perdure.toml").write_text(CONFIG.format(url=model.url))
        fleet.temporal()
        fleet.migrate()
        fleet.api().ready()
        worker = fleet.worker()
        worker.says("worker is ready")
        with httpx2.Client(base_url=fleet.urls[0], headers=AUTH, timeout=90) as http:

            def send(text: str) -> dict[str, Any]:
                more = {"session_id": session} if session else {"agent": {"name": "a", "model": "small:strict"}}
                answer = http.post("/v1/runs", json={"input": text, **more})
                assert answer.status_code == 201, answer.text
                return answer.json()

            def ended(run: dict[str, Any]) -> dict[str, Any]:
                return http.get(f"/v1/runs/{run['id']}/wait", params={"timeout_seconds": 60}).json()

            session = None
            first = ended(send(f"fact-one {LONG}"))
            session = first["session_id"]
            assert ended(send(f"fact-two {LONG}"))["status"] == "completed"
            model.broken = "held"
            third = send(f"fact-three {LONG}")
            assert model.asked.wait(30)
            fleet.worker().says("worker is ready")
            worker.kill()
            model.broken = None

            assert ended(third)["status"] == "completed"
            assert "fact-one" in ended(send("recall"))["output"]
            log = http.get(f"/v1/sessions/{session}/events", params={"limit": 1000}).json()["data"]
        compactions = [event for event in log if event["type"] == "agent.thread_context_compacted"]
        assert [done["error"] for done in compactions] == [None]
        ends = [event for event in log if event["type"] == "span.model_request_end" and event["purpose"] == "compaction"]
        assert [end["error"] and end["error"]["code"] for end in ends] == ["worker_lost", None]
        assert model.faults == []
