"""The one workflow sandbox of worker, tests and replayer."""

from typing import Any

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.converter import SerializationContext, StorageDriverStoreContext
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions
from temporalio.workflow import Info

PASSED_THROUGH = (
    "activities",
    "annotated_types",
    "domain",
    "live",
    "providers",
    "pydantic",
    "pydantic_core",
    "sqlalchemy",
    "sqlmodel",
    "storage",
    "temporalio",
    "tools",
    "uuid_utils",
    "workflows",
)


def workflow_runner() -> WorkflowRunner:
    """Sandboxed, with what is known to be deterministic passed through: importing it anew costs 2 s a run."""
    return _Runner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))


class _Runner(SandboxedWorkflowRunner):
    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _Instance(super().create_instance(det))


class _Instance(WorkflowInstance):
    """A sandboxed workflow that is not asked for the context of each payload.

    The SDK enters the sandbox for that several times per payload, a fifth of the CPU of a step, and hands the answer to
    payload codecs and external storage, of which we have none: our converter treats all payloads alike.
    """

    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        return self._sandboxed.activate(act)

    def get_info(self) -> Info:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        return StorageDriverStoreContext(target=None)
