"""The one workflow sandbox of worker, tests and replayer."""

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

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


def workflow_runner() -> SandboxedWorkflowRunner:
    """Sandboxed, with what is known to be deterministic passed through: importing it anew costs 2 s a run."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))
