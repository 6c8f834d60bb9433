"""An MCP server on standard input and output that can misbehave; standard library only, so that it starts at once.

A tool's name says what happens. What it notices it writes into its working directory.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ("environment", "count", "hang", "die", "flood", "nonsense", "leak", "silent")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def answer(id: Any, result: Any) -> None:
    say(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}))


def text(id: Any, said: str, is_error: bool = False) -> None:
    answer(id, {"content": [{"type": "text", "text": said}], "isError": is_error})


def call(id: Any, name: str, count: int) -> None:
    match name:
        case "environment":
            text(id, json.dumps({"variables": dict(os.environ), "cwd": os.getcwd(), "leads": os.getsid(0) == os.getpid()}))
        case "count":
            text(id, str(count))
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            Path("pids").write_text(f"{os.getpid()} {child.pid}")
        case "die":
            os._exit(3)
        case "flood":
            say("x" * 5_000_000)
        case "nonsense":
            answer(id, {"content": "what?"})
        case "leak":
            sys.stderr.write(f"using {os.environ['TOKEN']}\n")
            text(id, f"401 for the token {os.environ['TOKEN']}", is_error=True)
        case _:
            pass


def listed(page: int) -> dict[str, Any]:
    """With an argument, that many pages of a hundred tools each, and some that are out of proportion."""
    names: list[str] = list(NAMES)
    if sys.argv[1:]:
        names = [f"tool_{page:02}_{number:02}" for number in range(100)]
    tools = [{"name": name, "description": name * 1_000, "inputSchema": {"type": "object"}} for name in names]
    if page == 0 and sys.argv[1:]:
        huge = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}
        tools += [{"name": "a", "inputSchema": huge}, {"name": "line\nbreak", "inputSchema": {"type": "object"}}]
    more = sys.argv[1:] and page + 1 < int(sys.argv[1])
    return {"tools": tools, **({"nextCursor": str(page + 1)} if more else {})}


def main() -> None:
    say("Welcome to this server!")
    count = 0
    for line in sys.stdin:
        message = json.loads(line)
        match message.get("method"):
            case "initialize":
                version = message["params"]["protocolVersion"]
                info = {"name": "program", "version": "1"}
                answer(message["id"], {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
            case "tools/list":
                answer(message["id"], listed(int(message.get("params", {}).get("cursor", 0))))
            case "tools/call":
                count += 1
                call(message["id"], message["params"]["name"], count)
            case "notifications/cancelled":
                Path("cancelled").touch()
            case _ if "id" in message:
                error = {"code": -32601, "message": "Method not found"}
                say(json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error}))
            case _:
                pass


main()
