"""MCP servers as a source of an agent's tools."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mcp.client import Client
from mcp.shared.exceptions import MCPError
from mcp_types import HEADER_MISMATCH, CallToolRequest, CallToolRequestParams, CallToolResult
from pydantic import JsonValue

from domain.agent_tools import McpToolset
from domain.agents import AgentConfig
from domain.completions import ToolSpec
from domain.errors import Invalid, ToolFailed
from domain.mcp import McpServer, StdioServer, UrlServer, tool_name
from domain.secrets import Secrets
from domain.tools import Effect, OfferedTool, ToolContext
from tools.mcp.config import DIRECTORY, McpCommand
from tools.mcp.connections import Connection, Connections, Lost, Wire
from tools.mcp.content import text_of
from tools.mcp.listing import ASK_SECONDS, ListedTool, Listing, Listings, Trouble, list_tools
from tools.mcp.process import Launch, ProcessWire
from tools.mcp.redaction import Redactor
from tools.mcp.web import Network, WebWire

MAX_OFFERED = 200
"""Of one server. More would only be a bill: an agent names what it needs."""
MAX_ERROR_CHARS = 2_000

log = logging.getLogger(__name__)


class McpTools:
    """`commands`: the programs that the operator allows, by name. `variable`: the worker's variables, for those programs.

    Raises Invalid for one that is to get a secret which is not there.
    """

    def __init__(
        self,
        commands: Mapping[str, McpCommand],
        variable: Callable[[str], str | None],
        secrets: Secrets,
        network: Network,
    ) -> None:
        for name, command in commands.items():
            if missing := [secret for secret in command.secrets.values() if secret not in secrets.names]:
                raise Invalid(f"mcp.{name}.secrets: there is no secret {missing[0]!r} in [secrets]")
        self.commands = commands
        self._variable = variable
        self._secrets = secrets
        self._network = network
        self._connections = Connections()
        self._listings = Listings()

    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        sets = [(server, tools) for tools in config.tools if isinstance(tools, McpToolset) and (server := _of(config, tools))]
        listings = await asyncio.gather(*(self._listing(server) for server, _ in sets))
        return [
            self._offer(server, tools, tool)
            for (server, tools), listing in zip(sets, listings, strict=True)
            if isinstance(listing, tuple)
            for tool in [tool for tool in listing if tools.enabled(tool.name)][:MAX_OFFERED]
        ]

    def troubles(self, config: AgentConfig) -> Sequence[Trouble]:
        """The agent's servers whose tools were left out, as far as `offered` has found out."""
        return [trouble for server in config.mcp_servers if (trouble := self._listings.known(_key(server)))]

    def unlisted(self, config: AgentConfig, server: str, tool: str, effect: Effect) -> OfferedTool | None:
        """A tool that the model was offered by another worker, where this one has not reached the server."""
        for tools in config.tools:
            if isinstance(tools, McpToolset) and tools.mcp_server_name == server and tools.enabled(tool):
                found = _of(config, tools)
                listed = ListedTool(name=tool, description="", input_schema={"type": "object"}, effect=effect)
                return None if found is None else self._offer(found, tools, listed)
        return None

    def refusal(self, server: McpServer) -> str | None:
        """Why an agent may not have that server, if so."""
        match server:
            case StdioServer(allowed_as=name):
                known = ", ".join(self.commands) or "none"
                return None if name in self.commands else f"The operator allows no MCP server {name!r}. Allowed: {known}."
            case UrlServer():
                missing = [name for name in server.secrets if name not in self._secrets.names]
                if missing:
                    known = ", ".join(self._secrets.names) or "none"
                    return f"There is no secret {missing[0]!r}. The operator's: {known}."
                return self._network.refusal(server)

    async def close(self) -> None:
        """Ends every connection, and the processes of ours with all that they started."""
        await self._listings.close()
        await self._connections.close()

    def _offer(self, server: McpServer, tools: McpToolset, tool: ListedTool) -> OfferedTool:
        async def call(input: Mapping[str, JsonValue], context: ToolContext) -> str:
            return await self._call(server, tool.name, input, context)

        return OfferedTool(
            spec=ToolSpec(name=tool_name(server.name, tool.name), description=tool.description, input_schema=tool.input_schema),
            effect=tool.effect,
            timeout_seconds=server.timeout_seconds,
            policy=tools.policy(tool.name),
            call=call,
            kind="mcp",
            origin=(server.name, tool.name),
        )

    async def _call(self, server: McpServer, tool: str, input: Mapping[str, JsonValue], context: ToolContext) -> str:
        key = (context.workspace_id, context.session_id, _key(server))

        async def ask() -> CallToolResult:
            async with self._connections.use(key, lambda: self._wire(server, context.directory)) as connection:
                return await connection.request(lambda client: _call_tool(client, tool, input))

        try:
            try:
                result = await ask()
            except Lost as lost:
                if not lost.forgotten:
                    raise
                result = await ask()
        except Lost as lost:
            doubt = "; whether the call had an effect is unknown" if lost.asked else ""
            raise ToolFailed(f"the MCP server {server.name} is not available: {lost.message}{doubt}") from None
        except MCPError as error:
            said = self._redactor(server).text(error.error.message)[:MAX_ERROR_CHARS]
            raise ToolFailed(f"the MCP server {server.name} answered with an error: {said}") from None
        except (ValueError, RuntimeError):  # the package's words for it quote what was sent
            raise ToolFailed(f"the MCP server {server.name} answered with what is no result") from None
        text = self._redactor(server).text(text_of(result))
        if result.is_error:
            raise ToolFailed(text or "the tool failed and did not say why")
        return text

    async def _listing(self, server: McpServer) -> Listing | Trouble:
        return await self._listings.of(_key(server), server.name, lambda: self._ask(server))

    async def _ask(self, server: McpServer) -> Listing | Trouble:
        """List its tools, on a connection of its own: no session's server is to know of another's calls."""
        with TemporaryDirectory(prefix="perdure-mcp-", ignore_cleanup_errors=True) as directory:
            connection: Connection | None = None
            wire: Wire | None = None
            try:
                wire = self._wire(server, Path(directory))
                connection = Connection(wire)
                async with asyncio.timeout(ASK_SECONDS):
                    return await connection.request(lambda client: list_tools(client, self._redactor(server)))
            except ToolFailed as error:
                message = error.message
            except TimeoutError:
                message = f"it has not listed its tools within {ASK_SECONDS:g} seconds"
            except MCPError as error:
                message = f"it answered with an error: {self._redactor(server).text(error.error.message)[:MAX_ERROR_CHARS]}"
            except (ValueError, RuntimeError):
                message = "it answered with what is no list of tools"
            finally:
                if connection is not None:
                    await connection.close()
        refused = isinstance(wire, WebWire) and wire.refused
        if isinstance(wire, WebWire) and wire.fault:
            message = wire.fault
        log.warning("MCP server %s: %s", server.name, message)
        return Trouble(server.name, message, refused)

    def _wire(self, server: McpServer, directory: Path) -> Wire:
        """Raises ToolFailed."""
        if refusal := self.refusal(server):
            raise ToolFailed(refusal)
        match server:
            case UrlServer():
                headers = {name: self._secret(header.secret) for name, header in server.headers.items()}
                if server.authorization_secret is not None:
                    headers["Authorization"] = f"Bearer {self._secret(server.authorization_secret)}"
                return WebWire(server.url, headers, self._network)
            case StdioServer(allowed_as=name):
                directory.mkdir(parents=True, exist_ok=True)
                return ProcessWire(self._launch(name, self.commands[name], directory), self._redactor(server))

    def _launch(self, name: str, command: McpCommand, directory: Path) -> Launch:
        passed = {variable: value for variable in command.env if (value := self._variable(variable)) is not None}
        secret = {variable: self._secrets.get(known) for variable, known in command.secrets.items()}
        return Launch(
            name=name,
            program=command.program(self._variable),
            arguments=tuple(part.replace(DIRECTORY, str(directory)) for part in command.argv[1:]),
            environment={**passed, **secret},
            cwd=command.cwd or directory,
        )

    def _secret(self, name: str) -> str:
        """Fit for a header. Raises ToolFailed."""
        value = self._secrets.get(name).strip()
        if not value or not value.isascii() or not value.isprintable():
            raise ToolFailed(f"the secret {name} cannot be sent as a header")
        return value

    def _redactor(self, server: McpServer) -> Redactor:
        if isinstance(server, UrlServer):
            names = server.secrets
        else:
            command = self.commands.get(server.allowed_as)
            names = () if command is None else tuple(command.secrets.values())
        values = [self._secrets.get(name) for name in names if name in self._secrets.names]
        return Redactor((*values, *(value.strip() for value in values)))


async def _call_tool(client: Client, tool: str, input: Mapping[str, JsonValue]) -> CallToolResult:
    """Not the client's own method: that checks results against a server's schema, which can be made so that this never ends."""
    request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=dict(input)))
    try:
        return await client.session.send_request(request, CallToolResult)
    except MCPError as error:
        if error.code != HEADER_MISMATCH:
            raise
    # This connection has not read the schema that says which arguments go into headers (MCP 2026-07-28).
    await list_tools(client, Redactor())
    return await client.session.send_request(request, CallToolResult)


def _of(config: AgentConfig, tools: McpToolset) -> McpServer | None:
    return next((server for server in config.mcp_servers if server.name == tools.mcp_server_name), None)


def _key(server: McpServer) -> str:
    return server.model_dump_json()
