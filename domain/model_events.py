"""Events of model calls."""

from typing import Literal

from domain.payload import Payload
from domain.runs import RunError
from domain.usage import Cost, Usage

Purpose = Literal["compaction"] | None
"""What a model call is for, where it is not an answer in the conversation."""


class ModelRequestStart(Payload):
    type: Literal["span.model_request_start"] = "span.model_request_start"
    model: str
    attempt: int
    purpose: Purpose = None


class ModelRequestEnd(Payload):
    type: Literal["span.model_request_end"] = "span.model_request_end"
    model_request_start_id: str
    is_error: bool = False
    model_usage: Usage
    cost: Cost | None = None
    duration_ms: int
    time_to_first_token_ms: int | None = None
    attempt: int
    error: RunError | None = None
    purpose: Purpose = None
