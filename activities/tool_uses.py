"""What is decided about the tool uses of an answer, in the transaction that writes it: asked about, waited for, or called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from pydantic import JsonValue

from domain.agents import AgentConfig, ApprovalPolicy
from domain.clock import now
from domain.commands import Gate, ToolRef
from domain.completions import ToolUse
from domain.errors import ToolFailed
from domain.events import (
    AgentCustomToolUse,
    AgentMcpToolResult,
    AgentMcpToolUse,
    AgentQuestion,
    AgentToolResult,
    AgentToolUse,
    ApprovalRequested,
    Event,
    EventPayload,
    RunWaiting,
    SessionIdle,
    TextContent,
)
from domain.ids import new_id
from domain.runs import StopReason
from domain.tools import OfferedTool, Wait
from storage.journal import Draft
from storage.runs import Place
from storage.tables import ApprovalRow, WaitRow
from storage.waits import Open, of_people, standing

DENIED = "This agent may not use that tool here."
Permission = Literal["allow", "ask", "deny"]
_PERMISSIONS: Mapping[str, Permission] = {"always_allow": "allow", "always_ask": "ask", "always_deny": "deny"}


@dataclass
class Decided:
    """The events of an answer's tool uses, and the rows that go with them."""

    drafts: list[Draft] = field(default_factory=list[Draft])
    denials: list[Draft] = field(default_factory=list[Draft])
    """Results, which come after all tool uses: between two of them they would part the answer for the model."""
    rows: list[ApprovalRow | WaitRow] = field(default_factory=list[ApprovalRow | WaitRow])
    waiting: list[Open] = field(default_factory=list[Open])
    called: int = 0
    """Tool uses that are called at once."""

    @property
    def run_changes(self) -> dict[str, object]:
        return standing(self.waiting) if self.waiting else {}

    def idle(self) -> list[Draft]:
        """That the session waits for people, unless tools run meanwhile: then that is said when they are done."""
        people = of_people(self.waiting)
        if not people or self.called:
            return []
        return [Draft(SessionIdle(stop_reason=StopReason(type="requires_action", event_ids=people)))]


