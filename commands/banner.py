"""What `perdure up` says when everything answers."""

import sys
from pathlib import Path

from commands.bootstrap import Bootstrapped
from settings import Settings


def banner(settings: Settings, data: Path, temporal_ui: str | None, first: Bootstrapped) -> None:
    """Print the addresses, the data folder, the agents and, the first time, the key."""
    url = f"http://{settings.host}:{settings.port}"
    lines = ["", "  Perdure is up.", "", f"  API          {url}", f"  API docs     {url}/docs"]
    if temporal_ui:
        lines.append(f"  Temporal UI  {temporal_ui}")
    lines.append(f"  data         {data}")
    lines.append("  agents       demo (scripted: needs no model, key or network)")
    if first.assistant:
        lines.append(f"               assistant ({first.assistant})")
    else:
        lines.append("               no `assistant` yet: set ANTHROPIC_API_KEY, or start LM Studio or Ollama, and start again")
    if first.new_key:
        lines += ["", f"  API key      {first.new_key}", "               shown this once; stored as a hash"]
    lines += ["", "  Ctrl-C stops it. What is running goes on at the next start.", "", ""]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()
