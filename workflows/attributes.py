"""Search attributes: by what a run is found in Temporal's UI and CLI."""

import logging

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError

from domain.commands import RunStart

log = logging.getLogger(__name__)

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


def of_session(workspace_id: str, session_id: str, model: str) -> TypedSearchAttributes:
    return TypedSearchAttributes(
        [
            SearchAttributePair(WORKSPACE, workspace_id),
            SearchAttributePair(SESSION, session_id),
            SearchAttributePair(MODEL, model),
        ]
    )


def of_workspace(workspace_id: str) -> TypedSearchAttributes:
    return TypedSearchAttributes([SearchAttributePair(WORKSPACE, workspace_id)])


async def ensure(client: Client) -> None:
    """Register what is missing in the namespace: without them no run could start. Where that is not allowed, say what to do."""
    try:
        service = client.operator_service
        known = await service.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
        missing = [key.name for key in ALL if key.name not in known.custom_attributes]
        if missing:
            kinds = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
            await service.add_search_attributes(AddSearchAttributesRequest(namespace=client.namespace, search_attributes=kinds))
    except RPCError as error:
        names = ", ".join(key.name for key in ALL)
        log.warning("could not look after the search attributes (%s): register %s as Keyword yourself", error, names)
