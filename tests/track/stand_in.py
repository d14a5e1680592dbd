"""W&B's service on loopback, as far as wandb 0.31 goes: it keeps runs, their history and what was asked of it.

It knows what `wandb.init`, `log`, `alert`, resume, rewind and `finish` ask for. Everything else is answered with
empty data, and listed in `asked`.
"""

import gzip
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandIn:
    """The state of the service, and how it behaves from now on."""

    def __init__(self) -> None:
        self.url = ""
        self.runs: dict[str, dict[str, Any]] = {}  # by id: history (rows), config, ...
        self.asked: list[tuple[str, dict[str, Any]]] = []  # GraphQL operations and their variables
        self.alerts: list[tuple[str, str]] = []
        self.views: list[dict[str, Any]] = []
        self.keys: set[str] = set()  # that came as authorization
        self.can_rewind = True
        self.refuse_key = False
        self.refuse_entity = False
        self.stalled = threading.Event()  # from now on every request is taken and none answered
        self._lock = threading.Lock()

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run, as they were sent."""
        with self._lock:
            return [json.loads(line) for line in self.runs.get(run_id, {}).get("history", [])]

    def operations(self) -> list[str]:
        return [name for name, _ in self.asked]

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The reply to a GraphQL request."""
        with self._lock:
            self.asked.append((operation, variables))
            known = getattr(self, f"_{operation}", None)
            return {"data": {}} if known is None else known(variables)

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        """Lines of history: `offset` says where the first of them stands."""
        part = body.get("files", {}).get("wandb-history.jsonl")
        with self._lock:
            if part is not None and run_id in self.runs:
                history = self.runs[run_id]["history"]
                history[part["offset"] : part["offset"] + len(part["content"])] = part["content"]

    def _Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"data": {"viewer": {"id": "VXNlcjox", "entity": "somebody", "username": "somebody", "flags": "{}"}}}

    _GetDefaultEntity = _Viewer

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if self.refuse_entity:
            return {"data": {"model": None}, "errors": [{"message": "permission denied", "path": ["model"]}]}
        run = self.runs.get(variables["name"])
        return {"data": {"model": {"id": "m", "name": "p", "entity": _ENTITY, "bucket": None if run is None else {
            "id": "b",
            "name": variables["name"],
            "summaryMetrics": "{}",
            "displayName": "",
            "logLineCount": 0,
            "historyLineCount": len(run["history"]),
            "eventsLineCount": 0,
            "historyTail": json.dumps(run["history"][-1:]),
            "eventsTail": "[]",
            "config": run["config"],
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}',
        }}}}  # fmt: skip

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if self.refuse_entity:
            return {"data": None, "errors": [{"message": "permission denied", "path": ["upsertBucket"]}]}
        run = self.runs.setdefault(variables["name"], {"history": [], "config": "{}", "inserted": variables})
        if variables.get("config"):
            run["config"] = variables["config"]
        return {"data": {"upsertBucket": {"bucket": self._bucket(variables), "inserted": True}}}

    def _RewindRun(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if not self.can_rewind:
            return {"data": None, "errors": [{"message": "rewind is not enabled", "path": ["rewindRun"]}]}
        run = self.runs[variables["runName"]]
        last = variables["metricValue"]
        run["history"] = [line for line in run["history"] if json.loads(line)["_step"] <= last]
        return {"data": {"rewindRun": {"rewoundRun": self._bucket({"name": variables["runName"], **variables})}}}

    def _NotifyScriptableRunAlert(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.alerts.append((variables["title"], variables["text"]))
        return {"data": {"notifyScriptableRunAlert": {"success": True}}}

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.views.append(variables)
        view = {"id": "VmlldzE=", "name": variables["name"]}
        return {"data": {"upsertView": {"view": view, "inserted": True}}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}

    def _bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[variables["name"]]
        return {
            "id": "b",
            "name": variables["name"],
            "displayName": variables.get("displayName"),
            "description": None,
            "config": run["config"],
            "sweepName": None,
            "project": {"id": "p", "name": variables.get("project") or "p", "entity": _ENTITY},
            "historyLineCount": len(run["history"]),
        }


_ENTITY = {"id": "e", "name": "somebody"}


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A service on a port of its own until the context ends."""
    service = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"service": service}))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    service: StandIn
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._take()
        self._give({})

    def do_PUT(self) -> None:
        self._take()
        self._give({})

    def do_POST(self) -> None:
        body = self._take()
        if self.service.refuse_key:
            self._give({"error": "invalid API key"}, 401)
        elif self.path == "/graphql":
            request = json.loads(body)
            name = re.search(r"\b(?:query|mutation)\s+(\w+)", request["query"])
            self._give(self.service.answer(name[1] if name else "", request.get("variables") or {}))
        else:
            parts = self.path.split("/")
            if parts[-1] == "file_stream":
                self.service.stream(parts[-2], json.loads(body))
            self._give({})

    def _take(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.service.keys.add(self.headers.get("Authorization") or "")
        while self.service.stalled.is_set():
            time.sleep(0.05)
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _give(self, reply: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(reply).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that ended
            super().handle()

    def log_message(self, *_: object) -> None:
        pass
