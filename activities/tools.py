"""One tool call: runs the tool and appends its result. What a tool's repetition means is kept here."""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.heartbeat import heartbeating, overdue, superseded, unbroken
from activities.patience import patiently
from activities.recall import Recall
from activities.tool_uses import result_of
from domain.approvals import ApprovalStatus, Decision
from domain.clock import now
from domain.commands import ToolInput, Verdict
from domain.errors import NotFound, RunFinished, ToolFailed
from domain.events import AgentMcpToolUse, AgentToolStarted, AgentToolUse, Event
from domain.files import MountedFile
from domain.mcp import tool_name
from domain.tools import Effect, ToolContext
from storage.approvals import Approvals
from storage.database import Database
from storage.decisions import Decisions
from storage.journal import Draft, Journal, written
from storage.runs import Runs
from storage.sessions import resources_mounted
from storage.tables import ApprovalRow
from storage.tool_calls import tool_call
from tools.store import FileStore
from tools.toolbox import Toolbox, ToolOutcome, call_tool, no_such_tool

log = logging.getLogger(__name__)

UNKNOWN_OUTCOME = (
    "The outcome is unknown: the worker was lost while this tool ran. It may or may not have taken effect, and it was not "
    "started again. Find out before you repeat it."
)
EDITED = "A person changed the arguments of this call to {}\n\n"
CANCELLED = "Cancelled before it was done."
CANCELLED_EFFECT = "Cancelled while it ran; whether it had an effect is unknown. Find out before you repeat it."


