"""A file server over HTTP that fails as it is told to."""

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web


class FaultyServer:
    """Serves the files of `root`. `faults[name]` says what is wrong with each next answer of a file (None: nothing).

    status-500 ...: that status; reset: the connection is dropped without an answer; cut: dropped after half of the
    bytes; unsized: half of them, in an answer that does not say how many there are; stall: half of them, then nothing
    more; drip: a few bytes a second; late: after a quarter of a second; wrong: some bytes are others; whole: the whole
    file where a range is asked for.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, Iterator[str | None]] = {}
        self.asked: list[tuple[str, str, int]] = []  # name, range, bytes sent
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultyServer":
        self._thread.start()
        assert self._started.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(20)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def fail(self, name: str, faults: Iterable[str | None]) -> None:
        """From now on, the next answers for `name` have these faults."""
        self.faults[name] = iter(faults)

    def sent(self, name: str = "") -> int:
        """Bytes that have been sent of the files whose names begin so."""
        return sum(count for asked, _, count in self.asked if asked.startswith(name))

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        server: Any = site._server
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["path"]
        path = self.root / name
        if not path.is_file():
            raise web.HTTPNotFound
        data = path.read_bytes()
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(len(data))})
        fault = next(self.faults.get(name, iter(())), None)
        begin, end = 0, len(data)
        span = request.http_range if fault != "whole" else slice(None)
        if span.start is not None:
            begin, end = span.start, min(span.stop if span.stop is not None else end, len(data))
        part = data[begin:end]
        if fault == "wrong":
            part = bytes(byte ^ 0x55 if number % 97 == 50 else byte for number, byte in enumerate(part))
        self.asked.append((name, request.headers.get("Range", ""), len(part)))
        if fault is not None and fault.startswith("status-"):
            return web.Response(status=int(fault.removeprefix("status-")))
        return await self._send(request, part, 206 if span.start is not None else 200, fault)

    async def _send(
        self,
        request: web.Request,
        part: bytes,
        status: int,
        fault: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        assert request.transport is not None
        if fault == "late":
            await asyncio.sleep(0.25)
        if fault == "reset":
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(status=status, headers=headers)
        if fault == "unsized":
            response.force_close()
            response.enable_chunked_encoding()
        else:
            response.content_length = len(part)
        await response.prepare(request)
        if fault in ("cut", "stall", "unsized"):
            part = part[: len(part) // 2]
        step = 2 if fault == "drip" else max(1, len(part))
        for at in range(0, len(part), step):
            await response.write(part[at : at + step])
            if fault == "drip":
                await asyncio.sleep(0.5)
        if fault == "stall":
            await asyncio.sleep(3600)
        if fault == "cut":
            request.transport.abort()
            return response
        await response.write_eof()
        return response


class FaultyProxy(FaultyServer):
    """Stands before another server and hands everything on, but for the faults of what is got from there."""

    def __init__(self, upstream: str) -> None:
        super().__init__(Path())
        self.upstream = upstream

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.path.rpartition("/")[2]
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(
                request.method, self.upstream + request.raw_path, headers=request.headers, data=await request.read()
            ) as answer,
        ):
            body = await answer.read()
            kept = {key: value for key, value in answer.headers.items() if key.lower() not in OWN_HEADERS}
        if request.method == "HEAD":
            return web.Response(
                status=answer.status, headers={**kept, "Content-Length": answer.headers["Content-Length"]}
            )
        fault = next(self.faults.get(name, iter(())), None) if request.method == "GET" else None
        if fault == "wrong":
            body = bytes(byte ^ 0x55 if number % 97 == 50 else byte for number, byte in enumerate(body))
        if request.method == "GET":
            self.asked.append((name, request.headers.get("Range", ""), len(body)))
        if fault is not None and fault.startswith("status-"):
            return web.Response(status=int(fault.removeprefix("status-")))
        return await self._send(request, body, answer.status, fault, kept)


OWN_HEADERS = ("transfer-encoding", "content-length", "connection", "date", "server", "content-encoding")
