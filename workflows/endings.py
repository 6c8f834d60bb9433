"""How a run ends, as the bookkeeping is to write it, and how its session's next one begins."""

import contextlib
from typing import Any

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import ActivityError, ApplicationError, WorkflowAlreadyStartedError

from domain.commands import FinishInput, RunStart, TitleStart, Tries
from domain.ids import title_id
from domain.runs import StopType
from workflows import attributes, options


def outcome(
    start: RunStart,
    status: Any,
    stop: StopType,
    *,
    code: str | None = None,
    message: str | None = None,
    retryable: bool = False,
    reason: str | None = None,
    lost: bool = False,
) -> FinishInput:
    return FinishInput(
        run_id=start.run_id,
        session_id=start.session_id,
        attempt=start.attempt,
        status=status,
        stop_type=stop,
        error_code=code,
        error_message=message,
        retryable=retryable,
        reason=reason,
        lost=lost,
    )


def failure(start: RunStart, error: ActivityError, *, reason: str | None = None, lost: bool = False) -> FinishInput:
    """Of a model call that did not come back, or came back with an error."""
    cause = error.cause
    if not isinstance(cause, ApplicationError):
        message = "The model call did not come back."
        return outcome(
            start, "failed", "retries_exhausted", code="internal", message=message, retryable=True, reason=reason, lost=lost
        )
    return outcome(
        start,
        "failed",
        "error" if cause.non_retryable else "retries_exhausted",
        code=cause.type or "internal",
        message=cause.message,
        retryable=not cause.non_retryable,
        reason=reason,
        lost=lost,
    )


def handed_back(start: RunStart, tries: Tries, *, reason: str | None = None, lost: bool = False) -> FinishInput:
    """Of a model call that every worker gave back."""
    message = f"The model call was handed back {tries.handed_back} times by workers that shut down."
    return outcome(
        start, "failed", "retries_exhausted", code="worker_lost", message=message, retryable=True, reason=reason, lost=lost
    )


async def start_next(following: RunStart) -> None:
    """Start the turn that the session was handed to."""
    with contextlib.suppress(WorkflowAlreadyStartedError):  # the sweeper was faster
        await workflow.start_child_workflow(
            "agent_run",
            following,
            id=following.run_id,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            search_attributes=attributes.of(following),
            priority=options.of_run(following),
            static_summary=f"{following.agent} on {following.model}",
        )


async def start_title(title: TitleStart) -> None:
    """Have the session named, by a workflow of its own: nothing waits for that."""
    with contextlib.suppress(WorkflowAlreadyStartedError):
        await workflow.start_child_workflow(
            "session_title",
            title,
            id=title_id(title.session_id),
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            search_attributes=attributes.of_session(title.workspace_id, title.session_id, title.model),
            static_summary=f"title by {title.model}",
        )
