"""What goes to the model with a message or a tool result, from whoever operates the agent."""

from api.transaction import Unit
from domain.events import Event, SystemMessage
from domain.payload import TextContent
from storage.journal import Draft


async def accompany(unit: Unit, event: Event, content: tuple[TextContent, ...]) -> Event:
    """Append it right behind that event, to be read by the same run at the same model call.

    Where a message was sent before, under the same `client_event_id`, what came with it then is what counts.
    Raises RunFinished.
    """
    # `private`: what was steered into a running turn is handed on with its message, should that end first.
    draft = Draft(SystemMessage(content=content), queued=True, private=event.private)
    return (await unit.journal.append(event.session_id, event.run_id, [draft], key=f"with/{event.id}"))[0]
