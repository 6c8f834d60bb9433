"""The base of what callers and operators write."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """What callers send: unknown members are refused, so that a misspelt limit is an error and not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
