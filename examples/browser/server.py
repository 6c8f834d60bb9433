"""The backend of the example's page: it has the API key, and gives pages a token for one session. Standard library only.

PERDURE_URL=http://127.0.0.1:8000 PERDURE_API_KEY=… PERDURE_AGENT=… python examples/browser/server.py
"""

import json
import os
import re
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

URL = os.environ.get("PERDURE_URL", "http://127.0.0.1:8000")
PUBLIC_URL = os.environ.get("PERDURE_PUBLIC_URL", URL)  # where browsers reach it
KEY = os.environ["PERDURE_API_KEY"]
AGENT = os.environ["PERDURE_AGENT"]
PORT = int(os.environ.get("PORT", "8080"))
CHAT = re.compile(r"/chats/(sesn_[0-9a-z]+)/token")


def call(path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with urlopen(Request(URL + path, json.dumps(body).encode(), headers), timeout=10) as answer:
        return json.load(answer)


class Handler(SimpleHTTPRequestHandler):
    """Serves the files beside it. Yours finds out first who is asking, and whether that session is theirs."""

    def do_POST(self) -> None:
        try:
            if self.path == "/chats":
                answer = {"url": PUBLIC_URL, "session_id": call("/v1/sessions", {"agent": AGENT})["id"]}
            elif chat := CHAT.fullmatch(self.path):
                token = call(f"/v1/sessions/{chat[1]}/client_tokens", {})["token"]
                answer = {"url": PUBLIC_URL, "session_id": chat[1], "token": token}
            else:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
        except OSError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, explain=str(error))
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


if __name__ == "__main__":
    folder = str(Path(__file__).parent)
    with ThreadingHTTPServer(("127.0.0.1", PORT), partial(Handler, directory=folder)) as server:
        server.serve_forever()
