"""What a model call is to see, and whether there is room for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from activities.attachments import Attachments
from activities.recall import Recall
from domain.agents import AgentConfig, ContextPolicy
from domain.compaction import Plan, Room, plan
from domain.completions import Message
from domain.tools import OfferedTool
from domain.transcript import Transcript
from domain.usage import estimate_tokens
from providers.registry import Providers
from providers.windows import Windows
from storage.database import Database
from storage.runs import Standing
from tools.mcp.listing import Trouble
from tools.toolbox import Toolbox

CompactWhy = Literal["near", "over"]


@dataclass(frozen=True)
class Seen:
    """To be used at once: the transcript goes on when it is read again."""

    config: AgentConfig
    tools: Mapping[str, OfferedTool]
    troubles: Sequence[Trouble]
    transcript: Transcript
    messages: tuple[Message, ...]
    overhead: int
    window: int | None

    @property
    def fits(self) -> bool:
        """By all that is known."""
        return self.window is None or self.transcript.tokens.of_request(self.overhead) <= self.window * 0.95

    def plan(self, why: CompactWhy) -> Plan | None:
        """How to make room; None where there is enough, or nothing to be won. `over`: the provider said that it is too long."""
        tokens = self.transcript.tokens.of_request(self.overhead)
        if why == "over":
            return plan(self.transcript, Room(min(self.window or tokens, tokens), self.overhead))
        policy = self.config.context or ContextPolicy()
        if self.window is None or tokens <= self.window * policy.compact_at:
            return None
        return plan(self.transcript, Room(self.window, self.overhead))


class Contexts:
    def __init__(
        self, database: Database, recall: Recall, toolbox: Toolbox, providers: Providers, attachments: Attachments
    ) -> None:
        self._database = database
        self._recall = recall
        self._toolbox = toolbox
        self._providers = providers
        self._windows = Windows(providers)
        self._attachments = attachments

    async def seen(self, session_id: str, run_id: str, run: Standing, *, up_to: int | None = None) -> Seen:
        """As the log has it, with all to that seq."""
        config = await self._recall.config(self._database, run.agent_id, run.agent_version)
        tools = await self._toolbox.of(config)
        subagent = run_id if run.thread_id else None
        transcript = await self._recall.transcript(self._database, session_id, subagent, up_to=up_to)
        messages = transcript.messages()
        specs = "".join(tool.spec.model_dump_json() for tool in tools.values())
        overhead = estimate_tokens((config.system or "") + specs)
        provider = self._providers.configs.get(config.model.provider)
        if transcript.has_attachments and provider is not None:
            messages = await self._attachments.filled_in(session_id, provider, messages)
        return Seen(
            config=config,
            tools=tools,
            troubles=self._toolbox.mcp.troubles(config),
            transcript=transcript,
            messages=messages,
            overhead=overhead,
            window=await self._window(config, transcript.tokens.of_request(overhead)),
        )

    async def _window(self, config: AgentConfig, tokens: int) -> int | None:
        """The model's own and the agent's, whichever is smaller."""
        own = await self._windows.of(config.model.provider, config.model.name, tokens)
        wanted = None if config.context is None else config.context.max_tokens
        return min((window for window in (own, wanted) if window is not None), default=None)
