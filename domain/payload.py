"""What the payloads of events are made of."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Payload(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class TextContent(Payload):
    type: Literal["text"] = "text"
    text: str
