"""Sign in with the test Hub: OpenID Connect, as far as gradio's LoginButton needs it; no forms.

An app that lets its visitors sign in must be started with the environment of a Space:

    hub.user("hf_alice", name="alice"); hub.login_as("hf_alice")
    subprocess.Popen([…, "app.py"], env=os.environ | hub.space())

`hub.space()` sets SYSTEM=spaces (what gradio goes by), SPACE_ID, OAUTH_CLIENT_ID,
OAUTH_CLIENT_SECRET, OAUTH_SCOPES, OPENID_PROVIDER_URL, HF_ENDPOINT and HF_HUB_DISABLE_XET, and
SPACE_HOST if it is told where the app listens: without, gradio goes by the address that was asked.
It reads the OAUTH_* ones when it is imported: set them before, in a process of the app's own.

Whoever visits signs in as the user that `hub.login_as` chose; a browser that has the cookie
`who=NAME` on the Hub's origin signs in as that user, so that two browsers can be two users:

    context.add_cookies([{"name": "who", "value": "alice", "url": hub.url}])     # Playwright

With neither, or after `hub.login_as(None)`, the visitor is sent back as one who said no. Without
a browser, visiting.py has a client that signs in the same way. gradio's session cookie is Secure,
which Chromium takes from http://127.0.0.1; with SPACE_HOST gradio wants its visitors sent back to
https://, and the Hub sends those of 127.0.0.1 and localhost to http:// instead.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from .access import hub_of, refuse, signed_in
from .users import User

SCOPES = "openid profile gated-repos read-repos contribute-repos"
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass
class Login:
    """The Hub's OAuth app, its key, who signs in by default, and the codes not yet redeemed."""

    client: str = "test-client"
    secret: str = field(default_factory=lambda: secrets.token_hex(8))
    default: str | None = None
    """The token of whoever signs in without a cookie."""
    lifetime: int = 8 * 3600
    """Seconds for which a session is told to last."""
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @cached_property
    def key(self) -> RSAKey:
        return RSAKey.generate_key(2048, {"kid": "test", "use": "sig", "alg": "RS256"})

    def environment(self, url: str, host: str | None) -> dict[str, str]:
        """What a Space has in its environment; `host` is where the app listens."""
        return ({"SPACE_HOST": host} if host else {}) | {
            "SYSTEM": "spaces",
            "SPACE_ID": "org/space",
            "OAUTH_CLIENT_ID": self.client,
            "OAUTH_CLIENT_SECRET": self.secret,
            "OAUTH_SCOPES": SCOPES,
            "OPENID_PROVIDER_URL": url,
            "HF_ENDPOINT": url,
            "HF_HUB_DISABLE_XET": "1",
        }


async def configuration(request: Request) -> Response:
    url = hub_of(request).url
    return JSONResponse(
        {
            "issuer": url,
            "authorization_endpoint": f"{url}/oauth/authorize",
            "token_endpoint": f"{url}/oauth/token",
            "userinfo_endpoint": f"{url}/oauth/userinfo",
            "jwks_uri": f"{url}/oauth/jwks",
            "scopes_supported": SCOPES.split(),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        }
    )


async def jwks(request: Request) -> Response:
    return JSONResponse({"keys": [hub_of(request).login.key.as_dict(private=False)]})


async def authorize(request: Request) -> Response:
    """Sends the browser back at once, with a code for its user, or with a no."""
    login, asked = hub_of(request).login, request.query_params
    if asked.get("client_id") != login.client or asked.get("response_type") != "code":
        raise refuse(400, "Unknown OAuth app, or not a request for a code.")
    back = urlsplit(asked["redirect_uri"])
    if back.path != "/login/callback":
        raise refuse(400, "The redirect_uri is not the Space's.")
    user = visitor(request)
    if user is None:
        return RedirectResponse(extended(asked, error="access_denied"), 302)
    code = secrets.token_urlsafe(16)
    login.codes[code] = dict(asked) | {"token": user.token}
    return RedirectResponse(extended(asked, code=code), 302)


def visitor(request: Request) -> User | None:
    """The user of the browser's cookie, with the newest token that is good; else the default."""
    hub = hub_of(request)
    if name := request.cookies.get("who"):
        tokens = [u for u in hub.users.values() if u.name == name and not u.expired]
        return tokens[-1] if tokens else None
    return hub.users.get(hub.login.default or "")


def extended(asked: Any, **answer: str) -> str:
    """Where the browser came from, with the answer; on loopback there is no TLS."""
    back = urlsplit(asked["redirect_uri"])
    scheme = "http" if back.hostname in LOOPBACK else back.scheme
    query = "&".join(filter(None, [back.query, urlencode(answer | {"state": asked["state"]})]))
    return back._replace(scheme=scheme, query=query).geturl()


async def token(request: Request) -> Response:
    """Trades a code, once, for the user's token and a signed profile."""
    hub, form = hub_of(request), await request.form()
    login = hub.login
    if not secrets.compare_digest(credentials(request, form), f"{login.client}:{login.secret}"):
        return JSONResponse({"error": "invalid_client"}, 401)
    granted = login.codes.pop(str(form.get("code")), None)
    if granted is None or granted["redirect_uri"] != form.get("redirect_uri"):
        return JSONResponse({"error": "invalid_grant"}, 400)
    user = hub.users[granted["token"]]
    return JSONResponse(
        {
            "access_token": user.token,
            "id_token": id_token(login, hub.url, user, granted.get("nonce", "")),
            "token_type": "bearer",
            "expires_in": login.lifetime,
            "scope": granted["scope"],
        }
    )


def credentials(request: Request, form: Any) -> str:
    """The client's "id:secret", from the header or the form."""
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme == "Basic":
        return base64.b64decode(sent).decode()
    return f"{form.get('client_id')}:{form.get('client_secret')}"


def id_token(login: Login, url: str, user: User, nonce: str) -> str:
    now, half = int(time.time()), hashlib.sha256(user.token.encode()).digest()[:16]
    claims = profile(url, user) | {
        "iss": url,
        "aud": login.client,
        "iat": now,
        "exp": now + 3600,
        "nonce": nonce,
        "at_hash": base64.urlsafe_b64encode(half).decode().rstrip("="),
    }
    return jwt.encode({"alg": "RS256", "kid": "test"}, claims, login.key)


def profile(url: str, user: User) -> dict[str, Any]:
    return {
        "sub": hashlib.sha1(user.name.encode()).hexdigest()[:24],
        "name": user.name.title(),
        "preferred_username": user.name,
        "profile": f"{url}/{user.name}",
        "picture": f"{url}/avatars/{user.name}.svg",
        "isPro": False,
        "orgs": [],
    }


async def userinfo(request: Request) -> Response:
    return JSONResponse(profile(hub_of(request).url, signed_in(request)))


async def avatar(_: Request) -> Response:
    dot = '<svg xmlns="http://www.w3.org/2000/svg"><circle cx="9" cy="9" r="9"/></svg>'
    return Response(dot, media_type="image/svg+xml")


ROUTES = [
    Route("/.well-known/openid-configuration", configuration),
    Route("/oauth/jwks", jwks),
    Route("/oauth/authorize", authorize),
    Route("/oauth/token", token, methods=["POST"]),
    Route("/oauth/userinfo", userinfo, methods=["GET", "POST"]),
    Route("/avatars/{name}.svg", avatar),
]
