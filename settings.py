"""Settings: the only reader of the environment."""

import os
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from domain.agents import ModelId
from domain.errors import Invalid
from domain.secrets import Secrets
from domain.sessions import Keep
from providers.config import BaseUrl, EnvName, ProviderConfig, presets
from tools.mcp.config import McpCommand
from tools.sandbox import ShellLimits


class _SearchSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_results: int = Field(default=5, ge=1, le=20)
    """What a search shows at most."""


class SearXNGSettings(_SearchSettings):
    backend: Literal["searxng"] = "searxng"
    base_url: BaseUrl
    """`http://localhost:8888`, without `/search`."""


class BraveSettings(_SearchSettings):
    backend: Literal["brave"] = "brave"
    base_url: BaseUrl = "https://api.search.brave.com"
    api_key_env: EnvName = "BRAVE_API_KEY"
    """The name of a variable, never the key."""


class TavilySettings(_SearchSettings):
    backend: Literal["tavily"] = "tavily"
    base_url: BaseUrl = "https://api.tavily.com"
    api_key_env: EnvName = "TAVILY_API_KEY"
    """The name of a variable, never the key."""


class ShellSettings(BaseModel):
    """`[tools.shell]`: limits of one command with all that it starts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sandbox: Literal["bubblewrap", "none"] = "bubblewrap"
    """`none`: commands can do all that the service's own user can."""
    network: bool = False
    """Whether agents may be given the network for their commands."""
    timeout_seconds: float = Field(default=120, gt=0, le=86_400)
    cpu_seconds: int = Field(default=300, ge=1)
    memory_mb: int = Field(default=2048, ge=64)
    processes: int = Field(default=256, ge=16)

    @property
    def limits(self) -> ShellLimits:
        return ShellLimits(self.timeout_seconds, self.cpu_seconds, self.memory_mb << 20, self.processes)


class ToolSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    modules: tuple[str, ...] = ()
    """Python modules with functions decorated by `tools.functions.function_tool`."""
    fetch_allow_hosts: frozenset[str] = frozenset()
    """`host:port` pairs that `web_fetch` and HTTP tools may reach although their addresses are private."""
    web_search: SearXNGSettings | BraveSettings | TavilySettings | None = Field(default=None, discriminator="backend")
    """Where `web_search` asks. Without it there is no such tool."""
    mcp_allow_hosts: frozenset[str] = frozenset()
    """`host:port` pairs under which agents' MCP servers may be although their addresses are private, or not https."""
    shell: ShellSettings = ShellSettings()


class SecretSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    env: EnvName
    """The name of a variable, never the secret."""
    hosts: tuple[str, ...] = ()
    """The `host` or `host:port` for which agents may use it. None: it is for `[mcp.NAME]` programs only."""


class TitleSettings(BaseModel):
    """`[titles]`: the model that names sessions after their first turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    model: ModelId | None = None
    """`provider:name`. None: the agent's own model, unless that is a command or a script."""


class ConfigFile(BaseModel):
    """`perdure.toml`. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: dict[str, ProviderConfig] = {}
    queues: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Task queues this deployment's workers serve, with how many activities at once."""
    tools: ToolSettings = ToolSettings()
    titles: TitleSettings = TitleSettings()
    mcp: dict[str, McpCommand] = {}
    """Programs that agents may name as MCP servers."""
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], SecretSettings] = {}
    """What agents may name: the signing keys of HTTP tools, the tokens of MCP servers."""


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s,*]+)$")]


