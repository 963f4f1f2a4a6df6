"""A visitor of an app who can sign in with the test Hub, without a browser."""

from __future__ import annotations

from typing import Any

import httpx

from .server import LocalHub


def visitor(hub: LocalHub, name: str | None = None, **settings: Any) -> httpx.Client:
    """A client with cookies of its own, who signs in as `name`, or as `hub.login_as` says.

        with visitor(hub, "alice") as alice:
            alice.get(f"{app}/login/huggingface")

    gradio's session cookie is Secure, and httpx would keep it from http://127.0.0.1.
    """

    def keep(_: httpx.Response) -> None:
        for cookie in client.cookies.jar:
            cookie.secure = False

    hooks = {"response": [keep]}
    settings = {"follow_redirects": True, "timeout": 30} | settings
    client = httpx.Client(event_hooks=hooks, **settings)
    if name is not None:
        client.cookies.set("who", name, httpx.URL(hub.url).host)
    return client
