"""What the operator configures per provider: the `[providers.NAME]` tables of `perdure.toml`, and the built-in presets."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ANTHROPIC_BASE_URL = "https://api.anthropic.com"
OPENAI_BASE_URL = "https://api.openai.com/v1"

Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
BaseUrl = Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class Prices(BaseModel):
    """The operator's own prices, in US dollars per million tokens. Cache tokens cost as input where not given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Usd
    output: Usd
    cache_read: Usd | None = None
    cache_write: Usd | None = None


Input = Literal["image", "document", "url"]
"""What a message may hold besides text; `url`: images and documents that the model's vendor fetches by itself."""
WindowTokens = Annotated[int, Field(ge=500, le=100_000_000)]


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    concurrency: int = Field(default=8, ge=1, le=10_000)
    """Model calls at once per worker."""
    timeout_seconds: Seconds = 900
    """Of one model call."""
    idle_timeout_seconds: Seconds = 60
    """Without a byte, the wait for the first one included."""
    queue: str | None = None
    """A task queue of its own for this provider's model calls; None: the common one."""
    prices: Prices | None = None
    """What every model of this provider costs; None: the vendors' public prices where they are known."""
    context_tokens: WindowTokens | dict[str, WindowTokens] | None = None
    """How many tokens its models take, or each by its name. None: what the vendor lists, or is known of it."""


class AnthropicConfig(_Common):
    """The Anthropic Messages API, or a server that speaks it."""

    kind: Literal["anthropic"] = "anthropic"
    base_url: BaseUrl = ANTHROPIC_BASE_URL
    api_key_env: EnvName = "ANTHROPIC_API_KEY"
    """The name of a variable, never the key."""
    models: tuple[str, ...] = ()
    """Names that are known besides those that the vendor lists."""
    inputs: tuple[Input, ...] = ("image", "document", "url")
    """What its models take besides text."""


class OpenAICompatibleConfig(_Common):
    """Chat completions as OpenAI, LM Studio, Ollama, vLLM and many others serve them."""

    kind: Literal["openai_compatible"] = "openai_compatible"
    base_url: BaseUrl
    """With its version: `http://localhost:1234/v1`. No default, so that no key is sent to a vendor by omission."""
    api_key_env: EnvName | None = None
    """The name of a variable, never the key; None: the server wants no key."""
    models: tuple[str, ...] = ()
    """Names that are known besides those that the server lists."""
    inputs: tuple[Input, ...] = ("image",)
    """What its models take besides text: nothing, where they have no eyes. Few servers take documents or fetch a `url`."""


class CommandConfig(_Common):
    """Any command line program as a model, for example Claude Code: `argv = ["claude", "-p"]`, `login_shell = true`.

    It runs in an empty directory that is removed afterwards: write absolute paths.
    """

    kind: Literal["command"] = "command"
    argv: tuple[Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")], ...] = Field(min_length=1)
    """The prompt takes the place of `{prompt}`, or is appended where there is none and `stdin` is false. The name behind
    the colon of `provider:name` takes the place of `{model}`; where there is none only `default_model` can be called."""
    login_shell: bool = False
    """Run it as the operator's own terminal would: through the login shell of the service's user, profile included."""
    stdin: bool = False
    """Send the prompt on standard input and not as an argument."""
    env: tuple[EnvName, ...] = ()
    """Names of variables that are passed on to the command; it sees no others of the service's."""
    default_model: str = "default"
    """The name under which the command is listed as a model: `claude-code:default`."""
    idle_timeout_seconds: Seconds = 900
    """As long as the whole call: many programs print nothing before the end. What they print on standard error counts."""

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if self.stdin and any("{prompt}" in arg for arg in self.argv):
            raise ValueError("the prompt goes either to standard input (stdin = true) or to {prompt} in argv")
        return self


class ScriptedConfig(_Common):
    """Deterministic, for demonstrations and tests: see docs/scripted-provider.md."""

    kind: Literal["scripted"] = "scripted"
    inputs: tuple[Input, ...] = ("image", "document", "url")
    """What it takes besides text, and does not look at."""


ProviderConfig = Annotated[
    AnthropicConfig | OpenAICompatibleConfig | CommandConfig | ScriptedConfig, Field(discriminator="kind")
]


def presets(anthropic_base_url: str | None = None, openai_base_url: str | None = None) -> dict[str, ProviderConfig]:
    """The providers that are there without configuration. Commands are not: only the operator says what may be run."""
    return {
        "anthropic": AnthropicConfig(base_url=anthropic_base_url or ANTHROPIC_BASE_URL),
        "openai": OpenAICompatibleConfig(
            base_url=openai_base_url or OPENAI_BASE_URL,
            api_key_env="OPENAI_API_KEY",
            inputs=("image", "document", "url"),
        ),
        "lmstudio": OpenAICompatibleConfig(base_url="http://localhost:1234/v1", concurrency=2),
        "ollama": OpenAICompatibleConfig(base_url="http://localhost:11434/v1", concurrency=2),
        "demo": ScriptedConfig(),
    }
