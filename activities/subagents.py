"""The two ends of a delegation: a sub-agent's run and thread are written before it starts, and its answer when it is over."""

import json
from collections.abc import Mapping

from temporalio import activity

from activities.records import finish
from activities.tools import EDITED, refusal
from domain.agents import AgentConfig, Limits
from domain.approvals import ApprovalStatus, Decision
from domain.clock import now
from domain.commands import Delegated, DelegateInput, FinishInput, Spent, SubagentEnd
from domain.errors import NotFound, RunFinished, ToolFailed
from domain.events import (
    AgentToolResult,
    AgentToolUse,
    RunQueued,
    TextContent,
    ThreadCreated,
    ThreadMessageReceived,
    ThreadMessageSent,
)
from domain.ids import new_id
from domain.multiagent import Multiagent, RosterSelf, thread_of
from domain.runs import RunStatus
from domain.usage import NANO
from storage.agents import config_of
from storage.approvals import Approvals
from storage.database import Connection, Database, Transaction
from storage.decisions import Decisions
from storage.journal import Draft, Journal, read_one, written
from storage.rows import add
from storage.runs import Runs
from storage.starts import Route, run_start
from storage.tables import ApprovalRow, RunRow
from tools.delegate import Delegation, delegation, member

_LIMITS = ("max_steps", "max_tokens", "max_duration", "budget_reached")


class SubagentActivities:
    """Database only."""

    def __init__(self, database: Database, routes: Mapping[str, Route]) -> None:
        self._database = database
        self._routes = routes

    @activity.defn(name="subagents.open")
    async def open(self, asked: DelegateInput) -> Delegated:
        """Write the sub-agent's run and thread, or the result that says why there is none. Done again, it answers the same."""
        async with self._database.write() as transaction:
            runs, journal = Runs(transaction.connection), _journal(transaction)
            result_key = f"{asked.run_id}/{asked.tool_use_id}/result"
            try:
                parent = await runs.get(asked.run_id, lock=True)
                if RunStatus(parent.status).over or await written(transaction.connection, asked.session_id, result_key):
                    return Delegated()
                if before := await written(transaction.connection, asked.session_id, _key(asked)):
                    payload = before[0].payload
                    assert isinstance(payload, ThreadCreated)
                    row = await runs.on_thread(asked.session_id, payload.session_thread_id)
                    return Delegated(start=run_start(row, self._routes))
                use = await read_one(transaction.connection, asked.session_id, asked.tool_use_id)
            except NotFound:  # deleted meanwhile
                return Delegated()
            assert isinstance(use.payload, AgentToolUse)
            input, note = use.payload.input, ""
            if asked.verdict is not None:
                approval = await self._settled(transaction, asked)
                if approval.status != ApprovalStatus.APPROVED:
                    await journal.append(asked.session_id, asked.run_id, [refusal(use, approval)], key=result_key)
                    return Delegated()
                if approval.edited_input is not None:
                    input = approval.edited_input
                    note = EDITED.format(json.dumps(approval.edited_input, ensure_ascii=False))
            try:
                given = delegation(input)
                row = await self._subagent(transaction.connection, parent, given, asked)
            except ToolFailed as error:
                failed = _result(asked.tool_use_id, note + error.message, is_error=True)
                await journal.append(asked.session_id, asked.run_id, [failed], key=result_key)
                return Delegated()
            await self._write(transaction, parent, row, given, _key(asked))
            return Delegated(start=run_start(row, self._routes))

    @activity.defn(name="subagents.close")
    async def close(self, over: SubagentEnd) -> Spent:
        """Give the delegation its result, which is the sub-agent's answer; settle its run if nobody has."""
        async with self._database.write() as transaction:
            runs = Runs(transaction.connection)
            try:
                await runs.get(over.run_id, lock=True)
                row = await runs.get(over.subagent_run_id)
                if not RunStatus(row.status).over:
                    await finish(transaction, _ended(row, over), self._routes)
                    row = await runs.get(over.subagent_run_id)
                tokens, cost = await runs.used_by(row.id)
                await self._answer(transaction, over, row)
            except (NotFound, RunFinished):  # deleted, or terminated, meanwhile
                return Spent(run_id=over.subagent_run_id)
        return Spent(run_id=row.id, output_tokens=tokens, cost_nano_usd=cost)

    async def _settled(self, transaction: Transaction, asked: DelegateInput) -> ApprovalRow:
        verdict = asked.verdict
        assert verdict is not None
        approval = await Approvals(transaction.connection).get(verdict.approval_id)
        decision = None
        if verdict.decision is not None:
            decision = Decision(approve=verdict.decision == "approve", reason=verdict.reason)
        return await Decisions(transaction.connection, _journal(transaction)).settle(approval, decision)

    async def _subagent(self, connection: Connection, parent: RunRow, given: Delegation, asked: DelegateInput) -> RunRow:
        """Raises ToolFailed where it may not be."""
        config = await config_of(connection, parent.agent_id, parent.agent_version)
        multiagent = config.multiagent
        if multiagent is None:
            raise ToolFailed("this agent has nobody to delegate to")
        depth = multiagent.max_depth if parent.depth_left is None else min(parent.depth_left, multiagent.max_depth)
        if depth <= 0:
            raise ToolFailed("agents are nested as deep as they may be: do this yourself")
        entry = member(config, multiagent, given.agent)
        if isinstance(entry, RosterSelf):
            agent_id, version, its = parent.agent_id, parent.agent_version, config
        else:
            agent_id, version = entry.id, entry.version or 1
            its = await config_of(connection, agent_id, version)
        id, moment = new_id("run"), now()
        return RunRow(
            id=id,
            workspace_id=parent.workspace_id,
            session_id=parent.session_id,
            kind="subagent",
            agent_id=agent_id,
            agent_version=version,
            agent_name=its.name,
            model=its.model.id,
            status=RunStatus.QUEUED,
            limits=_shared(its, asked).model_dump(mode="json"),
            meta={} if given.title is None else {"title": given.title},
            parent_run_id=parent.id,
            thread_id=thread_of(id),
            depth_left=depth - 1,
            created_at=moment,
            touched_at=moment,
            # What was asked of the run that delegates holds for this one, which the request could not find.
            pause_requested_at=None if parent.resume_requested_at else parent.pause_requested_at,
            pause_mode=parent.pause_mode,
        )

    async def _write(self, transaction: Transaction, parent: RunRow, row: RunRow, given: Delegation, key: str) -> None:
        await add(transaction.connection, row)
        thread_id = row.thread_id or ""
        content = (TextContent(text=given.task),)
        created = ThreadCreated(session_thread_id=thread_id, agent_name=row.agent_name, title=given.title)
        sent = ThreadMessageSent(to_session_thread_id=thread_id, to_agent_name=row.agent_name, content=content)
        by = parent.thread_id or thread_of(parent.session_id)
        received = ThreadMessageReceived(from_session_thread_id=by, from_agent_name=parent.agent_name, content=content)
        journal = _journal(transaction)
        await journal.append(row.session_id, parent.id, [Draft(created), Draft(sent)], key=key)
        await journal.append(row.session_id, row.id, [Draft(received), Draft(RunQueued())])

    async def _answer(self, transaction: Transaction, over: SubagentEnd, row: RunRow) -> None:
        parent = await Runs(transaction.connection).get(over.run_id)
        config = await config_of(transaction.connection, parent.agent_id, parent.agent_version)
        chars = (config.multiagent or Multiagent(agents=(RosterSelf(),))).result_chars
        text, is_error = _answer_of(row, chars)
        try:
            approval = await Approvals(transaction.connection).of_tool_use(over.session_id, over.tool_use_id)
        except NotFound:
            approval = None
        if approval is not None and approval.edited_input is not None:
            text = EDITED.format(json.dumps(approval.edited_input, ensure_ascii=False)) + text
        received = ThreadMessageReceived(
            from_session_thread_id=row.thread_id or "",
            from_agent_name=row.agent_name,
            content=(TextContent(text=text),),
            tool_use_id=over.tool_use_id,
        )
        drafts = [Draft(received), _result(over.tool_use_id, text, is_error=is_error)]
        key = f"{over.run_id}/{over.tool_use_id}/result"
        await _journal(transaction).append(over.session_id, over.run_id, drafts, key=key)


