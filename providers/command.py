"""Any command line program as a model: the prompt goes in, what it prints is the answer.

What runs comes from `perdure.toml` alone. A prompt is never part of a shell's source and never taken for an option.
Claude Code, with the login that the operator's own terminal has, called as `claude-code:default`:

    [providers.claude-code]
    kind = "command"
    argv = ["claude", "-p"]
    login_shell = true
"""

import asyncio
import codecs
import errno
import json
import os
import pwd
import re
import signal
from asyncio import SubprocessTransport
from asyncio.subprocess import DEVNULL, PIPE, Process, SubprocessStreamProtocol
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from uuid import uuid4

from domain.completions import (
    Completion,
    CompletionRequest,
    Delta,
    Document,
    Image,
    Message,
    ModelInfo,
    Text,
    Thinking,
    ToolResult,
    ToolUse,
)
from domain.errors import ProviderError, ProviderNotConfigured, ProviderRejected, ProviderStalled, ProviderUnavailable
from domain.payload import PlainTextSource
from domain.usage import Usage, estimate_tokens
from providers.config import CommandConfig

_ARGUMENT_BYTES = 100_000
"""Longer prompts go to standard input: Linux refuses an argument of 128 KiB (MAX_ARG_STRLEN)."""
_STDERR_BYTES = 2048
_OUTPUT_BYTES = 16_000_000
"""A program that never stops printing must not eat the worker's memory."""
_GRACE_SECONDS = 0.5
"""From SIGTERM to SIGKILL, and how long a pipe may stay open after the program has ended."""
_DYING_SECONDS = 1.0
"""From SIGKILL to giving up: a process that waits for a disk that is gone cannot be killed."""
_MARK = "PERDURE_CALL"
_TICK_SECONDS = 0.25
_NOT_FOUND = (126, 127)
"""What shells and env(1) exit with when a program cannot be executed or is not there (POSIX, Shell Command Language 2.8.2)."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_POSIX_SHELLS = ("sh", "ash", "bash", "dash", "ksh", "mksh", "zsh")


class CommandProvider:
    """Runs the configured program once per call, in an empty directory and a process group of its own.

    `environment` holds the variables of `CommandConfig.env`, resolved by the composition root; besides them the program sees
    only who it runs as, a default PATH and a UTF-8 locale. Tools, options and `max_output_tokens` of a request are ignored:
    a program takes a text and gives one. Usage is estimated.
    """

    kind = "command"

    def __init__(self, config: CommandConfig, environment: Mapping[str, str]) -> None:
        self._config = config
        user = _User.of(os.getuid())
        self._shell = user.shell
        self._environment = {
            "HOME": user.home,
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": user.shell,
            "PATH": _PATH,
            "LANG": "C.UTF-8",
            **environment,
        }

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        """Run the program; its standard output is the text, without the newlines at its end.

        Raises ProviderRejected with the exit code and the end of standard error, ProviderNotConfigured where the program is
        not there, ProviderStalled past a time limit, ProviderUnavailable where a signal killed it.
        """
        prompt = _prompt(request)
        argv, on_stdin = self._command(request.model, prompt)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        parts: list[str] = []
        newlines, size = "", 0
        with TemporaryDirectory(prefix="perdure-command-", ignore_cleanup_errors=True) as directory:
            run = await self._start(argv, prompt if on_stdin else None, directory)
            try:
                more = True
                while more:
                    chunk = await run.read()
                    more = bool(chunk)
                    size += len(chunk)
                    if size > _OUTPUT_BYTES:
                        raise ProviderRejected(f"the command printed more than {_OUTPUT_BYTES} bytes")
                    piece = newlines + decode(chunk, final=not more)
                    newlines = piece[len(piece.rstrip("\n")) :]
                    if piece := piece.rstrip("\n"):
                        parts.append(piece)
                        yield Delta(index=0, kind="text", text=piece)
                if code := await run.exit_code():
                    raise self._failure(code, await run.stderr())
            except BaseException:
                await run.end(all_of_it=True)
                raise
            # What it left running in a session of its own, an agent of its login say, may stay.
            await run.end(all_of_it=False)
        text = "".join(parts)
        yield Completion(
            content=(Text(text=text),) if text else (),
            stop_reason="end_turn",
            usage=Usage(input_tokens=estimate_tokens(prompt), output_tokens=estimate_tokens(text), estimated=True),
            model=request.model,
        )

    async def models(self) -> tuple[ModelInfo, ...]:
        return (ModelInfo(name=self._config.default_model),)

    async def close(self) -> None:
        return None

    def _command(self, model: str, prompt: str) -> tuple[list[str], bool]:
        """The arguments, and whether the prompt goes to standard input. Raises ProviderRejected."""
        config = self._config
        if model.startswith("-") or "\0" in model:
            raise ProviderRejected(f"{model!r} is no model's name")
        if model != config.default_model and not any("{model}" in arg for arg in config.argv):
            raise ProviderRejected(f"this command has only the model {config.default_model}: its argv has no {{model}}")
        argv = list(config.argv)
        on_stdin = config.stdin or len(prompt.encode()) > _ARGUMENT_BYTES
        if on_stdin:
            argv = [arg for arg in argv if arg != "{prompt}"]
            if any("{prompt}" in arg for arg in argv):
                raise ProviderRejected(
                    "the prompt is too long for an argument: set stdin = true for this provider in perdure.toml"
                )
        elif not any("{prompt}" in arg for arg in argv):
            argv.append("{prompt}")
        # One pass, so that a prompt which contains {model} stays as it is. The space keeps `--option` a text.
        values = {"{model}": model, "{prompt}": f" {prompt}" if prompt.startswith("-") else prompt}
        return [re.sub(r"\{model\}|\{prompt\}", lambda found: values[found[0]], arg) for arg in argv], on_stdin

    async def _start(self, argv: list[str], prompt: str | None, directory: str) -> "_Run":
        if self._config.login_shell:
            # The profile's own output goes to standard error, the program's to the standard output that was kept as 3.
            # As positional parameters the arguments need no quoting, which differs between shells.
            fish = PurePath(self._shell).name == "fish"
            inner = ["exec $argv >&3 3>&-"] if fish else ['exec "$@" >&3 3>&-', "perdure"]
            argv = ["/bin/sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh", self._shell, "-l", "-c", *inner, *argv]
        loop = asyncio.get_running_loop()
        mark = f"{_MARK}={uuid4().hex}"
        try:
            # What create_subprocess_exec does, but with the transport in hand: `_Run.end` must close it.
            transport, protocol = await loop.subprocess_exec(
                lambda: SubprocessStreamProtocol(limit=65_536, loop=loop),
                *(arg.encode() for arg in argv),
                stdin=DEVNULL if prompt is None else PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=directory,
                env={**self._environment, **dict([mark.split("=")])},
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise self._missing(error.strerror or "not found") from None
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                raise self._missing(error.strerror or "not executable") from None
            raise ProviderUnavailable(f"the command could not be started: {error.strerror}") from None
        return _Run(Process(transport, protocol, loop), transport, prompt, self._config, mark)

    def _missing(self, detail: str) -> ProviderNotConfigured:
        return ProviderNotConfigured(
            f"the command {self._config.argv[0]} cannot be run ({detail}): correct argv of this provider in perdure.toml, "
            "or set login_shell = true so that it is found where your own shell finds it"
        )

    def _failure(self, code: int, stderr: str) -> ProviderError:
        said = f": {stderr}" if stderr else ""
        if code < 0:
            return ProviderUnavailable(f"the command was killed by signal {-code}{said}")
        if code in _NOT_FOUND:
            return self._missing(f"exit code {code}{said}")
        return ProviderRejected(f"the command ended with exit code {code}{said}")


@dataclass(frozen=True)
class _User:
    """The password database's entry for whom the service runs as; containers run as numbers that have none."""

    name: str
    home: str
    shell: str

    @classmethod
    def of(cls, uid: int) -> "_User":
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return cls(name=str(uid), home="/", shell="/bin/sh")
        known = PurePath(entry.pw_shell).name in (*_POSIX_SHELLS, "fish") and os.access(entry.pw_shell, os.X_OK)
        # Service accounts have nologin; csh knows no -l beside -c.
        return cls(name=entry.pw_name, home=entry.pw_dir, shell=entry.pw_shell if known else "/bin/sh")


