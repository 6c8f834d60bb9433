"""What a run writes between its model and tool calls, and how it ends."""

from collections.abc import Mapping

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.lost_calls import end_lost_call
from domain.commands import AnswerInput, FinishInput, FinishResult, PauseInput, ResumeInput, TitleStart
from domain.errors import NotFound, RunFinished
from domain.events import (
    AgentToolResult,
    EventPayload,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStarted,
    RunTerminated,
    SessionIdle,
    SessionRunning,
    TextContent,
    UserAnswer,
    UserMessage,
)
from domain.runs import RunError, RunStatus, StopReason
from domain.transcript import plain
from storage.approvals import Approvals
from storage.database import Connection, Database, Transaction
from storage.journal import Draft, Journal, read_one
from storage.late_messages import hand_on
from storage.pending import pending_input, stamp
from storage.queues import Queues
from storage.runs import Runs
from storage.starts import Route, run_start, title_start
from storage.tables import RunRow
from storage.titles import Titles, turn_to_name
from storage.waits import Waits, standing


class RecordActivities:
    """Database only."""

    def __init__(self, database: Database, routes: Mapping[str, Route]) -> None:
        self._database = database
        self._routes = routes

    @activity.defn(name="records.pause")
    async def pause(self, pause: PauseInput) -> None:
        """Write that the run is paused. It stays its session's active turn."""
        stop = StopReason(type=pause.limit or "interrupted")
        drafts = [
            Draft(SessionIdle(stop_reason=stop)),
            Draft(RunPaused(stop_reason=StopReason(type=pause.limit) if pause.limit else None)),
        ]
        async with self._database.write() as transaction:
            if (await Runs(transaction.connection).standing(pause.run_id)).status == RunStatus.QUEUED:
                drafts = [Draft(RunStarted()), *drafts]
            if pause.lost:
                drafts = [*await end_lost_call(transaction.connection, pause.session_id, pause.run_id), *drafts]
            try:
                await _journal(transaction).append(pause.session_id, pause.run_id, drafts, key=pause.key)
            except RunFinished as error:
                raise _over(error) from error

    @activity.defn(name="records.resume")
    async def resume(self, resumed: ResumeInput) -> None:
        """Write that a run goes on whose sub-agents do: its next model call, which else says so, may be far off."""
        async with self._database.write() as transaction:
            drafts = [Draft(RunResumed()), Draft(SessionRunning())]
            try:
                await _journal(transaction).append(resumed.session_id, resumed.run_id, drafts, key=resumed.key)
            except RunFinished as error:
                raise _over(error) from error

    @activity.defn(name="records.answer")
    async def answer(self, answer: AnswerInput) -> None:
        """Give a waiting tool use the answer as its result; text without a tool use becomes a message."""
        async with self._database.write() as transaction:
            journal = _journal(transaction)
            content, tool_use_id = await self._content(transaction, answer)
            drafts: list[Draft] = []
            changes: dict[str, object] = {}
            if answer.event_id is None and tool_use_id is not None:
                drafts.append(Draft(UserAnswer(tool_use_id=tool_use_id, content=content)))
            if tool_use_id is None:
                drafts.append(Draft(UserMessage(content=content), queued=True))
            else:
                drafts.append(Draft(AgentToolResult(tool_use_id=tool_use_id, content=content)))
                changes = await self._answered(transaction, answer, tool_use_id)
            try:
                await journal.append(answer.session_id, answer.run_id, drafts, key=answer.key, run_changes=changes)
            except RunFinished as error:
                raise _over(error) from error

    @activity.defn(name="records.finish")
    async def finish(self, outcome: FinishInput) -> FinishResult:
        """End the run: last event, row, and the session handed to the next queued turn, in one transaction.

        Answers `finished: false` and writes nothing when a completed run has input that it has not read yet.
        """
        async with self._database.write() as transaction:
            result = await finish(transaction, outcome, self._routes)
            if not result.finished or outcome.status != "completed":
                return result
            return result.model_copy(update={"title": await self._title(transaction.connection, outcome.run_id)})

    async def _title(self, connection: Connection, run_id: str) -> TitleStart | None:
        """Who is to name the session, if it needs that; noted, so that the sweeper sees to it if this answer is lost."""
        turn = await turn_to_name(connection, run_id)
        start = None if turn is None else title_start(turn, self._routes)
        if start is not None:
            await Titles(connection, start.workspace_id).want(start.session_id)
        return start

    async def _answered(self, transaction: Transaction, answer: AnswerInput, tool_use_id: str) -> dict[str, object]:
        """What becomes of the row: it waits on while another tool use does."""
        waits = Waits(transaction.connection)
        await waits.close(tool_use_id, answer.event_id)
        return standing(await waits.open_of(answer.run_id))

    async def _content(self, transaction: Transaction, answer: AnswerInput) -> tuple[tuple[TextContent, ...], str | None]:
        """The text, and the tool use that it answers: of two answers the second may arrive first."""
        if answer.event_id is None:
            return (TextContent(text=answer.text or ""),), answer.tool_use_id
        try:
            event = await read_one(transaction.connection, answer.session_id, answer.event_id)
        except NotFound as error:
            raise ApplicationError(error.message, type=error.code, non_retryable=True) from error
        if isinstance(event.payload, UserAnswer):
            return event.payload.content, event.payload.tool_use_id
        assert isinstance(event.payload, UserMessage)
        return (TextContent(text=plain(event.payload.content)),), answer.tool_use_id


