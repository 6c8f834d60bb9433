"""`perdure agents`: agents as files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from commands.context import Failed, of

if TYPE_CHECKING:
    from commands.client import Agent
    from domain.agents import AgentConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at agents, apply their files, roll back.")

Reference = Annotated[str, typer.Argument(metavar="AGENT", help="Name or id.")]
COLUMNS = ("agent", "name", "version", "model", "updated")


@app.command("list")
def list_agents(context: typer.Context, limit: Annotated[int, typer.Option(min=1)] = 100) -> None:
    """The stored agents, the newest first."""
    it = of(context)
    it.screen.table(COLUMNS, [_row(agent) for agent in it.client.agents(limit)])


@app.command()
def get(context: typer.Context, agent: Reference) -> None:
    """One agent's newest version, as JSON."""
    it = of(context)
    it.screen.answer(it.client.agent_as_json(agent))


@app.command()
def apply(
    context: typer.Context,
    file: Annotated[str, typer.Option("--file", "-f", help="YAML or JSON, one or several agents; - reads standard input.")],
) -> None:
    """Make the stored agents what the file says: a new agent, a new version, or nothing to do.

    An agent comes after those of the file that it may delegate to.
    """
    it = of(context)
    for config in _in_order(_read(file)):
        agent, what = it.client.apply(config)
        it.screen.answer(f"{agent.name} {agent.id} v{agent.version} {what}")


@app.command()
def versions(context: typer.Context, agent: Reference) -> None:
    """Every version of an agent, the newest first."""
    it = of(context)
    it.screen.table(COLUMNS, [_row(version) for version in it.client.agent_versions(agent)])


@app.command()
def rollback(context: typer.Context, agent: Reference, version: Annotated[int, typer.Argument(min=1)]) -> None:
    """Write a new version that says what an old one said."""
    it = of(context)
    rolled = it.client.roll_back(agent, version)
    it.screen.answer(f"{rolled.name} {rolled.id} v{rolled.version} says what v{version} said")


def _row(agent: "Agent") -> tuple[str, ...]:
    from commands.show import moment  # noqa: PLC0415  # see commands/context.py

    return agent.id, agent.name, str(agent.version), agent.model.id, moment(agent.updated_at)


def _in_order(configs: "list[AgentConfig]") -> "list[AgentConfig]":
    """Each behind those that its roster names; else as they stand in the file."""
    from domain.multiagent import RosterAgent  # noqa: PLC0415  # see commands/context.py

    by_name = {config.name: config for config in configs}
    ordered: dict[str, AgentConfig] = {}
    begun: set[str] = set()

    def take(config: "AgentConfig") -> None:
        if config.name in begun:  # of a circle, the service says what is wrong
            return
        begun.add(config.name)
        for entry in config.multiagent.agents if config.multiagent else ():
            if isinstance(entry, RosterAgent) and entry.id in by_name:
                take(by_name[entry.id])
        ordered[config.name] = config

    for config in configs:
        take(config)
    return list(ordered.values())


def _read(file: str) -> "list[AgentConfig]":
    """All agents of the file; raises Failed with every fault before anything is sent."""
    import yaml  # noqa: PLC0415  # see commands/context.py
    from pydantic import ValidationError  # noqa: PLC0415

    from domain.agents import AgentConfig  # noqa: PLC0415

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Failed(f"{file} cannot be read: {error}") from error
    if not documents:
        raise Failed(f"{file} has no agent in it.")
    configs: list[AgentConfig] = []
    faults: list[str] = []
    for number, document in enumerate(documents, 1):
        try:
            configs.append(AgentConfig.model_validate(document))
        except ValidationError as error:
            for fault in error.errors():
                place = ".".join(str(part) for part in fault["loc"]) or "agent"
                faults.append(f"  agent {number}, {place}: {fault['msg'].removeprefix('Value error, ')}")
    if faults:
        raise Failed("\n".join([f"{file} was not applied:", *faults]))
    return configs
