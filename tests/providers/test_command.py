import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from domain.completions import Completion, CompletionRequest, Delta, Message, Provider, Text, Thinking, ToolResult, ToolUse
from domain.errors import ProviderError, ProviderNotConfigured, ProviderRejected, ProviderStalled, ProviderUnavailable
from providers.command import CommandProvider
from providers.config import CommandConfig


def user(text: str) -> Message:
    return Message(role="user", content=(Text(text=text),))


def ask(text: str = "hello", model: str = "default") -> CompletionRequest:
    return CompletionRequest(model=model, messages=(user(text),))


def python(source: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-c", source, *arguments)


def command(*argv: str, environment: Mapping[str, str] | None = None, **members: object) -> Provider:
    return CommandProvider(CommandConfig.model_validate({"argv": argv, **members}), environment or {})


async def play(provider: Provider, request: CompletionRequest) -> tuple[list[str], Completion]:
    items = [item async for item in provider.stream(request)]
    last = items.pop()
    assert isinstance(last, Completion)
    return [item.text for item in items if isinstance(item, Delta)], last


async def answer(provider: Provider, request: CompletionRequest) -> str:
    pieces, completion = await play(provider, request)
    assert "".join(pieces) == "".join(b.text for b in completion.content if isinstance(b, Text))
    return "".join(pieces)


async def failure(provider: Provider, request: CompletionRequest | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await play(provider, request or ask())
    return caught.value


async def begin(stream: AsyncIterator[Delta | Completion]) -> str:
    first = await anext(stream)
    assert isinstance(first, Delta)
    return first.text


async def gone(pids: list[int], seconds: float) -> bool:
    """Whether all of them are dead, reaped or not, within that time."""
    end = time.monotonic() + seconds
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in pids):
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.02)
    return True


async def test_output_is_streamed_as_it_comes_and_ends_the_turn() -> None:
    provider = command(*python("import time\nfor w in ('one ', 'two ', 'three\\n'): print(w, end=''); time.sleep(0.3)"))
    began = time.monotonic()
    arrivals = [(item, time.monotonic() - began) async for item in provider.stream(ask())]

    texts = [(item.text, at) for item, at in arrivals if isinstance(item, Delta)]
    assert [text for text, _ in texts] == ["one ", "two ", "three"]
    assert texts[2][1] - texts[0][1] > 0.4
    completion = arrivals[-1][0]
    assert isinstance(completion, Completion)
    assert completion.content == (Text(text="one two three"),)
    assert (completion.stop_reason, completion.model) == ("end_turn", "default")
    assert completion.usage.estimated
    assert (completion.usage.input_tokens, completion.usage.output_tokens) == (2, 4)


async def test_characters_split_between_reads_stay_whole() -> None:
    source = (
        "import sys,time\nfor b in 'é€😀'.encode(): sys.stdout.buffer.write(bytes([b])); sys.stdout.flush(); time.sleep(0.02)"
    )
    pieces, _ = await play(command(*python(source)), ask())

    assert pieces == ["é", "€", "😀"]
    assert await answer(command("printf", r"a\377b\342\202", "{prompt}"), ask()) == "a\ufffdb\ufffd"


@pytest.mark.parametrize("login_shell", [False, True])
@pytest.mark.parametrize("prompt", ["it's $HOME `id` \\' \"q\"\n!x; exit 3", "--help", "{model} {prompt}", "a\0b \ud800"])
async def test_the_prompt_is_one_argument_whatever_it_contains(prompt: str, login_shell: bool) -> None:
    show = python("import sys; print(repr(sys.argv[1:]))")
    expected = {"--help": " --help", "a\0b \ud800": "a\ufffdb ?"}.get(prompt, prompt)

    appended = await answer(command(*show, login_shell=login_shell), ask(prompt))
    assert appended == repr([expected])
    placed = await answer(command(*show, "-m={model}", "{prompt}", "end", login_shell=login_shell), ask(prompt, model="small"))
    assert placed == repr(["-m=small", expected, "end"])


@pytest.mark.parametrize("login_shell", [False, True])
async def test_long_prompts_and_those_configured_go_to_standard_input(login_shell: bool) -> None:
    show = python("import sys; t = sys.stdin.read(); print(sys.argv[1:], len(t), t[:3])")
    long = "€" * 200_000

    assert await answer(command(*show, stdin=True, login_shell=login_shell), ask("-hi")) == "[] 3 -hi"
    assert await answer(command(*show, login_shell=login_shell), ask(long)) == "[] 200000 €€€"
    assert await answer(command(*show, "{prompt}", "x", login_shell=login_shell), ask(long)) == "['x'] 200000 €€€"
    assert "stdin = true" in (await failure(command(*show, "--prompt={prompt}"), ask(long))).message
    # Neither a program that reads nothing nor one that writes before it reads may block.
    assert await answer(command("true"), ask(long)) == ""
    assert len(await answer(command(*python("import sys; print('y' * 300000); sys.stdin.read()")), ask(long))) == 300_000


async def test_both_ways_in_at_once_are_a_configuration_error() -> None:
    with pytest.raises(ValidationError, match="either to standard input"):
        command("cat", "{prompt}", stdin=True)


async def test_only_configured_models_and_no_options_in_their_place() -> None:
    assert await command("echo", default_model="opus").models() == (await command("x", default_model="opus").models())
    assert isinstance(await failure(command("echo"), ask(model="other")), ProviderRejected)
    assert isinstance(await failure(command("echo", "{model}"), ask(model="--version")), ProviderRejected)