def _key(asked: DelegateInput) -> str:
    return f"{asked.run_id}/{asked.tool_use_id}/thread"


def _result(tool_use_id: str, text: str, *, is_error: bool) -> Draft:
    return Draft(AgentToolResult(tool_use_id=tool_use_id, content=(TextContent(text=text),), is_error=is_error))


def _shared(config: AgentConfig, asked: DelegateInput) -> Limits:
    """The sub-agent's own limits, and what is left of those of the run that delegates. None of them pauses it: only the whole
    tree is paused."""
    own = config.limits
    changes: dict[str, object] = {"on_limit": "end"}
    if asked.output_tokens_left is not None:
        changes["max_output_tokens"] = max(1, min(own.max_output_tokens or asked.output_tokens_left, asked.output_tokens_left))
    if asked.cost_nano_usd_left is not None:
        left = max(1, asked.cost_nano_usd_left) / NANO
        changes["max_cost_usd"] = min(own.max_cost_usd or left, left)
    if asked.seconds_left is not None:
        changes["max_seconds"] = max(1, min(own.max_seconds or asked.seconds_left, asked.seconds_left))
    return own.model_copy(update=changes)


def _ended(row: RunRow, over: SubagentEnd) -> FinishInput:
    """Of a run whose workflow is over and did not say so: it was ended from outside."""
    status = over.ending or "failed"
    return FinishInput(
        run_id=row.id,
        session_id=row.session_id,
        attempt=row.attempt,
        status=status,
        stop_type="error" if status == "failed" else "interrupted",
        error_code="workflow_failed" if status == "failed" else None,
        error_message="The workflow failed; see its history." if status == "failed" else None,
    )


def _answer_of(row: RunRow, chars: int) -> tuple[str, bool]:
    """What the model that delegated reads, and whether it is an error."""
    thread = f"Its thread: {row.thread_id}."
    match row.status:
        case RunStatus.COMPLETED:
            said = _shortened(row.output or "", chars, row.thread_id or "")
            if row.stop_type not in _LIMITS:
                return said or "(no answer)", False
            return f"The sub-agent was ended by a limit ({row.stop_type}). {thread} What it had said:\n\n{said}", True
        case RunStatus.FAILED:
            why = str((row.error or {}).get("message") or "for an unknown reason")
            return f"The sub-agent failed: {why} {thread}", True
        case _:
            why = f": {row.stop_note}" if row.stop_note else "."
            return f"The sub-agent was {row.status}{why} {thread}", True


def _shortened(text: str, chars: int, thread_id: str) -> str:
    if len(text) <= chars:
        return text
    head, tail = text[: chars * 2 // 3], text[-(chars // 3) :]
    return f"{head}\n\n[{len(text) - chars:,} of {len(text):,} characters left out; thread {thread_id} has them]\n\n{tail}"


def _journal(transaction: Transaction) -> Journal:
    return Journal(transaction.connection, transaction.appended)
