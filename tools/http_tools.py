"""HTTP tools: an endpoint of the agent's owner, called by POST and signed as Standard Webhooks (standardwebhooks.com) says."""

import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial

import httpx2
from pydantic import JsonValue
from standardwebhooks import Webhook

from domain.agent_tools import HttpTool
from domain.agents import AgentConfig
from domain.clock import now
from domain.completions import ToolSpec
from domain.errors import Pointer, ToolFailed, UnknownSecret
from domain.secrets import Secrets
from domain.tools import Effect, OfferedTool, ToolContext
from tools.public_http import BrokeOff, PublicHttp, read_body, web_address
from tools.schemas import Schema, SchemaFault

MAX_BODY_BYTES = 1_000_000
MAX_ERROR_CHARS = 2_000
SECRET_BYTES = range(24, 65)
"""What Standard Webhooks allows."""


class HttpTools:
    def __init__(self, http: PublicHttp, secrets: Secrets) -> None:
        self._http = http
        self._secrets = secrets

    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        return [self._offer(tool) for tool in config.tools if isinstance(tool, HttpTool)]

    def _offer(self, tool: HttpTool) -> OfferedTool:
        return OfferedTool(
            spec=ToolSpec(name=tool.name, description=tool.description, input_schema=tool.input_schema),
            effect=Effect(tool.effect),
            timeout_seconds=tool.timeout_seconds,
            policy="always_ask" if tool.permission_policy is None else tool.permission_policy.type,
            call=partial(self._call, tool),
        )

    async def _call(self, tool: HttpTool, input: Mapping[str, JsonValue], context: ToolContext) -> str:
        try:
            misfits = Schema(tool.input_schema).faults(dict(input))
        except SchemaFault as error:
            raise ToolFailed(f"{tool.name} cannot be called: its schema is faulty: {error.detail}") from error
        if misfits:
            raise ToolFailed("invalid arguments\n" + "\n".join(misfits))
        body = _body(tool, input, context)
        try:
            headers = {**self._signed(tool, body, context), "Idempotency-Key": context.idempotency_key}
            # The tool's time is kept by whoever calls it; here, the longest silence.
            async with self._http.send(
                "POST",
                web_address(tool.url),
                {"Content-Type": "application/json", "Accept": "application/json, text/*;q=0.9", **headers},
                subject=tool.name,
                seconds=tool.timeout_seconds,
                content=body.encode(),
            ) as response:
                return await _answer(tool, response)
        except BrokeOff as error:
            if tool.effect == "read":
                raise
            raise ToolFailed(f"{error.message}; whether it had an effect is unknown") from error

    def _signed(self, tool: HttpTool, body: str, context: ToolContext) -> dict[str, str]:
        """The headers of Standard Webhooks. The id is the tool use's: the same for every attempt, and of no other call."""
        at = now()
        headers = {"webhook-id": context.tool_use_id, "webhook-timestamp": str(int(at.timestamp()))}
        if tool.secret is not None:
            try:
                signer = Webhook(_key(self._secrets.get(tool.secret)))
            except (UnknownSecret, ValueError):
                raise ToolFailed(f"{tool.name} cannot be called: its secret {tool.secret!r} is not usable any more") from None
            headers["webhook-signature"] = signer.sign(context.tool_use_id, at, body)
        return headers


def faults(tool: HttpTool, secrets: Secrets, pointer: str) -> list[Pointer]:
    """What keeps a tool from ever being called, with where in the request it stands."""
    found: list[Pointer] = []
    try:
        web_address(tool.url)
    except ToolFailed as error:
        found.append(Pointer(pointer=f"{pointer}/url", detail=error.message))
    try:
        Schema(tool.input_schema)
    except SchemaFault as fault:
        path = "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in fault.path)
        found.append(Pointer(pointer=f"{pointer}/input_schema{path}", detail=fault.detail))
    if tool.secret is not None:
        try:
            _key(secrets.get(tool.secret))
        except UnknownSecret as error:
            known = ", ".join(secrets.names) or "none"
            found.append(Pointer(pointer=f"{pointer}/secret", detail=f"{error.message}. Known: {known}."))
        except ValueError:
            detail = f"The secret {tool.secret!r} cannot sign: it must be base64 of 24 to 64 bytes, with or without whsec_."
            found.append(Pointer(pointer=f"{pointer}/secret", detail=detail))
    return found


def _key(secret: str) -> bytes:
    """A signing secret's bytes. Raises ValueError, where the package would skip what is no base64."""
    encoded = secret.removeprefix("whsec_")
    key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    if len(key) not in SECRET_BYTES:
        raise ValueError
    return key


def _body(tool: HttpTool, input: Mapping[str, JsonValue], context: ToolContext) -> str:
    body: dict[str, JsonValue] = {
        "tool": tool.name,
        "tool_use_id": context.tool_use_id,
        "run_id": context.run_id,
        "session_id": context.session_id,
        "input": dict(input),
    }
    return json.dumps(body)


async def _answer(tool: HttpTool, response: httpx2.Response) -> str:
    status = f"{response.status_code} {response.reason_phrase}".rstrip()
    if response.is_redirect:
        raise ToolFailed(f"{tool.name} answered {status}, and redirects are not followed")
    body, cut = await read_body(response, MAX_BODY_BYTES, tool.name)
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    if not response.is_success:
        raise ToolFailed(f"{tool.name} answered {status}\n{text[:MAX_ERROR_CHARS]}".rstrip())
    media_type = response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    if not (media_type.startswith("text/") or media_type == "application/json" or media_type.endswith("+json")):
        raise ToolFailed(f"{tool.name} answered {status}, but with {media_type}: only JSON and text can be read")
    return f"{text}\n[cut: the answer is longer than 1 MB]" if cut else text or status