class _Run:
    """A started program: feeds it, reads it, and ends it with everything that it started.

    Its descendants are found by their process group and by `mark`, a variable in their environment that they inherit: who
    leaves for a session of its own is found too. (Linux; elsewhere, and where one empties its environment, the group alone.)
    """

    def __init__(
        self, process: Process, transport: SubprocessTransport, prompt: str | None, config: CommandConfig, mark: str
    ) -> None:
        self._process = process
        self._transport = transport
        self._mark = mark.encode()
        self._config = config
        self._clock = asyncio.get_running_loop().time
        self._spoke_at = self._clock()
        self._deadline = self._spoke_at + config.timeout_seconds
        self._tail = b""
        self._stderr = asyncio.create_task(self._read_stderr())
        self._stdin = None if prompt is None else asyncio.create_task(self._feed(prompt.encode()))

    async def read(self) -> bytes:
        """More of standard output. Empty at its end, or soon after the program's where a child of it holds the pipe."""
        assert self._process.stdout
        if self._clock() >= self._deadline:
            raise self._late()
        while True:
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    chunk = await self._process.stdout.read(65_536)
            except TimeoutError:
                if self._transport.get_returncode() is not None:
                    return b""
                self._check()
            else:
                self._spoke_at = self._clock()
                return chunk

    async def exit_code(self) -> int:
        """Wait for the end; negative is a signal's number."""
        while (code := self._transport.get_returncode()) is None:
            self._check()
            # In ticks: some Pythons' wait() also waits for whoever holds the pipes.
            with suppress(TimeoutError):
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._process.wait()
        return code

    async def stderr(self) -> str:
        """The end of what it wrote to standard error."""
        await asyncio.wait({self._stderr}, timeout=_GRACE_SECONDS)
        return self._tail.decode(errors="replace").strip()

    async def end(self, *, all_of_it: bool) -> None:
        """SIGTERM, then SIGKILL to what is left of the group, or of all its descendants; returns when nothing is."""
        try:
            self._signal(signal.SIGTERM, all_of_it)
            await self._gone(_GRACE_SECONDS, all_of_it)
        finally:
            # Also when the wait was cancelled: nothing may outlive the call.
            self._signal(signal.SIGKILL, all_of_it)
            self._stderr.cancel()
            if self._stdin:
                self._stdin.cancel()
            try:
                await self._gone(_DYING_SECONDS, all_of_it)
            finally:
                # A process that left the group could hold our ends of the pipes open for ever.
                self._transport.close()

    async def _gone(self, within_seconds: float, all_of_it: bool) -> None:
        patience = self._clock() + within_seconds
        while self._left(all_of_it) and self._clock() < patience:  # noqa: ASYNC110  # nobody announces a group's end
            await asyncio.sleep(0.02)

    def _signal(self, number: int, all_of_it: bool) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)
        for pid in self._descendants() if all_of_it else ():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _left(self, all_of_it: bool) -> bool:
        # Until asyncio has its exit code: closing the transport earlier would take the code from under it.
        reaped = self._transport.get_returncode() is not None
        return not reaped or _group_lives(self._process.pid) or (all_of_it and bool(self._descendants()))

    def _descendants(self) -> list[int]:
        """Who carries the mark. A zombie carries nothing any more."""
        found: list[int] = []
        for pid in _pids():
            with suppress(OSError):
                if self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def _check(self) -> None:
        if self._clock() >= self._deadline:
            raise self._late()
        if self._clock() - self._spoke_at >= self._config.idle_timeout_seconds:
            raise ProviderStalled(
                f"the command printed nothing for {self._config.idle_timeout_seconds:g} s (idle_timeout_seconds)"
            )

    def _late(self) -> ProviderStalled:
        return ProviderStalled(f"the command ran longer than {self._config.timeout_seconds:g} s (timeout_seconds)")

    async def _read_stderr(self) -> None:
        assert self._process.stderr
        while chunk := await self._process.stderr.read(65_536):
            self._spoke_at = self._clock()
            self._tail = (self._tail + chunk)[-_STDERR_BYTES:]

    async def _feed(self, data: bytes) -> None:
        assert self._process.stdin
        # A program may end or close its input without reading it; its exit code says whether that was a failure.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        self._process.stdin.close()