async def test_a_conversation_becomes_one_labelled_text() -> None:
    request = CompletionRequest(
        model="default",
        system="Be brief.",
        messages=(
            user("What is in a.txt?"),
            Message(
                role="assistant",
                content=(Thinking(text="secret"), Text(text="I look."), ToolUse(id="t", name="read", input={"path": "ä"})),
            ),
            Message(role="user", content=(ToolResult(tool_use_id="t", content="42"), Text(text="And now?"))),
        ),
    )

    assert await answer(command("printf", "%s", "{prompt}"), request) == (
        "System:\nBe brief.\n\nThe conversation so far:\n\nUser:\nWhat is in a.txt?\n\n"
        'Assistant:\nI look.\n[called read with {"path": "ä"}]\n\nAnswer this message:\n\n[result of the call: 42]\nAnd now?'
    )


async def test_exit_codes_become_errors_with_the_end_of_stderr() -> None:
    rejected = await failure(command("sh", "-c", "echo partly; seq 1 2000 >&2; echo 'no credit' >&2; exit 3"))
    assert isinstance(rejected, ProviderRejected)
    assert "exit code 3" in rejected.message
    assert rejected.message.endswith("no credit")
    assert "1000\n" not in rejected.message
    assert len(rejected.message) < 2200

    killed = await failure(command("sh", "-c", "kill -9 $$"))
    assert isinstance(killed, ProviderUnavailable)
    assert "signal 9" in killed.message


@pytest.mark.parametrize("login_shell", [False, True])
async def test_a_missing_program_is_named(login_shell: bool, tmp_path: Path) -> None:
    plain = tmp_path / "no-program"
    plain.write_text("not executable")
    for name in ("no-such-model-cli", str(plain)):
        error = await failure(command(name, login_shell=login_shell))
        assert isinstance(error, ProviderNotConfigured)
        assert name in error.message
        assert "perdure.toml" in error.message


async def test_the_environment_is_clean_but_for_what_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_SECRET", "hidden")
    show = "import os; print(sorted(os.environ), os.environ['TOKEN'], os.listdir('.'), os.getcwd())"
    text = await answer(command(*python(show), environment={"TOKEN": "given"}), ask())

    assert "['HOME', 'LANG', 'LOGNAME', 'PATH', 'PERDURE_CALL', 'SHELL', 'TOKEN', 'USER'] given [] " in text
    assert not Path(text.rpartition(" ")[2]).exists()


async def test_a_login_shell_reads_the_profile_and_keeps_its_chatter_out(tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("echo Welcome; mesg() { :; }; export FROM_PROFILE=yes\n")
    show = python("import os; print(os.environ['FROM_PROFILE'])")

    assert await answer(command(*show, login_shell=True, environment={"HOME": str(tmp_path)}), ask()) == "yes"


async def test_silence_and_slowness_stall() -> None:
    began = time.monotonic()
    silent = await failure(command("sleep", "30", "{prompt}", idle_timeout_seconds=0.3), ask("1"))
    slow = await failure(command(*python("import time\nwhile 1: print(1); time.sleep(0.05)"), timeout_seconds=0.5))

    assert isinstance(silent, ProviderStalled)
    assert "idle_timeout_seconds" in silent.message
    assert isinstance(slow, ProviderStalled)
    assert "(timeout_seconds)" in slow.message
    assert time.monotonic() - began < 4
    chatty = python("import sys,time\nfor _ in range(8): print('.', file=sys.stderr); time.sleep(0.1)\nprint('done')")
    assert await answer(command(*chatty, idle_timeout_seconds=0.6), ask()) == "done"


FAMILY = """
import os, signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
child.stdout.readline()
os.write(1, f"{os.getpid()} {child.pid}".encode())
time.sleep(60)
"""


@pytest.mark.parametrize("login_shell", [False, True])
@pytest.mark.parametrize("way", ["cancel", "close", "cancel twice"])
async def test_stopping_kills_the_whole_group_within_a_second(way: str, login_shell: bool) -> None:
    stream = command(*python(FAMILY), login_shell=login_shell).stream(ask())
    pids = [int(p) for p in (await begin(stream)).split()]
    assert all(psutil.pid_exists(p) for p in pids)

    began = time.monotonic()
    if way == "close":
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator, by its type an iterator
    else:
        task = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        task.cancel()
        if way == "cancel twice":
            await asyncio.sleep(0.05)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await gone(pids, 1 - (time.monotonic() - began))


async def test_what_a_finished_program_left_behind_is_ended_and_does_not_delay() -> None:
    began = time.monotonic()
    assert (await answer(command("sh", "-c", "sleep 60 & echo $!"), ask())).isdigit()
    text = await answer(command("sh", "-c", "sleep 60 & echo $!"), ask())
    assert await gone([int(text)], 1)

    before = psutil.Process().num_fds()
    text = await answer(
        command(*python("import subprocess; print(subprocess.Popen(['sleep','60'],start_new_session=True).pid)")), ask()
    )
    await asyncio.sleep(0.05)
    # It left the group, so it lives; but neither the call nor our ends of its pipes wait for it.
    psutil.Process(int(text)).kill()
    assert psutil.Process().num_fds() <= before
    assert time.monotonic() - began < 5


async def test_endless_output_is_refused() -> None:
    assert "printed more than" in (await failure(command("yes"))).message
