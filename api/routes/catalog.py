"""/v1/providers, /v1/models, /v1/tools, /v1/mcp_servers: what an agent may name."""

import asyncio
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth import AgentsRead
from api.errors import PROBLEMS
from api.pages import List, listed
from api.state import TheService
from api.transaction import TransactionalRoute
from domain.completions import ModelInfo
from domain.errors import ProviderError
from domain.tools import Effect

router = APIRouter(prefix="/v1", tags=["catalogue"], route_class=TransactionalRoute, responses=PROBLEMS)

MODELS_TIMEOUT_SECONDS = 5


class ProviderView(BaseModel):
    type: Literal["provider"] = "provider"
    name: str
    kind: str
    available: bool
    error: str | None
    """Why it cannot be called now, and what to set."""


class ModelView(BaseModel):
    type: Literal["model"] = "model"
    id: str
    """`provider:name`, as an agent writes it."""
    provider: str
    display_name: str
    lifecycle: Literal["active"] = "active"
    created_at: str = "1970-01-01T00:00:00Z"
    """The epoch, which in the `anthropic` package says that it is not known."""
    context_tokens: int | None
    max_output_tokens: int | None


class ToolView(BaseModel):
    type: Literal["tool"] = "tool"
    name: str
    description: str
    input_schema: dict[str, Any]
    effect: Effect
    builtin: bool


class McpServerView(BaseModel):
    type: Literal["mcp_server"] = "mcp_server"
    name: str
    """What an agent writes as `server` of a `stdio` server."""


@router.get("/providers")
async def list_providers(caller: AgentsRead, service: TheService) -> List[ProviderView]:
    """Every configured provider, and whether it answers."""
    asked = await _ask_all(service)
    configs = service.catalog.providers.configs
    views = [
        ProviderView(
            name=name,
            kind=configs[name].kind,
            available=not isinstance(answer, ProviderError),
            error=answer.message if isinstance(answer, ProviderError) else None,
        )
        for name, answer in asked.items()
    ]
    return listed(views, None)


@router.get("/models")
async def list_models(caller: AgentsRead, service: TheService) -> List[ModelView]:
    """The models of every provider that answers."""
    views = [
        ModelView(
            id=f"{name}:{model.name}",
            provider=name,
            display_name=model.name,
            context_tokens=model.context_tokens,
            max_output_tokens=model.max_output_tokens,
        )
        for name, answer in (await _ask_all(service)).items()
        if not isinstance(answer, ProviderError)
        for model in answer
    ]
    return listed(views, None)


@router.get("/tools")
async def list_tools(caller: AgentsRead, service: TheService) -> List[ToolView]:
    """The built-in tools and the operator's own."""
    tools = service.catalog.tools
    views = [
        ToolView(
            name=spec.name,
            description=spec.description,
            input_schema=spec.input_schema,
            effect=tool.effect,
            builtin=tools.is_builtin(spec.name),
        )
        for spec in tools.specs(tools.names)
        if (tool := tools.get(spec.name)) is not None
    ]
    return listed(views, None)


@router.get("/mcp_servers")
async def list_mcp_servers(caller: AgentsRead, service: TheService) -> List[McpServerView]:
    """The programs that the operator lets agents name as MCP servers of the type `stdio`."""
    return listed([McpServerView(name=name) for name in service.catalog.mcp.commands], None)


async def _ask_all(service: TheService) -> dict[str, tuple[ModelInfo, ...] | ProviderError]:
    names = service.catalog.providers.names
    answers = await asyncio.gather(*(_ask(service, name) for name in names))
    return dict(zip(names, answers, strict=True))


async def _ask(service: TheService, name: str) -> tuple[ModelInfo, ...] | ProviderError:
    try:
        async with asyncio.timeout(MODELS_TIMEOUT_SECONDS):
            return await service.catalog.providers.get(name).models()
    except ProviderError as error:
        return error
    except TimeoutError:
        return ProviderError(f"{name} did not answer within {MODELS_TIMEOUT_SECONDS} s.")
