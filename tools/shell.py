"""Built-in tool `bash`: a command in the sandbox, in the run's own directory.

Name and arguments are those of the toolset `agent_toolset_20260401` in the `anthropic` package
(types/beta/beta_managed_agents_agent_toolset20260401_bash_input.py). Here no shell lives from one call to the next: the next
one may be another worker's.
"""

from pydantic import BaseModel, Field, field_validator

from domain.agents import Strict
from domain.errors import ToolFailed
from domain.tools import Effect, ToolContext
from tools.sandbox import Finished, NoSandbox, Sandbox

OVERHEAD_SECONDS = 30.0
"""For starting and killing: the sandbox's own time limit, which keeps what was printed, is to come first."""
RESTARTED = "Every command has a shell of its own, so there is nothing to restart. The files in your directory are still there."

_ENDED = {
    "time": "took longer than {limits.seconds:g} seconds and was stopped",
    "cpu": "used more than {limits.cpu_seconds} seconds of CPU time and was stopped",
    "memory": "used more than {memory} MB of memory and was stopped",
    "processes": "started {limits.processes} processes and threads or more and was stopped",
    "disk": "wrote more than your directory holds ({quota} MB) and was stopped: delete what you do not need",
    "files": "made more files than there may be and was stopped: delete what you do not need",
    "depth": "made folders nested too deep and was stopped; they were deleted",
    "full": "was stopped because the disk is almost full",
}


class BashArguments(Strict):
    command: str | None = Field(default=None, min_length=1, max_length=30_000, description="The command, for bash.")
    restart: bool = Field(default=False, description="Not needed: every command has a shell of its own.")

    @field_validator("command")
    @classmethod
    def _no_nul(cls, value: str | None) -> str | None:
        if value is not None and "\0" in value:
            raise ValueError("a command contains no NUL")
        return value


class Bash:
    """`once`: nobody can know what half a command has done."""

    name = "bash"
    description = (
        "Run a command with bash in your directory, in a sandbox: only your directory and /tmp can be written, /tmp is gone "
        "after the command, and so are background processes. Each command has a fresh shell; its output is returned."
    )
    arguments: type[BaseModel] = BashArguments
    effect = Effect.ONCE
    asks = True

    def __init__(self, sandbox: Sandbox, *, may_have_network: bool = False) -> None:
        self.sandbox = sandbox
        self.may_have_network = may_have_network
        self.timeout_seconds = sandbox.limits.seconds + OVERHEAD_SECONDS
        self._network = False

    def with_network(self) -> "Bash":
        """The same for an agent that has the network, where any may."""
        granted = Bash(self.sandbox, may_have_network=self.may_have_network)
        granted._network = self.may_have_network
        return granted

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, BashArguments)
        if arguments.command is None:
            if arguments.restart:
                return RESTARTED
            raise ToolFailed("give a command")
        try:
            found = await self.sandbox.run(arguments.command, context.directory, context.quota, network=self._network)
        except NoSandbox as error:
            raise ToolFailed(f"The shell is not available, and nothing was run. {error}") from error
        if not found.begun:
            raise ToolFailed(f"The sandbox could not be set up, and nothing was run: {found.head.strip()[:500]}")
        return self._answer(found, context)

    def _answer(self, found: Finished, context: ToolContext) -> str:
        parts = [found.head]
        if found.cut_bytes:
            parts += [f"\n[cut: {found.cut_bytes:,} bytes are left out here]\n", found.tail]
        notes: list[str] = []
        if found.ended is not None:
            limits = self.sandbox.limits
            memory, quota = limits.memory_bytes >> 20, context.quota.bytes >> 20
            notes.append(f"The command {_ENDED[found.ended].format(limits=limits, memory=memory, quota=quota)}.")
        elif found.exit_code:
            notes.append(f"exit code {found.exit_code}")
        if found.over and found.ended is None:
            notes.append("Your directory is full: delete what you do not need.")
        printed = "".join(parts)
        separator = "" if not printed or printed.endswith("\n") else "\n"
        text = printed + "".join(f"{separator if not index else chr(10)}[{note}]" for index, note in enumerate(notes))
        if found.ended is not None:
            raise ToolFailed(text)
        return text or "(no output)"
