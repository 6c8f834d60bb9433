"""Files given with the input, and artifacts that agents publish."""

import re
from typing import Literal

from pydantic import BaseModel

from domain.strict import Strict

_MEDIA_TYPE = re.compile(r"[a-zA-Z0-9][\w.+-]{0,60}/[a-zA-Z0-9][\w.+-]{0,120}", re.ASCII)
UNKNOWN_MEDIA_TYPE = "application/octet-stream"
MAX_NAME_CHARS = 255


class FileResource(Strict):
    """A file for a session's directory, as in the `anthropic` package (BetaManagedAgentsFileResourceParams)."""

    type: Literal["file"]
    file_id: str
    mount_path: str | None = None
    """Relative to the directory, or below `/workspace`. Default: `uploads/` and the file's name."""


class MountedFile(BaseModel, frozen=True):
    """A file that belongs into a session's directory, as the session's row has it."""

    id: str
    file_id: str
    path: str
    """Relative to the directory."""
    created_at: str


def media_type_of(said: str | None) -> str | None:
    """A media type without its parameters, as a header may carry it; None for what is none."""
    bare = (said or "").partition(";")[0].strip()
    return bare.lower() if _MEDIA_TYPE.fullmatch(bare) else None


def file_name(path: str) -> str:
    """The last component, without what no header and no listing should carry."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in name if char.isprintable()).strip()[:MAX_NAME_CHARS]
