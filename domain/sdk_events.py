"""Which types of events the `anthropic` package knows, and which it expects where."""

CROSS_POSTED = frozenset(
    {
        "session.thread_status_running",
        "session.thread_status_idle",
        "session.thread_status_rescheduled",
        "session.thread_status_terminated",
    }
)
"""What the primary thread's stream shows of the other threads."""

SDK_TYPES = frozenset(
    {
        "user.message",
        "user.interrupt",
        "user.tool_confirmation",
        "user.custom_tool_result",
        "system.message",
        "agent.message",
        "agent.thinking",
        "agent.tool_use",
        "agent.tool_result",
        "agent.mcp_tool_use",
        "agent.mcp_tool_result",
        "agent.custom_tool_use",
        "session.error",
        "session.status_running",
        "session.status_idle",
        "session.status_rescheduled",
        "session.status_terminated",
        "session.updated",
        "session.deleted",
        "session.thread_created",
        "agent.thread_message_sent",
        "agent.thread_message_received",
        "agent.thread_context_compacted",
        *CROSS_POSTED,
        "span.model_request_start",
        "span.model_request_end",
        "event_start",
        "event_delta",
    }
)
"""What the `anthropic` package decodes (types/beta/sessions/beta_managed_agents_stream_session_events.py): it turns a
type it does not know into a wrong class, so callers that send `anthropic-beta` get these only."""
