"""Search attributes: by what a run is found in Temporal's UI and CLI."""

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from domain.commands import RunStart

STATUS = SearchAttributeKey.for_keyword("PerdureStatus")
WORKSPACE = SearchAttributeKey.for_keyword("PerdureWorkspace")
SESSION = SearchAttributeKey.for_keyword("PerdureSession")
AGENT = SearchAttributeKey.for_keyword("PerdureAgent")
MODEL = SearchAttributeKey.for_keyword("PerdureModel")

ALL = (STATUS, WORKSPACE, SESSION, AGENT, MODEL)


def of(start: RunStart) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(STATUS, "running"),
            SearchAttributePair(WORKSPACE, start.workspace_id),
            SearchAttributePair(SESSION, start.session_id),
            SearchAttributePair(AGENT, start.agent),
            SearchAttributePair(MODEL, start.model),
        ]
    )