async def finish(transaction: Transaction, outcome: FinishInput, routes: Mapping[str, Route]) -> FinishResult:
    """See RecordActivities.finish; the sweeper ends runs that way too. Ending an ended run changes nothing."""
    runs = Runs(transaction.connection)
    # The lock comes first: input that commits before it is seen here, input after it finds the run over.
    run = await runs.get(outcome.run_id, lock=True)
    if outcome.attempt < run.attempt:  # it was retried since: the session is its newest attempt's
        return FinishResult(finished=True)
    if not RunStatus(run.status).over and outcome.status != "completed":
        for below in reversed(await runs.below(run.id)):
            await _end(transaction, below, _with_its_parent(below, outcome))
    if not RunStatus(run.status).over:
        may_go_on = outcome.status == "completed" and outcome.stop_type == "end_turn"
        if may_go_on and await pending_input(transaction.connection, outcome.session_id, outcome.run_id):
            return FinishResult(finished=False)
        await _end(transaction, run, outcome)
        if run.thread_id is None and not may_go_on:
            await hand_on(transaction.connection, _journal(transaction), run)
    if run.thread_id is not None:
        return FinishResult(finished=True)
    queues = Queues(transaction.connection)
    following = await queues.advance(outcome.session_id, outcome.run_id)
    if following is None:
        active = await queues.active_after(outcome.session_id, outcome.run_id)
        return FinishResult(finished=True, next_run=None if active is None else run_start(active, routes))
    return FinishResult(finished=True, next_run=run_start(following, routes))


async def _end(transaction: Transaction, run: RunRow, outcome: FinishInput) -> None:
    drafts = [
        *await Approvals(transaction.connection).cancel_pending(outcome.run_id),
        Draft(SessionIdle(stop_reason=StopReason(type=outcome.stop_type))),
        Draft(_last_event(outcome, run)),
    ]
    await Waits(transaction.connection).close_all(outcome.run_id)
    if run.cancel_requested_at is not None:
        await stamp(transaction.connection, outcome.session_id, outcome.run_id, "user.interrupt")
    if outcome.lost:
        drafts = [*await end_lost_call(transaction.connection, outcome.session_id, outcome.run_id), *drafts]
    key = f"{outcome.run_id}.{outcome.attempt}/finish"
    (*_, end) = await _journal(transaction).append(outcome.session_id, outcome.run_id, drafts, key=key)
    if run.started_at is not None and run.thread_id is None:
        await Runs(transaction.connection).add_active_time(outcome.session_id, end.created_at - run.started_at)


def _with_its_parent(run: RunRow, parent: FinishInput) -> FinishInput:
    """A sub-agent does not outlive the run that it works for."""
    status = "terminated" if parent.status == "terminated" else "cancelled"
    return FinishInput(
        run_id=run.id,
        session_id=run.session_id,
        attempt=run.attempt,
        status=status,
        stop_type="interrupted",
        reason=parent.reason,
        lost=True,
    )


def _last_event(outcome: FinishInput, run: RunRow) -> EventPayload:
    stop = StopReason(type=outcome.stop_type)
    match outcome.status:
        case "completed":
            return RunCompleted(stop_reason=stop)
        case "cancelled":
            return RunCancelled(reason=outcome.reason or run.stop_note)
        case "terminated":
            return RunTerminated(reason=outcome.reason or run.stop_note)
        case "failed":
            error = RunError(
                code=outcome.error_code or "internal", message=outcome.error_message or "", retryable=outcome.retryable
            )
            return RunFailed(stop_reason=stop, error=error)


def _journal(transaction: Transaction) -> Journal:
    return Journal(transaction.connection, transaction.appended)


def _over(error: RunFinished) -> ApplicationError:
    return ApplicationError(error.message, type=error.code, non_retryable=True)
