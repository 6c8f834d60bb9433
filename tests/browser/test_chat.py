"""The example's page in Chromium, at another origin than the service: what a user sees while things break."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import ROOT, example_backend
from tests.commands.proxy import Proxy, cutting_proxy
from tests.durability.process import AUTH, KEY, Machine
from tests.npm import NODE, install
from tests.service import ServiceThread, Workspace

pytestmark = [pytest.mark.single_database, pytest.mark.timeout(180)]

SLOW = {"text": "Slowly:", "words": 400, "delay_ms": 40, "chunk_chars": 8}
WATCH = """
  window.shown = [];
  new MutationObserver(() => {
    const last = [...document.querySelectorAll('li.agent')].at(-1)?.textContent ?? null;
    if (last !== window.shown.at(-1)) window.shown.push(last);
  }).observe(document, { childList: true, subtree: true, characterData: true });
"""


@pytest.fixture(scope="module")
def open_service(tmp_path_factory: pytest.TempPathFactory, service: ServiceThread, origin_port: int) -> Iterator[ServiceThread]:
    """One that this page may call."""
    data = tmp_path_factory.mktemp("browser")
    origins = (f"http://127.0.0.1:{origin_port}",)
    with ServiceThread(data, None, temporal=service.temporal_address, cors_origins=origins) as running:
        yield running


@pytest.fixture
def workspace(open_service: ServiceThread) -> Iterator[Workspace]:
    with open_service.workspace() as fresh:
        yield fresh


@pytest.fixture
def proxy(open_service: ServiceThread) -> Iterator[Proxy]:
    with cutting_proxy(open_service.settings.port, ()) as proxy:
        yield proxy


@pytest.fixture
def origin(tmp_path: Path, workspace: Workspace, proxy: Proxy, origin_port: int) -> Iterator[str]:
    agent = workspace.agent()["id"]
    with example_backend(tmp_path / "page", workspace.service.url, workspace.key, agent, origin_port, proxy.url) as origin:
        yield origin


def say(page: Page, *steps: dict[str, Any]) -> None:
    page.get_by_label("Message").fill(json.dumps({"script": steps}))
    page.get_by_role("button", name="Send").click()


def written(page: Page, at_least: int) -> str:
    """What is shown of the answer, once it has so many characters."""
    page.wait_for_function(f"(document.querySelector('li.agent')?.textContent ?? '').length >= {at_least}", timeout=30_000)
    return page.locator("li.agent").last.inner_text()


def shown(page: Page) -> list[str]:
    """Every text that the newest answer ever had."""
    return [text for text in page.evaluate("window.shown") if text is not None]


def ended(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-status", "idle", timeout=60_000)


def answer(workspace: Workspace) -> str:
    (session,) = workspace.get("/v1/sessions")["data"]
    events = workspace.get(f"/v1/sessions/{session['id']}/events", types="agent.message", limit=1000)["data"]
    return events[-1]["content"][0]["text"]


def grew_only(texts: list[str], final: str) -> None:
    """Piece by piece, to the final text: nothing was ever missing or twice."""
    assert len(texts) > 10
    assert texts[-1] == final
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_a_chat_goes_on_while_its_connection_is_cut(page: Page, origin: str, workspace: Workspace, proxy: Proxy) -> None:
    page.add_init_script(WATCH)
    page.goto(origin)
    say(page, SLOW, {"text": "Second."})
    lengths = [len(written(page, 20))]
    for _ in range(3):
        proxy.cut()
        lengths.append(len(written(page, lengths[-1] + 40)))
    ended(page)

    final = answer(workspace)
    assert lengths[-1] < len(final), "it was cut in the middle of the text"
    grew_only(shown(page), final)
    expect(page.locator("li")).to_have_count(2)

    page.reload()
    expect(page.locator("li.agent")).to_have_text(final)
    expect(page.locator("li")).to_have_count(2)
    say(page, {"text": "And *now*?"})
    expect(page.locator("li.agent").last).to_have_text("And *now*?")
    expect(page.locator("li")).to_have_count(4)


def test_a_page_in_the_middle_of_a_text_when_its_token_expires_gets_another_one(
    page: Page, origin: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.client_tokens.CLIENT_TOKEN_LASTS", timedelta(seconds=2))
    tokens: list[str] = []
    page.on("response", lambda response: tokens.append(response.url) if response.url.endswith("/token") else None)
    page.add_init_script(WATCH)
    page.goto(origin)
    say(page, SLOW)
    written(page, 20)
    ended(page)

    grew_only(shown(page), answer(workspace))
    assert len(tokens) >= 2
    time.sleep(2.5)  # also the one that sends is told to get a fresh one
    say(page, {"text": "Still here."})
    expect(page.locator("li.agent").last).to_have_text("Still here.", timeout=20_000)


def test_a_message_is_sent_until_it_is_known_to_have_arrived(page: Page, origin: str) -> None:
    """Its first sending is still under way at the service; then its token has expired, and the page's backend is away."""
    refusals = [(401, "token_expired"), (409, "idempotency_in_flight")]
    away = [502, 502]

    def refuse(route: Route) -> None:
        if route.request.method == "POST" and refusals:
            status, code = refusals.pop()
            route.fulfill(status=status, json={"code": code}, headers={"Access-Control-Allow-Origin": origin})
        else:
            route.continue_()

    page.goto(origin)
    say(page, {"text": "First."})
    expect(page.locator("li.agent")).to_have_text("First.")
    page.route("**/messages", refuse)
    page.route("**/token", lambda route: route.fulfill(status=away.pop()) if away else route.continue_())
    say(page, {"text": "Second."})
    expect(page.locator("li.agent").last).to_have_text("Second.", timeout=20_000)
    assert (refusals, away) == ([], [])
    expect(page.locator("li")).to_have_count(4)


