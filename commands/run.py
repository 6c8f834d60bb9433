"""`perdure run` and `perdure chat`."""

import sys
from contextlib import closing
from typing import Annotated, Literal

import typer

from commands.context import Context, Failed, of

DETACHED = 130
"""The exit code of a command that Ctrl-C ended."""

OnBusy = Literal["queue", "steer", "interrupt", "reject"]
"""As `domain.sessions` has it, which costs time to import."""
AgentOption = Annotated[str | None, typer.Option("--agent", help="Name or id; default: assistant if there is one, else demo.")]


def run(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to do; - reads it from standard input.")],
    agent: AgentOption = None,
    model: Annotated[
        str | None, typer.Option("--model", "--provider", help="A bare model, written provider:name, instead of an agent.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Go on in this session (sesn_…).")] = None,
    on_busy: Annotated[OnBusy | None, typer.Option(help="With --session, while a turn runs there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one event a line.")] = False,
) -> None:
    """Run an agent and watch it. Exit code 1 when it did not complete; Ctrl-C leaves it running."""
    if sum(choice is not None for choice in (agent, model, session)) > 1:
        raise Failed("Give one of --agent, --model and --session: a session keeps the agent it began with.")
    if on_busy is not None and session is None:
        raise Failed("--on-busy is for a --session: a run of its own meets nobody at work.")
    it = of(context)
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise Failed("The prompt is empty.")
    if session is not None and on_busy is not None:
        started = it.client.send(session, text, on_busy).run
    else:
        started = it.client.start_run(text, agent=agent, model=model, session=session)
    raise typer.Exit(follow(it, started.id, typed=text, as_json=as_json))


def follow(it: Context, run_id: str, *, typed: str | None, as_json: bool) -> int:
    """Show a run from its beginning to its end; answers the exit code."""
    from commands.frames import Done  # noqa: PLC0415  # see commands/context.py
    from commands.story import Story, lost  # noqa: PLC0415

    path = f"/v1/runs/{run_id}/events/stream"
    status = None
    try:
        if as_json:
            frames = it.client.connection.stream(path, lambda why: it.screen.failure(lost(why)))
            with closing(frames):
                for frame in frames:
                    if frame.durable:
                        it.screen.answer(frame.data)
                    elif frame.event == "done":
                        status = Done.model_validate_json(frame.data).status
        else:
            with Story(it.screen, typed) as story, closing(it.client.connection.stream(path, story.dropped)) as frames:
                for frame in frames:
                    story.show(frame)
            status = story.status
    except KeyboardInterrupt:
        it.screen.failure(f"Left it running. To follow it again: perdure runs logs {run_id} --follow")
        return DETACHED
    return 0 if status == "completed" else 1


def chat(
    context: typer.Context,
    agent: AgentOption = None,
    session: Annotated[str | None, typer.Option(help="Go on in this session (sesn_…).")] = None,
) -> None:
    """Talk with an agent, line by line. /quit or Ctrl-D leaves."""
    from commands.story import Story  # noqa: PLC0415  # see commands/context.py

    if agent is not None and session is not None:
        raise Failed("Give one of --agent and --session: a session keeps the agent it began with.")
    it = of(context)
    talk = it.client.start_session(agent) if session is None else it.client.session(session)
    it.screen.note(f"{talk.agent.name} v{talk.agent.version} · {talk.id} · /quit leaves")
    if talk.last_message is not None:
        it.screen.note(f"{talk.message_count} messages; last, {talk.last_message.role}: {talk.last_message.text}")
    path = f"/v1/sessions/{talk.id}/events/stream"
    cursor: str | None = None
    try:
        while (text := _ask("› ")) is not None:
            accepted = it.client.send(talk.id, text)
            with Story(it.screen, text) as story:
                frames = it.client.connection.stream(path, story.dropped, cursor=cursor, after=accepted.event.seq - 1)
                with closing(frames):
                    for frame in frames:
                        story.show(frame)
                        cursor = frame.id
                        if (asking := story.asking) is not None:
                            with story.aside():
                                answer = _ask("answer › ")
                            if answer is None:
                                return
                            story.asking = None
                            it.client.command(asking, "input", {"content": answer})
                        if accepted.run.id in story.over:
                            break
    except KeyboardInterrupt:
        pass
    finally:
        it.screen.note(f"\nTo go on: perdure chat --session {talk.id}")


def _ask(prompt: str) -> str | None:
    """The next line that says something; None at the end."""
    while True:
        try:
            text = input(prompt if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if text == "/quit":
            return None
        if text:
            return text
