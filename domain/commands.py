"""What travels between the API, workflows and activities: ids, counters, decisions. Members only get added, with defaults."""

from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel

from domain.agents import Limits, OnTimeout
from domain.runs import StopType, WaitingFor
from domain.tools import WaitKind

SLOT_SECONDS = 3600
"""How long a model call waits for a slot of its provider before it is handed back, to wait anew: that is no attempt of it."""


class Tries(BaseModel, frozen=True):
    """How often a model call was tried by workers that handed it back."""

    begun: int = 0
    """Attempts that are in the log; the next one is the one after."""
    failed: int = 0
    """Attempts that the call's retries have used up. Being handed back is none."""
    handed_back: int = 0
    """By workers that shut down."""


class Progress(BaseModel, frozen=True):
    """How far a run has come; carried over a continue-as-new."""

    calls: int = 0
    """Model calls begun; names the next one's events."""
    steps: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    tries: Tries | None = None
    """Of the newest call, where it was handed back and is to be made again."""

    def plus(self, output_tokens: int, cost_nano_usd: int) -> Self:
        used = {
            "output_tokens": self.output_tokens + output_tokens,
            "cost_nano_usd": self.cost_nano_usd + cost_nano_usd,
        }
        return self.model_copy(update=used)


class PauseSignal(BaseModel, frozen=True):
    mode: Literal["step", "now"] = "step"


class RunStart(BaseModel, frozen=True):
    """The input of the `agent_run` workflow, whose id is `run_id`."""

    run_id: str
    session_id: str
    workspace_id: str
    agent: str
    model: str
    limits: Limits
    attempt: int = 1
    model_queue: str | None = None
    model_timeout_seconds: int = 900
    progress: Progress = Progress()
    allowance: Progress = Progress()
    """Where the limits count from: moved up when a run that a limit had paused is resumed."""
    deadline: float | None = None
    """Unix time at which `max_seconds` are over; set by the run itself."""
    pause: PauseSignal | None = None
    """Asked for before the run began."""
    resumed: bool = False
    """Continued as new between a pause and the model call that says that it is over."""
    reports_to: str | None = None
    """Of a sub-agent whose limits are shared: the run that is told what it has used."""
    background: bool = False
    """Nobody waits for it: an item of a batch, or retried in bulk."""


class RunResult(BaseModel, frozen=True):
    status: str
    stop_reason: str | None = None


class CompleteInput(BaseModel, frozen=True):
    """One model call."""

    run_id: str
    session_id: str
    call: str
    """Unique in the session: run, attempt and number of the call. The keys of its events begin with it."""
    provider: str = ""
    resumed: bool = False
    max_output_tokens: int | None = None
    before: Tries | None = None
    lost: bool = False
    """The call before was told to stop and its worker died: its start has no end yet."""
    compacted: int = 0
    """How often the context was compacted just now, for this call."""


class Gate(BaseModel, frozen=True):
    """An approval that a tool use waits for."""

    approval_id: str
    until: float | None = None
    """Unix time at which nobody is waited for any more."""
    on_timeout: OnTimeout = "wait"


class ToolRef(BaseModel, frozen=True):
    id: str
    name: str
    timeout_seconds: float = 60
    waits_for: WaitingFor | None = None
    """Only in histories from before `wait`: the questions of a step were put one after the other."""
    wait: WaitKind | None = None
    """What the workflow waits for instead of calling the tool."""
    until: float | None = None
    """Unix time at which that wait is over."""
    gate: Gate | None = None
    at_once: int | None = None
    """Of a delegation: how many of the run's are at work at once."""


class CompleteResult(BaseModel, frozen=True):
    stop: Literal["end_turn", "tool_use", "max_tokens", "refusal", "continue", "interrupted"]
    tools: tuple[ToolRef, ...] = ()
    output_tokens: int = 0
    cost_nano_usd: int = 0
    handed_back: Tries | None = None
    """The worker shut down before the answer was whole, or had no slot: the same call is to be made again. `stop` then means
    nothing."""
    compact: Literal["near", "over"] | None = None
    """The context is to be compacted before a call can be made: it nears its end, or the provider said that it is over it.
    `stop` then means nothing."""


class CompactInput(BaseModel, frozen=True):
    """Compacting a thread's context."""

    run_id: str
    session_id: str
    call: str
    """Of the model call that it is for; the keys of its events begin with it."""
    provider: str = ""
    why: Literal["near", "over"] = "near"
    summarise: bool = True
    """False: nobody could write a summary, what is older is only left out."""


