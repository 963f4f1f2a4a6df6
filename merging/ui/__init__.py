"""The page, and what launching it needs. No logic here."""

import os
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request

from merging.opening import APP
from merging.ui import look
from merging.ui.api import endpoints
from merging.ui.events import bind
from merging.ui.layout import layout
from merging.ui.limits import OwnPage, RequestCap, UsedOnly
from merging.ui.routes import downloads
from merging.ui.turn import ASKING

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LAUNCH: dict[str, Any] = {
    "theme": look.theme(),
    "css_paths": APP / "assets" / "page.css",
    "head_paths": APP / "assets" / "page.html",
    "footer_links": ["api", "settings"],
    "ssr_mode": False,  # a second server in Node, of no use here
    "run_history": False,  # answers would stay in a shared browser
    "enable_monitoring": False,  # by default gradio tells everybody who asks how the app is used
    "state_session_capacity": 300,  # gradio keeps 0.7 MB of each page, open or long closed
    "max_threads": 4 * ASKING["concurrency_limit"],  # each who asks holds one, and others come
    "app_kwargs": {
        "middleware": [Middleware(RequestCap), Middleware(OwnPage), Middleware(UsedOnly)],
        "routes": [downloads(lambda request: is_private(request.app.blocks, request))],
    },
}
"""What `launch` needs beside the page. No port and no host: the environment's hold."""


def build() -> gr.Blocks:
    """The whole page. Launch it with `LAUNCH`."""
    with gr.Blocks(title="Merge playground", analytics_enabled=False) as blocks:

        def private(request: gr.Request) -> bool:
            return is_private(blocks, request)

        page = layout(private)
        bind(blocks, page)
        endpoints(private, page.pending)
    blocks.queue(
        max_size=128,
        default_concurrency_limit=8,  # a class that opens the page at once
        api_open=False,  # else whoever calls an event directly need not queue
    )
    return blocks


def is_private(blocks: gr.Blocks, request: gr.Request | Request) -> bool:
    """Whether only this machine's own user can ask this, by the address really bound.

    The name that was asked for must be this machine's as well: a proxy here serves strangers, and
    a stranger's name can be made to mean 127.0.0.1.
    """
    bound = getattr(blocks, "server_name", None)
    asked = urlsplit(f"//{request.headers.get('host', '')}").hostname
    here = bound in LOOPBACK and asked in LOOPBACK
    return here and not blocks.share and not os.environ.get("SPACE_ID")