def _listed(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class ClientSettings(BaseSettings):
    """What the command line needs to reach a service."""

    model_config = SettingsConfigDict(
        env_prefix="PERDURE_", env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    url: str | None = None
    api_key: SecretStr | None = None
    data_dir: Path = Path(".perdure")


class Settings(BaseSettings):
    """Everything the service reads from the environment and `.env`; each with a default that suits `make run`."""

    model_config = SettingsConfigDict(
        env_prefix="PERDURE_", env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    data_dir: Path = Path(".perdure")
    """Where everything of the one-process shape is kept, and the directories of sessions."""
    host: str = "127.0.0.1"
    """Where the API listens."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The API's port."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Whose pages may call the API from a browser, `https://app.example.com,http://localhost:5173`; `*` is every page."""
    database_url: str | None = None
    """Default: SQLite in the data folder."""
    redis_url: str | None = None
    """A Redis or Valkey that joins separate processes, `redis://host:6379/0`. Default: none, previews stay in their process."""
    temporal_port: int = Field(default=7233, ge=1, le=65535)
    """The embedded Temporal's port."""
    temporal_ui_port: int = Field(default=8233, ge=1, le=65535)
    """The port of the embedded Temporal's Web UI."""
    bootstrap_key: SecretStr | None = None
    """A key with all scopes to install for the default workspace at first start, instead of a generated one."""
    drain_seconds: float = Field(default=20, ge=0)
    """How long a worker that is told to stop lets calls in flight go on before it hands them to another one."""
    leave_seconds: float = Field(default=3, ge=0)
    """How long an API that is told to stop still answers, its `/readyz` with 503, so that load balancers leave it out first."""
    config: Path = Path("perdure.toml")
    """The file of providers, queues and tools."""
    files_dir: Path | None = None
    """Where the directories of sessions, uploaded files and artifacts are kept. Default: `files` in the data folder."""
    files_quota_mb: int = Field(default=1024, ge=1)
    """How much the directory of a session may hold."""
    files_max_mb: int = Field(default=500, ge=1)
    """The size of the largest file that can be uploaded."""
    files_keep_days: float = Field(default=30, gt=0)
    """How long after a session's last activity its directory is kept."""
    sessions_keep_days: float | None = Field(default=None, gt=0, le=36_500)
    """How long after a session's last activity it is kept, archived or not. Default: for ever."""
    archived_sessions_keep_days: float | None = Field(default=None, gt=0, le=36_500)
    """How long a session is kept after it was archived. Default: as others."""
    log_format: Literal["text", "json"] = "text"
    """How logs are written to standard error."""
    task_queue: str = "perdure"
    """The main task queue: workflows, and all activities that have no queue of their own."""
    temporal_address: str | None = Field(default=None, validation_alias="TEMPORAL_ADDRESS")
    """A Temporal of your own; when set, nothing is embedded."""
    temporal_namespace: str = Field(default="default", validation_alias="TEMPORAL_NAMESPACE")
    """The namespace in a Temporal of your own."""
    temporal_api_key: SecretStr | None = Field(default=None, validation_alias="TEMPORAL_API_KEY")
    """The key of a Temporal of your own."""
    temporal_tls: bool = Field(default=False, validation_alias="TEMPORAL_TLS")
    """Whether to speak TLS with a Temporal of your own."""
    deployment_name: str | None = Field(default=None, validation_alias="TEMPORAL_DEPLOYMENT_NAME")
    """The Worker Deployment that a worker belongs to, together with `TEMPORAL_WORKER_BUILD_ID`."""
    build_id: str | None = Field(default=None, validation_alias="TEMPORAL_WORKER_BUILD_ID")
    """The worker's version in its Worker Deployment. Both set: Worker Versioning is on, see Operations."""
    anthropic_base_url: str | None = Field(default=None, validation_alias="ANTHROPIC_BASE_URL")
    """Another address of Anthropic's API, for the preset `anthropic`."""
    openai_base_url: str | None = Field(default=None, validation_alias="OPENAI_BASE_URL")
    """Another address of OpenAI's API, for the preset `openai`."""

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'perdure.db'}"

    @property
    def keep(self) -> Keep:
        """How long sessions are kept."""
        return Keep(idle=_days(self.sessions_keep_days), archived=_days(self.archived_sessions_keep_days))

    @property
    def files(self) -> Path:
        """Where the directories of sessions, uploaded files and artifacts are kept."""
        return (self.files_dir or self.data_dir / "files").resolve()

    @property
    def private(self) -> tuple[Path, ...]:
        """What no command of an agent may see."""
        return self.data_dir, self.files, Path(".env")

    def file(self) -> ConfigFile:
        """`perdure.toml`, or its defaults. Raises Invalid with the place of each fault."""
        if not self.config.exists():
            return ConfigFile()
        try:
            return ConfigFile.model_validate(tomllib.loads(self.config.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise Invalid(f"{self.config} is not TOML: {error}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
            raise Invalid(f"{self.config}: {faults}") from error

    def providers(self, file: ConfigFile) -> dict[str, ProviderConfig]:
        """The presets, and over them what `perdure.toml` says."""
        return {**presets(self.anthropic_base_url, self.openai_base_url), **file.providers}


def _days(days: float | None) -> timedelta | None:
    return None if days is None else timedelta(days=days)


def load_settings() -> Settings:
    """Raises Invalid naming the variable at fault."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors())
        raise Invalid(f"A setting cannot be used: {faults}") from error


def secret_reader() -> Callable[[str], str | None]:
    """How providers get at a key: the value of the variable that `perdure.toml` names, also from `.env`."""
    from dotenv import dotenv_values  # noqa: PLC0415  # only here; keeps `perdure --help` fast

    in_file = dotenv_values(".env")

    def secret(name: str) -> str | None:
        return os.environ.get(name) or in_file.get(name)

    return secret


def load_secrets(file: ConfigFile, read: Callable[[str], str | None]) -> Secrets:
    """The values behind the names in `[secrets]`. Raises Invalid where a variable is not set, so that no call finds out."""
    values: dict[str, str] = {}
    for name, secret in file.secrets.items():
        value = read(secret.env)
        if value is None:
            raise Invalid(f"secrets.{name}: the variable {secret.env} is not set")
        values[name] = value
    return Secrets(values, {name: secret.hosts for name, secret in file.secrets.items()})