def test_a_link_does_not_say_where_the_token_goes(page: Page, origin: str) -> None:
    page.goto(origin)
    say(page, {"text": "Hello."})
    expect(page.locator("li.agent")).to_have_text("Hello.")
    session_id = page.url.partition("#")[2]
    assert session_id.startswith("sesn_")
    asked: list[str] = []
    page.route("http://evil.invalid/**", lambda route: (asked.append(route.request.url), route.abort())[1])
    link = base64.b64encode(json.dumps({"url": "http://evil.invalid", "session_id": session_id}).encode()).decode()
    page.goto("about:blank")
    page.goto(f"{origin}/#{link}")
    page.wait_for_timeout(1500)
    assert asked == []


def test_a_page_of_an_origin_that_is_not_named_gets_nothing(page: Page, workspace: Workspace, service: ServiceThread) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent()["id"]})["id"]
    token = workspace.post(f"/v1/sessions/{session}/client_tokens")["token"]
    page.goto(f"{service.url}/openapi.json")
    asked = (
        "([url, token]) => fetch(url, { headers: { Authorization: `Bearer ${token}` } }).then(() => 'read', () => 'refused')"
    )
    assert page.evaluate(asked, [f"{workspace.service.url}/v1/sessions/{session}", token]) == "refused"


def test_a_sub_agent_whose_call_fails_takes_no_other_text_away(
    page: Page, tmp_path: Path, workspace: Workspace, origin_port: int
) -> None:
    agent = workspace.agent(name="lead", multiagent={"agents": [{"type": "self"}]})["id"]
    slow = {"text": "Slowly, but to its end.", "delay_ms": 400, "chunk_chars": 2}
    broken = {"text": "Broken once.", "delay_ms": 100, "chunk_chars": 4, "truncate_attempts": 1}
    tasks = [{"agent": "lead", "task": json.dumps({"script": [step]})} for step in (slow, broken)]
    page.add_init_script("""
      new MutationObserver(() => {
        const texts = [...document.querySelectorAll('li.agent')].map((li) => li.textContent);
        window.begun ||= texts.some((text) => text.startsWith('Sl'));
        window.broke ||= texts.some((text) => text.startsWith('Brok'));
        window.lost ||= window.begun && !texts.some((text) => text.startsWith('Sl'));
      }).observe(document, { childList: true, subtree: true, characterData: true });
    """)
    with example_backend(tmp_path / "page", workspace.service.url, workspace.key, agent, origin_port) as origin:
        page.goto(origin)
        say(page, {"tools": [{"name": "delegate", "input": task} for task in tasks]}, {"text": "The end."})
        expect(page.locator("li.agent").last).to_have_text("The end.", timeout=30_000)
    assert page.evaluate("[window.begun, window.broke, window.lost]") == [True, True, False]
    expect(page.locator("li.agent").filter(has_text="Slowly, but to its end.")).to_have_count(1)
    expect(page.locator("li.agent").filter(has_text="Broken once.")).to_have_count(1)


