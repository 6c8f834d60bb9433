"""Built-in tool `publish_artifact`: a file of the run's directory for people to download."""

import asyncio
import mimetypes

from pydantic import BaseModel, Field, field_validator

from domain.errors import ToolFailed
from domain.events import AgentArtifact
from domain.files import MAX_NAME_CHARS, UNKNOWN_MEDIA_TYPE, file_name, media_type_of
from domain.strict import Strict
from domain.tools import Effect, ToolAnswer, ToolContext
from tools.directory import RunDirectory
from tools.store import keep, store_beside


class PublishArguments(Strict):
    path: str = Field(min_length=1, description="Path of the file, relative to your directory.")
    name: str | None = Field(default=None, max_length=MAX_NAME_CHARS, description="To download it as; default: its own.")
    description: str | None = Field(default=None, max_length=2_000, description="What it is, in a sentence or two.")
    media_type: str | None = Field(default=None, description="Such as text/csv; default: by its name.")

    @field_validator("media_type")
    @classmethod
    def _is_one(cls, value: str | None) -> str | None:
        if value is not None and media_type_of(value) is None:
            raise ValueError("a media type is written type/subtype, such as text/csv")
        return value


class PublishArtifact:
    """Idempotent: the copy is kept under an id that follows from the tool use, so that a retry writes the same one again."""

    name = "publish_artifact"
    description = (
        "Publish a file of your directory: the user gets a copy of it as it is now, to download. Publish results that the "
        "user asked for, and not your working files."
    )
    arguments: type[BaseModel] = PublishArguments
    effect = Effect.IDEMPOTENT
    timeout_seconds = 120.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolAnswer:
        assert isinstance(arguments, PublishArguments)
        return await asyncio.to_thread(_publish, arguments, context)


def _publish(arguments: PublishArguments, context: ToolContext) -> ToolAnswer:
    path = arguments.path.removeprefix("/workspace/")
    name = file_name(arguments.name or path)
    if not name:
        raise ToolFailed("give it a name that can be read")
    # The events of a session have ids that sort by time, and so have its artifacts.
    artifact_id = f"artf_{context.tool_use_id.partition('_')[2]}"
    with RunDirectory(context.directory) as directory, directory.open_file(path) as file:
        kept = keep(file, store_beside(context.directory) / artifact_id, context.quota.bytes)
    media_type = media_type_of(arguments.media_type) or mimetypes.guess_type(name)[0] or UNKNOWN_MEDIA_TYPE
    event = AgentArtifact(
        artifact_id=artifact_id,
        tool_use_id=context.tool_use_id,
        name=name,
        description=arguments.description,
        media_type=media_type,
        size_bytes=kept.size_bytes,
        sha256=kept.sha256,
        path=path,
    )
    return ToolAnswer(f"Published {name} ({kept.size_bytes:,} bytes, {media_type}) as {artifact_id}.", (event,))