class CompactResult(BaseModel, frozen=True):
    interrupted: bool = False
    output_tokens: int = 0
    cost_nano_usd: int = 0


class Verdict(BaseModel, frozen=True):
    """What came of a gate. The approval's row has the last word: of several decisions the first one won."""

    approval_id: str
    decision: Literal["approve", "deny"] | None = None
    """None: nobody decided in time."""
    reason: str | None = None


class ToolInput(BaseModel, frozen=True):
    run_id: str
    session_id: str
    tool_use_id: str
    workspace_id: str = ""
    verdict: Verdict | None = None


class WakeInput(BaseModel, frozen=True):
    """A wait that is over: its time has come, or the external event, which is then in the log."""

    run_id: str
    session_id: str
    tool_use_id: str
    event_id: str | None = None


class DelegateInput(BaseModel, frozen=True):
    """A delegation whose turn has come, and what is left of the limits that it shares."""

    run_id: str
    session_id: str
    tool_use_id: str
    verdict: Verdict | None = None
    output_tokens_left: int | None = None
    cost_nano_usd_left: int | None = None
    seconds_left: int | None = None


class Delegated(BaseModel, frozen=True):
    start: RunStart | None = None
    """None: nothing is to be started, and the tool use has its result."""


class SubagentEnd(BaseModel, frozen=True):
    """A sub-agent's workflow that is over. `ending`: how, where it did not end by itself."""

    run_id: str
    session_id: str
    tool_use_id: str
    subagent_run_id: str
    ending: Literal["failed", "cancelled", "terminated"] | None = None


class Spent(BaseModel, frozen=True):
    """What a run has used since it began, its own sub-agents included. Sent by a sub-agent to the run that delegated."""

    run_id: str
    output_tokens: int = 0
    cost_nano_usd: int = 0


class ResumeInput(BaseModel, frozen=True):
    run_id: str
    session_id: str
    key: str


class RunRef(BaseModel, frozen=True):
    run_id: str
    session_id: str


class PauseInput(BaseModel, frozen=True):
    run_id: str
    session_id: str
    key: str
    limit: StopType | None = None
    lost: bool = False


class AnswerInput(BaseModel, frozen=True):
    """Input and the tool use that waited for it, if any: a stored event, or a text sent from Temporal's own CLI or UI."""

    run_id: str
    session_id: str
    key: str
    tool_use_id: str | None
    event_id: str | None = None
    text: str | None = None


class FinishInput(BaseModel, frozen=True):
    run_id: str
    session_id: str
    attempt: int
    status: Literal["completed", "failed", "cancelled", "terminated"]
    stop_type: StopType
    error_code: str | None = None
    error_message: str | None = None
    retryable: bool = False
    reason: str | None = None
    lost: bool = False


class TitleStart(BaseModel, frozen=True):
    """The input of the `session_title` workflow: the session's title is to be written, of what was said in that run."""

    session_id: str
    workspace_id: str
    run_id: str
    model: str
    queue: str | None = None


class FinishResult(BaseModel, frozen=True):
    finished: bool
    """False: new input came in at the last moment; the run goes on with it."""
    next_run: RunStart | None = None
    title: TitleStart | None = None


class CancelSignal(BaseModel, frozen=True):
    reason: str | None = None


class InputSignal(BaseModel, frozen=True):
    """Names a stored event, or carries the text itself when it is sent by hand."""

    event_id: str | None = None
    text: str | None = None
    tool_use_id: str | None = None
    """The tool use that it answers; None: the first one that waits."""


class ApproveSignal(BaseModel, frozen=True):
    """A decision. Sent by hand it may name the tool use, or nothing: then it is of the approval that waits longest."""

    approval_id: str | None = None
    tool_use_id: str | None = None
    decision: Literal["approve", "deny"] = "approve"
    reason: str | None = None


class RunState(BaseModel, frozen=True):
    """The answer of the `state` query."""

    status: str
    step: int
    model_calls: int
    output_tokens: int
    doing: str
    pause_requested: bool
    cancel_requested: bool


class SweepInput(BaseModel, frozen=True):
    since: datetime | None = None
    """Temporal's time at the last sweep that succeeded; None: everything is to be looked at."""


class SweepResult(BaseModel, frozen=True):
    delivered: int = 0
    """Runs started, or commanded, again."""
    settled: int = 0
    """Runs that had ended outside."""
