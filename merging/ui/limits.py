"""What the server refuses before anything is read: too large a request, another site's page, and
what the page never asks for.
"""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

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
            await _refuse(send, 413, f"The request is over {MAX_REQUEST // 10**6} MB: shorten it.")
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            return {"type": "http.disconnect"} if read > MAX_REQUEST else message

        await self.app(scope, counted, send)


FRAMES = b"frame-ancestors 'self' https://huggingface.co https://*.hf.space"
"""Who may show the page inside their own: elsewhere a click could be meant for something else."""


class OwnPage:
    """ASGI middleware: 403 for what another site's page asks for, in the visitor's name.

    Browsers send a login's cookie along with it, and gradio lets any origin in on a public host.
    Programs send no Origin.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        own = {
            headers.get(b"host", b"").decode("latin-1"),
            *os.environ.get("SPACE_HOST", "").split(","),
        }
        if origin and urlsplit(origin).netloc not in own - {""}:
            await _refuse(send, 403, "Another site's page may not use this one: open it itself.")
            return

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", FRAMES)
                message["headers"] = [*message.get("headers", ()), policy]
            await send(message)

        await self.app(scope, receive, framed)


UNUSED = re.compile("/gradio_api/(upload|process_recording|deep_link|file)")
"""Routes of gradio's that keep what anybody sends, or give anybody files, even of other hosts."""


class UsedOnly:
    """ASGI middleware: 404 for the routes of gradio's that the page has no use for."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and UNUSED.search(scope["path"]):
            await _refuse(send, 404, "The page has no use for this.")
        else:
            await self.app(scope, receive, send)


async def _refuse(send: Send, status: int, words: str) -> None:
    text = words.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
