"""Every timeout and retry of an activity, by name."""

from datetime import timedelta
from typing import TypedDict

from temporalio.common import Priority, RetryPolicy
from temporalio.workflow import ActivityCancellationType

from domain.commands import SLOT_SECONDS, RunStart
from domain.urgency import BACKGROUND, ORDINARY

MODEL_ATTEMPTS = 12
TITLE_ATTEMPTS = 4
HEARTBEAT = timedelta(seconds=12)
"""A lost worker is noticed after this long. Shorter costs the server: 200 calls at 1 s took a whole core."""
MODEL_HANDED_BACK = 100
"""How often a call may be handed back: workers that are restarted faster than it can answer must not make it for ever."""


class ActivityOptions(TypedDict, total=False):
    task_queue: str | None
    start_to_close_timeout: timedelta
    schedule_to_close_timeout: timedelta
    heartbeat_timeout: timedelta
    retry_policy: RetryPolicy
    cancellation_type: ActivityCancellationType
    summary: str


def priority(workspace_id: str, *, background: bool) -> Priority:
    """Of a workflow, and so of its activities and children. Workspaces share what one of them could fill."""
    return Priority(priority_key=BACKGROUND if background else ORDINARY, fairness_key=workspace_id)


def of_run(start: RunStart) -> Priority:
    return priority(start.workspace_id, background=start.background)


def model_call(queue: str | None, timeout_seconds: int, step: int, failed: int = 0) -> ActivityOptions:
    """Retried for about seven minutes; a rejection is never retried (the error says so itself).

    `timeout_seconds`: the provider keeps it by itself, from when the call has a slot.
    `failed`: attempts that the call used up before it was handed back.
    """
    return {
        "task_queue": queue,
        "start_to_close_timeout": timedelta(seconds=SLOT_SECONDS + timeout_seconds + 30),
        "heartbeat_timeout": HEARTBEAT,
        "retry_policy": RetryPolicy(
            initial_interval=timedelta(seconds=1),
            maximum_interval=timedelta(seconds=60),
            maximum_attempts=MODEL_ATTEMPTS - failed,
        ),
        # The call answers a cancellation with what it had written so far: wait for that.
        "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        "summary": f"step {step}",
    }


def compaction(queue: str | None, timeout_seconds: int) -> ActivityOptions:
    """Asking for a summary is given up by the activity itself; lost workers and hand-backs count here."""
    retry = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10), maximum_attempts=6)
    return {**model_call(queue, timeout_seconds, 0), "retry_policy": retry, "summary": "compact"}


def tool_call(name: str, timeout_seconds: float) -> ActivityOptions:
    """The tool's own time limit is kept inside the activity; here only a lost worker or database is repaired."""
    return {
        "start_to_close_timeout": timedelta(seconds=timeout_seconds + 30),
        "heartbeat_timeout": HEARTBEAT,
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)),
        "cancellation_type": ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        "summary": name,
    }


def record(summary: str) -> ActivityOptions:
    """Database only: repeated until it succeeds, for what a run has decided must be written."""
    return {
        "start_to_close_timeout": timedelta(seconds=10),  # as long as a lost worker holds up the run here
        "retry_policy": RetryPolicy(initial_interval=timedelta(milliseconds=200), maximum_interval=timedelta(seconds=5)),
        "summary": summary,
    }


def title(queue: str | None) -> ActivityOptions:
    """Tried for some four minutes, as long as a model may be busy or away; then the session stays without one."""
    return {
        "task_queue": queue,
        "start_to_close_timeout": timedelta(minutes=3),
        "schedule_to_close_timeout": timedelta(hours=1),  # where nobody serves that queue
        "retry_policy": RetryPolicy(
            initial_interval=timedelta(seconds=5), backoff_coefficient=6, maximum_attempts=TITLE_ATTEMPTS
        ),
        "summary": "title",
    }


def steady() -> ActivityOptions:
    """Work that goes on for minutes, and ends by itself before its time is over."""
    return {
        "start_to_close_timeout": timedelta(minutes=20),
        "heartbeat_timeout": HEARTBEAT,
        "retry_policy": RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)),
    }


def sweep() -> ActivityOptions:
    return {
        "start_to_close_timeout": timedelta(minutes=5),
        "heartbeat_timeout": HEARTBEAT,
        "retry_policy": RetryPolicy(maximum_attempts=1),  # the schedule comes again by itself
    }
