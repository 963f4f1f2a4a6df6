"""What the server refuses before anything is read: requests that are too large."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MAX_REQUEST = 2_000_000
"""Bytes of one request; a recipe has at most 65,536, and a chat's history stays on the server."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestCap:
    """ASGI middleware: 413 for a body that is declared too long, and an end to one that grows."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > MAX_REQUEST:
            await _refuse(send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return {"type": "http.disconnect"} if read > MAX_REQUEST else message

        await self.app(scope, counted, send)


async def _refuse(send: Send) -> None:
    text = f"The request is over {MAX_REQUEST // 10**6} MB: shorten it.".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
