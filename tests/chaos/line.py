"""A bad line to a broker: slow, late, and cut again and again; counts what it carried."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_PIECE_BYTES = 4096
_BUFFER_BYTES = 32 * 1024


class Line:
    """A TCP proxy on `host`:`port`, in a thread of its own; a context manager.

    Every byte arrives `delay_s` after it was taken, no more than `bytes_per_s` are taken in either direction, and every
    `reset_s` all connections are cut. `up_bytes` and `down_bytes` were taken from the client and from the broker.
    """

    def __init__(
        self,
        target: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        delay_s: float = 0.0,
        bytes_per_s: float = 1e12,
        reset_s: float | None = None,
    ) -> None:
        """Prepare a line; the port is known at once."""
        self._target = target
        self.delay_s, self.bytes_per_s, self.reset_s = delay_s, bytes_per_s, reset_s
        self.up_bytes = self.down_bytes = self.resets = 0
        self._listener = socket.create_server((host, 0))
        # Small, or the system would take in what the line has no room for; those that it accepts inherit it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._open: set[StreamWriter] = set()
        self._ended = asyncio.Event()

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End, and cut what is connected."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=_PIECE_BYTES)
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), self.reset_s)
            self._cut()
        server.close()
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _cut(self) -> None:
        self.resets += bool(self._open)
        for writer in self._open:
            # Without a farewell, and without what is still to be written.
            writer.transport.abort()
        self._open.clear()

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        broker = socket.socket()
        broker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        broker.setblocking(False)
        try:
            await self._loop.sock_connect(broker, self._target)
        except OSError:
            broker.close()
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(sock=broker, limit=_PIECE_BYTES)
        ends = (writer, far_writer)
        self._open.update(ends)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(self._carry(reader, far_writer, up=True), self._carry(far_reader, writer, up=False))
        for end in ends:
            self._open.discard(end)
            end.transport.abort()

    async def _carry(self, reader: StreamReader, writer: StreamWriter, *, up: bool) -> None:
        writer.transport.set_write_buffer_limits(0)
        room = asyncio.Semaphore(1 + int(min(self.bytes_per_s * self.delay_s, 2**20)) // _PIECE_BYTES)
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        arrival = asyncio.ensure_future(self._arrive(late, writer, room))
        free_s = time.monotonic()
        try:
            while piece := await reader.read(_PIECE_BYTES):
                if up:
                    self.up_bytes += len(piece)
                else:
                    self.down_bytes += len(piece)
                free_s = max(free_s, time.monotonic() - 0.05) + len(piece) / self.bytes_per_s
                await asyncio.sleep(max(0.0, free_s - time.monotonic()))
                await room.acquire()
                late.put_nowait((time.monotonic() + self.delay_s, piece))
        finally:
            arrival.cancel()
            writer.transport.abort()

    async def _arrive(
        self, late: asyncio.Queue[tuple[float, bytes]], writer: StreamWriter, room: asyncio.Semaphore
    ) -> None:
        while True:
            due_s, piece = await late.get()
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            room.release()
            writer.write(piece)
            await writer.drain()
