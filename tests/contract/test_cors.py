"""Pages of other origins: those that the operator names, with every answer."""

from collections.abc import Iterator

import httpx2
import pytest
from pydantic import ValidationError

from settings import Settings
from tests.service import ServiceThread, Workspace

PAGE, OTHER = "https://app.example.com", "https://evil.example.com"

pytestmark = pytest.mark.single_database


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory, service: ServiceThread) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("cors")
    with ServiceThread(data, None, temporal=service.temporal_address, cors_origins=(PAGE, "http://localhost:5173")) as running:
        yield running


def preflight(url: str, origin: str, method: str) -> httpx2.Response:
    headers = "authorization,idempotency-key,last-event-id"
    asked = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return httpx2.options(url, headers={"Origin": origin, **asked})


def test_a_page_that_is_named_may_call_and_read_every_answer(open_service: ServiceThread) -> None:
    with open_service.workspace() as workspace:
        run = workspace.start({"text": "hi"})
        run.wait()
        path = f"/v1/sessions/{run.row['session_id']}"
        for method in ("GET", "POST", "PATCH", "DELETE"):
            asked = preflight(open_service.url + path, PAGE, method)
            assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
            assert method in asked.headers["access-control-allow-methods"]
            assert "last-event-id" in asked.headers["access-control-allow-headers"].lower()
            assert "access-control-allow-credentials" not in asked.headers
            assert asked.headers["request-id"].startswith("req_")
        answers = [
            workspace.http.get(path, headers={"Origin": PAGE}),
            workspace.http.get("/v1/sessions/sesn_x", headers={"Origin": PAGE}),
            workspace.http.post(f"{path}/messages", json={}, headers={"Origin": PAGE}),
            workspace.http.get("/nowhere", headers={"Origin": PAGE}),
            httpx2.get(open_service.url + path, headers={"Origin": PAGE}),
            workspace.http.get(f"/v1/runs/{run.id}/events/stream", headers={"Origin": PAGE}),
        ]
        assert [answer.status_code for answer in answers] == [200, 404, 422, 404, 401, 200]
        for answer in answers:
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert {"Request-Id", "Retry-After", "Location"} <= set(answer.headers["access-control-expose-headers"].split(", "))
            assert answer.headers["vary"] == "Origin"


def test_no_other_page_may(open_service: ServiceThread, workspace: Workspace) -> None:
    with open_service.workspace() as opened:
        assert "access-control-allow-origin" not in opened.http.get("/v1/runs", headers={"Origin": OTHER}).headers
    assert preflight(open_service.url + "/v1/runs", OTHER, "POST").status_code == 400
    shut = workspace.http.get("/v1/runs", headers={"Origin": PAGE})
    assert "access-control-allow-origin" not in shut.headers
    assert preflight(workspace.service.url + "/v1/runs", PAGE, "POST").status_code == 405


def test_origins_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_CORS_ORIGINS", "https://a.example, http://localhost:5173,")
    assert Settings().cors_origins == ("https://a.example", "http://localhost:5173")
    monkeypatch.setenv("PERDURE_CORS_ORIGINS", "*")
    assert Settings().cors_origins == ("*",)
    for wrong in ("https://a.example/", "a.example", "https://*.example"):
        monkeypatch.setenv("PERDURE_CORS_ORIGINS", wrong)
        with pytest.raises(ValidationError):
            Settings()