def test_the_service_is_killed_in_the_middle_of_a_text(page: Page, tmp_path: Path, origin_port: int) -> None:
    with Machine(tmp_path, PERDURE_CORS_ORIGINS=f"http://127.0.0.1:{origin_port}") as machine:
        up = machine.up()
        up.ready()
        agent = httpx2.post(f"{up.url}/v1/agents", json={"name": "a", "model": "demo:script"}, headers=AUTH).json()["id"]
        with example_backend(tmp_path / "page", up.url, KEY, agent, origin_port) as origin:
            page.goto(origin)
            say(page, SLOW)
            before = written(page, 60)
            up.kill()
            log = up.output
            up.start()
            up.ready()
            ended(page)
            final = page.locator("li.agent").inner_text()
            assert final.startswith(before)
            assert final.endswith(" 400")
            expect(page.locator("li")).to_have_count(2)
        assert "pct_" not in log + up.output


REACT = """
import {{ createElement as e }} from "react";
import {{ createRoot }} from "react-dom/client";
import {{ usePerdureSession }} from "./usePerdureSession.js";
const post = (path) => fetch(path, {{ method: "POST" }}).then((answer) => answer.json());
const {{ url, session_id: sessionId }} = await post("/chats");
function Chat() {{
  const getToken = async () => (await post(`/chats/${{sessionId}}/token`)).token;
  const {{ messages, status, send }} = usePerdureSession({{ url, sessionId, getToken }});
  document.body.dataset.status = status;
  const submit = (event) => {{ event.preventDefault(); send(event.target.elements.text.value); }};
  return e("main", null,
    e("ol", null, messages.map(({{ id, role, text }}) => e("li", {{ key: id, className: role }}, text))),
    e("form", {{ onSubmit: submit }}, e("input", {{ name: "text", "aria-label": "Message" }}), e("button", null, "Send")));
}}
createRoot(document.getElementById("root")).render({root});
"""
STRICT = "e(StrictMode, null, e(Chat))"


def react() -> dict[str, str]:
    """React's packages as modules of a page: they are CommonJS, and nothing here bundles."""
    names = {
        "react": ("react", "react", "createElement useCallback useEffect useRef useState StrictMode"),
        "react-dom": ("react-dom", "react-dom", ""),
        "scheduler": ("scheduler", "scheduler", ""),
        "react-dom/client": ("react-dom", "react-dom-client", "createRoot"),
    }
    source = "const modules = {}, require = (name) => modules[name]; globalThis.required = require;"
    for name in ("react", "scheduler", "react-dom", "react-dom/client"):
        package, file, _ = names[name]
        code = (NODE / "node_modules" / package / "cjs" / f"{file}.production.js").read_text()
        source += f"\n{{ const module = {{ exports: {{}} }}, exports = module.exports;\n(function () {{ {code} }})();"
        source += f"\nmodules[{name!r}] = module.exports; }}"
    modules = {"bundle.js": source}
    for name in ("react", "react-dom/client"):
        exported = ", ".join(names[name][2].split())
        modules[f"{name}.js"] = (
            f"import './{'../' * name.count('/')}bundle.js'; export const {{ {exported} }} = required({name!r});"
        )
    return modules


def test_the_react_hook_shows_a_chat(page: Page, origin: str, workspace: Workspace, proxy: Proxy, tmp_path: Path) -> None:
    install()
    imports = {"react": "/react.js", "react-dom/client": "/react-dom/client.js"}
    component = REACT.format(root=STRICT).replace("createElement as e }", "createElement as e, StrictMode }")
    html = f"""<!doctype html><div id="root"></div>
      <script type="importmap">{json.dumps({"imports": imports})}</script><script type="module">{component}</script>"""
    for path, content in {**react(), "react.html": html}.items():
        file = tmp_path / "page" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    page.add_init_script(WATCH)
    page.goto(f"{origin}/react.html")
    say(page, SLOW)
    for length in (20, 150):
        written(page, length)
        proxy.cut()
    ended(page)
    grew_only(shown(page), answer(workspace))
    say(page, {"text": "Again."})
    expect(page.locator("li.agent").last).to_have_text("Again.")
    expect(page.locator("li")).to_have_count(4)


def test_the_example_is_forty_lines() -> None:
    assert len((ROOT / "examples" / "browser" / "chat.js").read_text().splitlines()) <= 40