class ToolActivities:
    """Tool calls. `files` holds a directory per session, the only one a tool may touch."""

    def __init__(self, database: Database, recall: Recall, toolbox: Toolbox, files: FileStore) -> None:
        self._database = database
        self._recall = recall
        self._toolbox = toolbox
        self._files = files

    @activity.defn(name="tools.run")
    async def run(self, call: ToolInput) -> None:
        """Run one tool use and append its result. Whatever the tool does, the run does not fail by it."""
        if activity.is_worker_shutdown():
            raise _handed_back()
        try:
            async with heartbeating():
                await self._run(call)
        except (RunFinished, NotFound) as error:
            benign = ApplicationErrorCategory.BENIGN  # terminated, or deleted, meanwhile: no stack trace helps
            raise ApplicationError(error.message, type=error.code, non_retryable=True, category=benign) from error

    async def _run(self, call: ToolInput) -> None:
        prefix = f"{call.run_id}/{call.tool_use_id}"
        async with self._database.read() as connection:
            if activity.info().attempt > 1 and await written(connection, call.session_id, f"{prefix}/result"):
                return
            use, agent_id, agent_version, resources = await tool_call(connection, call.session_id, call.tool_use_id)
        assert isinstance(use.payload, AgentToolUse | AgentMcpToolUse)
        asked = use.payload.input
        note = ""
        if call.verdict is not None:
            approval = await unbroken(self._settle(call, call.verdict))
            if approval.status != ApprovalStatus.APPROVED:
                await unbroken(self._append(call, [refusal(use, approval)], f"{prefix}/result", True))
                return
            if approval.edited_input is not None:
                asked, note = approval.edited_input, EDITED.format(json.dumps(approval.edited_input, ensure_ascii=False))
        config = await self._recall.config(self._database, agent_id, agent_version)
        tools = await self._toolbox.of(config)
        name = use.payload.name
        if isinstance(use.payload, AgentMcpToolUse):
            name = tool_name(use.payload.mcp_server_name, use.payload.name)
        tool = tools.get(name)
        if tool is None and isinstance(use.payload, AgentMcpToolUse):
            # Offered by a worker that had reached the server.
            effect = Effect((use.private or {}).get("effect", Effect.ONCE))
            tool = self._toolbox.mcp.unlisted(config, use.payload.mcp_server_name, use.payload.name, effect)
        once = tool is not None and tool.effect is Effect.ONCE
        if resources:
            await self._mount(call, resources)
        # Unbroken, so that a cancellation cannot leave it open whether this was written.
        lost = once and not await unbroken(self._first_start(call, f"{prefix}/started"))
        began = now()
        context = ToolContext(
            workspace_id=call.workspace_id,
            session_id=call.session_id,
            run_id=call.run_id,
            tool_use_id=use.id,
            directory=self._files.directory(call.workspace_id, call.session_id),
            quota=self._files.quota,
        )
        if tool is None:
            outcome = no_such_tool(name, tools)
        elif lost:
            outcome = ToolOutcome(UNKNOWN_OUTCOME, is_error=True)
        else:
            try:
                if activity.is_cancelled():  # while its start was being written
                    raise asyncio.CancelledError
                outcome = await call_tool(tool, asked, use.payload.malformed, context)
            except asyncio.CancelledError:
                details = activity.cancellation_details()
                if details is not None and details.worker_shutdown:
                    if tool.effect is not Effect.ONCE:
                        raise _handed_back() from None
                    outcome = ToolOutcome(UNKNOWN_OUTCOME, is_error=True)
                elif details is None or not details.cancel_requested:
                    raise
                else:
                    outcome = ToolOutcome(CANCELLED if tool.effect is Effect.READ else CANCELLED_EFFECT, is_error=True)
        took = round((now() - began).total_seconds() * 1000)
        result = result_of(use.payload, use.id, note + outcome.content, is_error=outcome.is_error, duration_ms=took)
        drafts = [*(Draft(event) for event in outcome.events), Draft(result)]
        await unbroken(self._append(call, drafts, f"{prefix}/result", overdue(began)))

    async def _settle(self, call: ToolInput, verdict: Verdict) -> ApprovalRow:
        """The approval as it is decided: by what the workflow heard, unless its row says something else already."""

        async def settle(_first: bool) -> ApprovalRow:
            async with self._database.write() as transaction:
                await Runs(transaction.connection).get(call.run_id, lock=True)
                approval = await Approvals(transaction.connection).get(verdict.approval_id)
                decision = None
                if verdict.decision is not None:
                    decision = Decision(approve=verdict.decision == "approve", reason=verdict.reason)
                journal = Journal(transaction.connection, transaction.appended)
                return await Decisions(transaction.connection, journal).settle(approval, decision)

        return await patiently(settle)

    async def _mount(self, call: ToolInput, resources: Sequence[MountedFile]) -> None:
        """Put the files that were given to the session into its directory. One that was deleted meanwhile is left out."""
        for resource in resources:
            try:
                await asyncio.to_thread(self._files.mount, call.workspace_id, call.session_id, resource.file_id, resource.path)
            except ToolFailed as error:
                log.warning("file %s is not put into session %s: %s", resource.file_id, call.session_id, error.message)
        async with self._database.write() as transaction:
            await resources_mounted(transaction.connection, call.session_id, len(resources))

    async def _first_start(self, call: ToolInput, key: str) -> bool:
        """Write that a tool starts that must never start twice; False when an earlier attempt had written it."""
        attempt = activity.info().attempt
        async with self._database.write() as transaction:
            if before := await written(transaction.connection, call.session_id, key):
                by = (before[0].private or {}).get("attempt")
                if isinstance(by, int) and by > attempt:
                    raise superseded()
                return False
            journal = Journal(transaction.connection, transaction.appended)
            started = [Draft(AgentToolStarted(tool_use_id=call.tool_use_id), private={"attempt": attempt})]
            await journal.append(call.session_id, call.run_id, started, key=key, key_is_new=True)
            return True

    async def _append(self, call: ToolInput, drafts: Sequence[Draft], key: str, may_be_there: bool) -> None:
        is_new = activity.info().attempt == 1 and not may_be_there

        async def append(first: bool) -> None:
            async with self._database.write() as transaction:
                journal = Journal(transaction.connection, transaction.appended)
                await journal.append(call.session_id, call.run_id, drafts, key=key, key_is_new=first and is_new)

        await patiently(append)


def refusal(use: Event, approval: ApprovalRow) -> Draft:
    """What the model reads of a call that was not made."""
    match approval.status:
        case ApprovalStatus.EXPIRED:
            text = "Nobody approved this call in time. It was not made."
        case ApprovalStatus.DENIED:
            text = f"A person denied this call: {approval.reason}" if approval.reason else "A person denied this call."
        case _:
            text = CANCELLED
    return Draft(result_of(use.payload, use.id, text, is_error=True))


def _handed_back() -> ApplicationError:
    """The worker shuts down: another one runs the tool at once. Tools have no number of attempts to use up."""
    return ApplicationError(
        "The worker shuts down.",
        type="handed_back",
        category=ApplicationErrorCategory.BENIGN,
        next_retry_delay=timedelta(milliseconds=1),
    )
