"""Composition root of the worker: what a process needs to carry out workflows and activities."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import LogForwardingConfig, LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from activities.attachments import Attachments
from activities.batches import BatchActivities
from activities.bulk import BulkActivities
from activities.compact import CompactActivities
from activities.contexts import Contexts
from activities.model import ModelActivities
from activities.recall import Recall
from activities.records import RecordActivities
from activities.slots import Slots
from activities.subagents import SubagentActivities
from activities.sweep import SweepActivities
from activities.tidy import Tidy
from activities.titles import TitleActivities
from activities.tools import ToolActivities
from activities.unfinished import Unfinished
from activities.waits import WaitActivities
from domain.errors import Invalid
from domain.secrets import Secrets
from domain.tools import Quota
from live.bus import LiveBus
from live.memory import EMBEDDED_POLL_SECONDS, SEPARATE_POLL_SECONDS, MemoryBus
from live.redis import redis_bus
from providers.config import AnthropicConfig, OpenAICompatibleConfig, ProviderConfig, ScriptedConfig
from providers.registry import Providers, build_providers
from settings import BraveSettings, ConfigFile, SearXNGSettings, Settings, TitleSettings, load_secrets, secret_reader
from storage.database import Database
from storage.starts import Route, nobody
from tools.custom import CustomTools
from tools.delegate import Delegating
from tools.http_tools import HttpTools
from tools.mcp.source import McpTools
from tools.mcp.web import Network
from tools.public_http import PublicHttp
from tools.registry import Tools, builtin_tools, load_functions
from tools.sandbox import Sandbox
from tools.search_backends import Brave, SearXNG, Tavily
from tools.shell import Bash
from tools.store import FileStore
from tools.toolbox import Toolbox
from tools.web_search import WebSearch
from workflows.agent_run import AgentRun
from workflows.batch import Batch, BulkOperation
from workflows.client import RunClient
from workflows.payloads import data_converter
from workflows.runner import workflow_runner
from workflows.sweep import Settle, Sweep
from workflows.titles import SessionTitle

log = logging.getLogger("perdure")


@dataclass(frozen=True)
class Parts:
    """What API and worker share in one process."""

    settings: Settings
    database: Database
    live: LiveBus
    providers: Providers
    tools: Tools
    http: PublicHttp
    secrets: Secrets
    mcp: McpTools
    files: FileStore
    routes: Mapping[str, Route]
    queues: Mapping[str, int]


@asynccontextmanager
async def parts(settings: Settings, *, alone: bool = True) -> AsyncGenerator[Parts]:
    """Build and, at the end, close them. Raises Invalid for a configuration that cannot be used.

    `alone`: no other process works on the same database.
    """
    file = settings.file()
    configs = settings.providers(file)
    read = secret_reader()
    secrets = load_secrets(file, read)
    search = _web_search(file, read)
    providers = build_providers(configs, read)
    # It quotes what servers send, credentials that they echo included.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    mcp = McpTools(file.mcp, read, secrets, Network(file.tools.mcp_allow_hosts))
    shell = file.tools.shell
    sandbox = Sandbox(shell.sandbox, shell.limits, settings.private)
    async with _live_bus(settings, alone) as live:
        database = Database(settings.database, live.wake)
        try:
            yield Parts(
                settings=settings,
                database=database,
                live=live,
                providers=providers,
                tools=Tools(
                    builtin_tools(file.tools.fetch_allow_hosts, search, Bash(sandbox, may_have_network=shell.network)),
                    load_functions(file.tools.modules),
                ),
                http=PublicHttp(file.tools.fetch_allow_hosts),
                secrets=secrets,
                mcp=mcp,
                files=FileStore(settings.files, Quota(bytes=settings.files_quota_mb << 20), settings.files_max_mb << 20),
                routes=routes(configs, file.titles),
                queues=file.queues,
            )
        finally:
            await mcp.close()
            await providers.close()
            await database.close()


@asynccontextmanager
async def _live_bus(settings: Settings, alone: bool) -> AsyncGenerator[LiveBus]:
    if settings.redis_url is None:
        yield MemoryBus(EMBEDDED_POLL_SECONDS if alone else SEPARATE_POLL_SECONDS)
    else:
        async with redis_bus(settings.redis_url) as bus:
            yield bus


def _web_search(file: ConfigFile, read: Callable[[str], str | None]) -> WebSearch | None:
    """The tool, where it is configured. Raises Invalid where its key is not set."""
    match file.tools.web_search:
        case None:
            return None
        case SearXNGSettings() as chosen:
            return WebSearch(SearXNG(chosen.base_url), chosen.max_results)
        case chosen:
            key = read(chosen.api_key_env)
            if key is None:
                raise Invalid(f"tools.web_search: the variable {chosen.api_key_env} is not set")
            backend = Brave if isinstance(chosen, BraveSettings) else Tavily
            return WebSearch(backend(key, chosen.max_results, chosen.base_url), chosen.max_results)


def routes(configs: Mapping[str, ProviderConfig], titles: TitleSettings) -> dict[str, Route]:
    """Raises Invalid where titles are to be written by a model of no provider."""
    if titles.model is not None and titles.model.partition(":")[0] not in configs:
        raise Invalid(f"titles.model: there is no provider {titles.model.partition(':')[0]!r}")
    return {name: Route(config.queue, int(config.timeout_seconds), _titles(config, titles)) for name, config in configs.items()}


def _titles(config: ProviderConfig, titles: TitleSettings) -> Callable[[str], str | None]:
    """From an agent's model to the one that names its sessions."""
    if not titles.enabled:
        return nobody
    if titles.model is not None:
        return lambda _: titles.model
    match config:
        case AnthropicConfig() | OpenAICompatibleConfig():
            return lambda model: model
        case ScriptedConfig():  # the demonstration's own story has one; other scripts are not to be asked what they do not say
            return lambda model: model if model.endswith(":demo") else None
        case _:
            return nobody


