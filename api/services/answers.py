"""Where people, and the world outside, answer what a run waits for: row and event first, then the signal."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pydantic import JsonValue

from api.content import Given
from api.transaction import Unit
from domain.approvals import Approval, ApprovalStatus, Decision
from domain.clock import now
from domain.commands import ApproveSignal
from domain.errors import AlreadyAnswered, ApprovalDecided, Invalid, NotFound, Pointer, RunFinished
from domain.events import Event, ExternalEvent, TextContent, UserAnswer, UserCustomToolResult
from domain.ids import new_id
from domain.runs import RunStatus
from domain.transcript import plain
from storage.approvals import Approvals
from storage.commands import lock_runs
from storage.decisions import Decisions, state_of_session
from storage.journal import Draft
from storage.runs import Runs
from storage.sessions import Sessions
from storage.tables import ApprovalRow, RunRow, WaitRow
from storage.waits import Waits, standing
from tools.schemas import Schema, SchemaFault
from workflows.client import RunClient

Content = tuple[TextContent, ...]
MOST_WOKEN = 1000
"""Runs that one published event wakes."""
_PAGE = 200
_BEGINNING = (datetime(2000, 1, 1, tzinfo=UTC), "")


class AnswerService:
    def __init__(self, client: RunClient) -> None:
        self._client = client

    async def decide(self, unit: Unit, approval_id: str, decision: Decision) -> ApprovalRow:
        """Raises NotFound, ApprovalDecided, Invalid for edited arguments that the tool does not take."""
        approvals = Approvals(unit.connection)
        found = await approvals.get(approval_id, unit.caller.workspace_id)
        await Runs(unit.connection).get(found.run_id, unit.caller.workspace_id, lock=True)
        approval = await approvals.get(approval_id)
        if approval.status != ApprovalStatus.PENDING:
            by = f" by {approval.decided_by}" if approval.decided_by else ""
            raise ApprovalDecided(f"Approval {approval.id} is {approval.status}{by} already.", approval_of(approval))
        if decision.edited_input is not None:
            _check_edited(decision.edited_input, approval.input_schema)
        decision = decision.model_copy(update={"decided_by": unit.caller.key_id})
        settled = await Decisions(unit.connection, unit.journal).settle(approval, decision)
        signal = ApproveSignal(approval_id=approval.id, decision="approve" if decision.approve else "deny")
        unit.deliveries.append(lambda: self._client.approve(approval.run_id, signal))
        return settled

    async def confirm(self, unit: Unit, session_id: str, tool_use_id: str, decision: Decision) -> Event:
        """`user.tool_confirmation`: the same as a decision. Raises NotFound, ApprovalDecided."""
        await Sessions(unit.connection, unit.caller.workspace_id).get(session_id)
        approval = await Approvals(unit.connection).of_tool_use(session_id, tool_use_id)
        await self.decide(unit, approval.id, decision)
        return _appended(unit, session_id, "user.tool_confirmation")

    async def custom_result(
        self, unit: Unit, session_id: str, tool_use_id: str, content: Content, is_error: bool | None
    ) -> Event:
        """The result of a tool that the caller has run. Raises NotFound, AlreadyAnswered, RunFinished."""
        wait, run = await self._open(unit, session_id, tool_use_id, "tool_result")
        result = UserCustomToolResult(custom_tool_use_id=tool_use_id, content=content, is_error=is_error)
        return await self._answer(unit, wait, run, Draft(result))

    async def answer(self, unit: Unit, session_id: str, tool_use_id: str, content: Content) -> Event:
        """An answer to a question. Raises NotFound, AlreadyAnswered, RunFinished, Invalid for one that does not fit."""
        wait, run = await self._open(unit, session_id, tool_use_id, "input")
        _check_fit(content, wait.answer_schema)
        return await self._answer(unit, wait, run, Draft(UserAnswer(tool_use_id=tool_use_id, content=content)))

    async def answer_first(self, unit: Unit, run_id: str, content: Sequence[Given]) -> bool:
        """Answer the question that the run has asked first, if there is one. Raises as `answer` does."""
        run = await Runs(unit.connection).get(run_id, unit.caller.workspace_id, lock=True)
        wait = await Waits(unit.connection).first_question(run_id)
        if wait is not None:
            texts = tuple(block for block in content if isinstance(block, TextContent))
            if len(texts) < len(content):
                fault = Pointer(pointer="/content", detail="The run waits for an answer, which is text.")
                raise Invalid(fault.detail, fault)
            await self.answer(unit, run.session_id, wait.tool_use_id, texts)
        return wait is not None

    async def publish(self, unit: Unit, event_type: str, data: Mapping[str, JsonValue]) -> tuple[str, int]:
        """Wake the workspace's runs that wait for this: the event's id, and how many there were, at most MOST_WOKEN."""
        waiting, after = list[WaitRow](), _BEGINNING
        while len(waiting) < MOST_WOKEN:
            page = await Waits(unit.connection).for_event(unit.caller.workspace_id, event_type, after, _PAGE)
            waiting += [wait for wait in page if _fits(data, wait.event_match or {})]
            if len(page) < _PAGE:
                break
            after = (page[-1].created_at, page[-1].tool_use_id)
        # All at once, in the order of ids: one after the other, this and work in bulk would lock each other out.
        await lock_runs(unit.connection, [wait.run_id for wait in waiting])
        event_id = new_id("xevt")
        return event_id, sum([await self._wake(unit, wait, event_id, event_type, data) for wait in waiting])

    async def _wake(self, unit: Unit, found: WaitRow, event_id: str, event_type: str, data: Mapping[str, JsonValue]) -> bool:
        try:
            wait, run = await self._open(unit, found.session_id, found.tool_use_id, "event")
        except (NotFound, AlreadyAnswered, RunFinished):
            return False  # its time was over, or its run, just before
        received = ExternalEvent(
            tool_use_id=wait.tool_use_id, external_event_id=event_id, event_type=event_type, data=dict(data)
        )
        await self._answer(unit, wait, run, Draft(received))
        return True

    async def _open(self, unit: Unit, session_id: str, tool_use_id: str, kind: str) -> tuple[WaitRow, RunRow]:
        """The wait with its run, which is locked."""
        waits = Waits(unit.connection)
        await Sessions(unit.connection, unit.caller.workspace_id).get(session_id)
        found = await waits.get(session_id, tool_use_id)
        run = await Runs(unit.connection).get(found.run_id, unit.caller.workspace_id, lock=True)
        wait = await waits.get(session_id, tool_use_id)
        if wait.kind != kind:
            raise NotFound(f"No tool use {tool_use_id} that waits for this.")
        if wait.closed_at is not None and wait.answer_id is not None:
            raise AlreadyAnswered(f"Tool use {tool_use_id} has its answer: {wait.answer_id}.")
        if wait.closed_at is not None or RunStatus(run.status).over:
            raise RunFinished(f"Nothing waits for tool use {tool_use_id} any more.")
        return wait, run

    async def _answer(self, unit: Unit, wait: WaitRow, run: RunRow, draft: Draft) -> Event:
        waits = Waits(unit.connection)
        await waits.close(wait.tool_use_id, draft.id)
        waiting = await waits.open_of(run.id)
        drafts = [draft, *state_of_session(waiting, had_people=wait.kind != "event")]
        changes = standing(waiting) | {"answered_at": now()}
        event, *_ = await unit.journal.append(
            run.session_id, run.id, drafts, key=f"answer/{wait.tool_use_id}", run_changes=changes
        )
        unit.deliveries.append(lambda: self._client.input(run.id, draft.id, wait.tool_use_id))
        return event


def _fits(data: Mapping[str, JsonValue], match: Mapping[str, JsonValue]) -> bool:
    return all(name in data and data[name] == value for name, value in match.items())


def approval_of(row: ApprovalRow) -> Approval:
    shown = row.model_dump(exclude={"workspace_id", "input_schema", "thread_id"})
    return Approval.model_validate({**shown, "session_thread_id": row.thread_id})


def _check_fit(content: Content, schema: Mapping[str, JsonValue] | None) -> None:
    if schema is None:
        return
    text = plain(content)
    value: JsonValue = text
    if "enum" not in schema or not _is_text_enum(schema):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            fault = Pointer(pointer="/content", detail="The question wants JSON that fits its `answer_schema`.")
            raise Invalid(fault.detail, fault) from error
    if faults := Schema(schema).faults(value, "answer"):
        raise Invalid(f"The answer does not fit the question: {faults[0]}", *_pointers(faults))


def _check_edited(edited: dict[str, JsonValue], input_schema: Mapping[str, JsonValue]) -> None:
    try:
        faults = Schema(input_schema).faults(edited)
    except SchemaFault:  # an MCP server's, beyond what can be checked safely: the server checks by itself
        return
    if faults:
        raise Invalid(faults[0], *(Pointer(pointer="/input", detail=fault) for fault in faults))


def _is_text_enum(schema: Mapping[str, JsonValue]) -> bool:
    """How the choices of a question are kept."""
    return set(schema) == {"enum"}


def _pointers(faults: list[str]) -> list[Pointer]:
    return [Pointer(pointer="/content", detail=fault) for fault in faults]


def _appended(unit: Unit, session_id: str, type: str) -> Event:
    assert unit.transaction is not None
    return next(event for event in unit.transaction.appended[session_id] if event.type == type)