def _pids() -> list[int]:
    with suppress(FileNotFoundError):  # no Linux
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _group_lives(group: int) -> bool:
    """Whether any of it is more than a zombie: in a container without an init nobody reaps those. Its id is not reused."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for pid in (pids := _pids()):
        with suppress(OSError):
            # proc(5): state, parent and group follow the name, which may hold anything.
            state, _, its_group = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state != b"Z":
                return True
    return not pids


def _prompt(request: CompletionRequest) -> str:
    """The conversation as one text; a lone first message stays as it is."""
    *earlier, last = request.messages
    parts = [f"System:\n{request.system}"] if request.system else []
    if earlier:
        parts.append("The conversation so far:")
        parts += [f"{m.role.capitalize()}:\n{_text(m)}" for m in earlier]
    if parts:
        parts.append("Answer this message:" if earlier else "Message:")
    text = "\n\n".join([*parts, _text(last)])
    # NUL ends an argument, a lone surrogate has no bytes.
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _text(message: Message) -> str:
    parts: list[str] = []
    for block in message.content:
        match block:
            case Text():
                parts.append(block.text)
            case ToolUse():
                parts.append(f"[called {block.name} with {json.dumps(block.input, ensure_ascii=False)}]")
            case ToolResult():
                parts.append(f"[{'error' if block.is_error else 'result'} of the call: {block.content}]")
            case Document(source=PlainTextSource(data=text)):
                parts.append(block.as_text(text))
            case Image() | Document():
                parts.append(f"[{'an image' if block.type == 'image' else 'a document'}, which cannot be shown here]")
            case Thinking():
                pass
    return "\n".join(parts)