async def connect(settings: Settings, address: str, *, lazy: bool = False) -> Client:
    """Connect to Temporal, waiting for it as long as it takes: the order in which processes start does not matter.

    `lazy`: connect at the first call, which then may fail. A worker cannot be lazy.
    """
    # Core's own logger writes to stdout, and blocks for good when a parent does not read that pipe.
    forwarding = LogForwardingConfig(logger=logging.getLogger("temporalio.core"))
    runtime = Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(TelemetryFilter("WARN", "ERROR"), forwarding)))
    told = False
    while True:
        try:
            return await Client.connect(
                address,
                lazy=lazy,
                runtime=runtime,
                namespace=settings.temporal_namespace,
                api_key=settings.temporal_api_key.get_secret_value() if settings.temporal_api_key else None,
                tls=settings.temporal_tls,
                data_converter=data_converter,
            )
        except (RPCError, RuntimeError) as error:
            if not told:
                log.info("waiting for Temporal at %s: %s", address, error)
            told = True
            await asyncio.sleep(0.5)


@asynccontextmanager
async def working(
    parts: Parts, client: Client, only: Mapping[str, int] | None = None, *, drain_seconds: float = 10
) -> AsyncGenerator[None]:
    """Serve the task queues for as long as the block runs; at its end, drain.

    `drain_seconds`: how long activities in flight may still take before they are handed back to be tried again.
    `only`: the queues to serve, with activities at once, instead of the main queue and those of `perdure.toml`.
    """
    main = parts.settings.task_queue
    queues = dict(only) if only else {main: 200, **parts.queues, **{r.queue: 50 for r in parts.routes.values() if r.queue}}
    sources = (Delegating(), parts.tools, CustomTools(), HttpTools(parts.http, parts.secrets))
    recall, toolbox = Recall(), Toolbox(sources, parts.mcp)
    attachments, slots = Attachments(parts.database, parts.files), _slots(parts.providers)
    contexts = Contexts(parts.database, recall, toolbox, parts.providers, attachments)
    model = ModelActivities(parts.database, parts.live, parts.providers, contexts, slots)
    compact = CompactActivities(parts.database, parts.live, parts.providers, contexts, slots)
    tools = ToolActivities(parts.database, recall, toolbox, parts.files)
    records = RecordActivities(parts.database, parts.routes)
    waits = WaitActivities(parts.database)
    subagents = SubagentActivities(parts.database, parts.routes)
    runs = RunClient(client, main)
    titles = TitleActivities(parts.database, parts.providers, slots)
    settings = parts.settings
    tidy = Tidy(parts.database, parts.files, timedelta(days=settings.files_keep_days), settings.keep)
    batches = BatchActivities(parts.database, parts.live, runs, parts.routes)
    bulk = BulkActivities(parts.database, parts.live, runs, parts.routes)
    unfinished = Unfinished(parts.database, client, runs, batches, bulk)
    sweep = SweepActivities(parts.database, client, runs, parts.routes, tidy, unfinished)
    bookkeeping = [
        *(records.pause, records.resume, records.answer, records.finish),
        *(waits.idle, waits.wake, subagents.open, subagents.close),
        *(batches.work, batches.cancel, bulk.work),
        *(sweep.run, sweep.settle),
    ]
    deployment = _deployment(parts.settings)
    workers: list[Worker] = []
    async with AsyncExitStack() as stack:
        parts.database.announce.append(recall.tell)
        stack.callback(parts.database.announce.remove, recall.tell)
        if main in queues:
            keeping = asyncio.create_task(runs.keep_sweeper())
            stack.callback(keeping.cancel)
        for queue, at_once in queues.items():
            worker = Worker(
                client,
                task_queue=queue,
                workflows=[AgentRun, Batch, BulkOperation, Sweep, Settle, SessionTitle] if queue == main else [],
                activities=[
                    model.complete,
                    compact.compact,
                    tools.run,
                    titles.write,
                    *(bookkeeping if queue == main else []),
                ],
                workflow_runner=workflow_runner(),
                max_concurrent_activities=at_once,
                max_concurrent_workflow_tasks=16,
                max_cached_workflows=10_000,
                # The SDK holds heartbeats back for 0.8 of their time-out: too late for a cancellation where the server does not
                # push it, and a server that is busy for two seconds would lose us the call.
                max_heartbeat_throttle_interval=timedelta(seconds=5),
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
                graceful_shutdown_timeout=timedelta(seconds=drain_seconds),
                deployment_config=deployment,
            )
            workers.append(await stack.enter_async_context(worker))
        try:
            yield
        finally:
            # All at once: one after the other, the last would take up new work until the others have drained.
            await asyncio.gather(*(worker.shutdown() for worker in workers))


def _deployment(settings: Settings) -> WorkerDeploymentConfig | None:
    """Worker Versioning, where it is asked for. Runs move to a newer build by themselves: docs/adr/0005.

    Not with the embedded Temporal, where nobody would make a build the current one. Raises Invalid for half of it.
    """
    if settings.temporal_address is None or not (settings.deployment_name or settings.build_id):
        return None
    if not (settings.deployment_name and settings.build_id):
        raise Invalid("TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID go together: set both or none.")
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


def _slots(providers: Providers) -> Mapping[str, Slots]:
    slots: defaultdict[str, Slots] = defaultdict(lambda: Slots(8))
    for name, config in providers.configs.items():
        slots[name] = Slots(config.concurrency)
    return slots