class ToolUses:
    def __init__(self, place: Place, config: AgentConfig, tools: Mapping[str, OfferedTool]) -> None:
        self._place = place
        self._config = config
        self._tools = tools
        self._moment = now()
        self.decided = Decided()

    def take(self, block: ToolUse) -> None:
        tool = self._tools.get(block.name)
        if tool is None:
            self._write(block, None, {})
            self.decided.called += 1
            return
        wait = _wait(tool, block)
        permission = _PERMISSIONS[self._place.permissions.get(tool.name, tool.policy)]
        if permission == "ask" and wait is not None and wait.kind != "subagent":
            permission = "allow"  # it only waits, for the person who would be asked or for nobody
        if permission == "ask" and block.malformed is not None:
            permission = "allow"  # nothing can be shown, and nothing is run: the model is told what is wrong with it
        private: dict[str, JsonValue] = {"timeout_seconds": tool.timeout_seconds}
        if permission == "deny":
            self._deny(self._write(block, tool, {"denied": True}, permission))
        elif permission == "ask":
            self._ask(block, tool, private, wait)
        elif wait is not None:
            self._wait(block, tool, private, wait)
        else:
            self._write(block, tool, private, permission)
            self.decided.called += 1

    def _write(
        self, block: ToolUse, tool: OfferedTool | None, private: dict[str, JsonValue], permission: Permission | None = None
    ) -> str:
        """What was decided is kept with the use: whoever reads the answer again must decide the same."""
        payload: AgentToolUse | AgentCustomToolUse | AgentMcpToolUse
        if tool is not None and tool.kind == "custom" and block.malformed is None:
            payload = AgentCustomToolUse(name=block.name, input=block.input)
        elif tool is not None and tool.origin is not None:
            server, name = tool.origin
            payload = AgentMcpToolUse(
                mcp_server_name=server,
                name=name,
                input=block.input,
                malformed=block.malformed,
                evaluated_permission=permission,
            )
            private = {**private, "effect": tool.effect.value}
        else:
            payload = AgentToolUse(
                name=block.name, input=block.input, malformed=block.malformed, evaluated_permission=permission
            )
        draft = Draft(payload, private=private or None)
        self.decided.drafts.append(draft)
        return draft.id

    def _deny(self, tool_use_id: str) -> None:
        payload = self.decided.drafts[-1].payload
        self.decided.denials.append(Draft(result_of(payload, tool_use_id, DENIED, is_error=True)))

    def _ask(self, block: ToolUse, tool: OfferedTool, private: dict[str, JsonValue], wait: Wait | None) -> None:
        policy = self._config.approvals or (
            ApprovalPolicy() if self._place.kind == "task" else ApprovalPolicy(on_timeout="wait")
        )
        expires_at = None if policy.on_timeout == "wait" else self._moment + timedelta(seconds=policy.timeout_seconds)
        gate = Gate(approval_id=new_id("appr"), until=_unix(expires_at), on_timeout=policy.on_timeout)
        private |= {"gate": gate.model_dump(mode="json")}
        if wait is not None:
            private |= {"wait": wait.kind, "at_once": wait.at_once}
        use = self._write(block, tool, private, "ask")
        shown = ApprovalRequested(
            approval_id=gate.approval_id, tool_use_id=use, name=tool.name, input=block.input, expires_at=expires_at
        )
        self.decided.drafts.append(Draft(shown))
        self.decided.rows.append(
            ApprovalRow(
                id=gate.approval_id,
                workspace_id=self._place.workspace_id,
                session_id=self._place.session_id,
                run_id=self._place.run_id,
                thread_id=self._place.thread_id,
                tool_use_id=use,
                tool_name=tool.name,
                input=block.input,
                input_schema=tool.spec.input_schema,
                on_timeout=policy.on_timeout,
                expires_at=expires_at,
                created_at=self._moment,
            )
        )
        self.decided.waiting.append(Open(use, "approval"))

    def _wait(self, block: ToolUse, tool: OfferedTool, private: dict[str, JsonValue], wait: Wait) -> None:
        if wait.kind == "subagent":
            self._write(block, tool, private | {"wait": wait.kind, "at_once": wait.at_once}, "allow")
            self.decided.called += 1
            return
        private |= {"wait": wait.kind, "until": _unix(wait.until)}
        use = self._write(block, tool, private, "allow")
        if wait.question is not None:
            self.decided.drafts.append(Draft(wait.question.model_copy(update={"tool_use_id": use})))
        elif wait.kind in ("time", "event"):
            told = RunWaiting.model_validate(
                {"tool_use_id": use, "waiting_for": wait.kind, "until": wait.until, "event_type": wait.event_type}
            )
            self.decided.drafts.append(Draft(told))
        self.decided.rows.append(
            WaitRow(
                tool_use_id=use,
                workspace_id=self._place.workspace_id,
                session_id=self._place.session_id,
                run_id=self._place.run_id,
                kind=wait.kind,
                event_type=wait.event_type,
                event_match=None if wait.event_match is None else dict(wait.event_match),
                answer_schema=_answer_schema(wait.question),
                until=wait.until,
                created_at=self._moment,
            )
        )
        self.decided.waiting.append(Open(use, wait.kind))


def result_of(
    use: EventPayload, tool_use_id: str, text: str, *, is_error: bool, duration_ms: int | None = None
) -> AgentToolResult | AgentMcpToolResult:
    """The event of a result, of the type that goes with the use."""
    content = (TextContent(text=text),)
    if isinstance(use, AgentMcpToolUse):
        return AgentMcpToolResult(mcp_tool_use_id=tool_use_id, content=content, is_error=is_error, duration_ms=duration_ms)
    return AgentToolResult(tool_use_id=tool_use_id, content=content, is_error=is_error, duration_ms=duration_ms)


def tool_refs(events: Sequence[Event]) -> list[ToolRef]:
    """The tool uses among the events of an answer that the workflow has to do something about."""
    refs: list[ToolRef] = []
    for event in events:
        private = event.private or {}
        if isinstance(event.payload, AgentToolUse | AgentCustomToolUse | AgentMcpToolUse) and not private.get("denied"):
            refs.append(ToolRef.model_validate({"id": event.id, "name": event.payload.name, **private}))
    return refs


def _wait(tool: OfferedTool, block: ToolUse) -> Wait | None:
    """None: it is called, perhaps only to say what is wrong with its arguments."""
    if tool.plan_wait is None or block.malformed is not None:
        return None
    try:
        return tool.plan_wait(block.input)
    except ToolFailed:
        return None


def _answer_schema(question: AgentQuestion | None) -> dict[str, JsonValue] | None:
    if question is None:
        return None
    if question.choices is not None:
        return {"enum": list(question.choices)}
    return question.answer_schema


def _unix(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
