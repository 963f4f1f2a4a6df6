"""Who is asking, and which models that lets them use; it knows no recipes and no components.

A visitor's token is taken from their own session at each event, and goes to the Hub alone: it is
kept in no state, no job, no file and no link.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import gradio as gr

from merging import hub
from merging.opening import open_source
from merging.sources import Source


@dataclass(frozen=True)
class Visitor:
    """`token` may read what the visitor may; `folders`: whether local ones may be named.

    `pins` are the commits at which models were checked, by their names as written. `session` is the
    page's, `account` who signed in there.
    """

    token: hub.Token = field(default=False, repr=False)
    folders: bool = False
    pins: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    account: str = ""

    @property
    def person(self) -> str:
        """Whose requests take turns: an account's in all its tabs, or else a session's."""
        return f"account {self.account}" if self.account else f"session {self.session}"

    def find(self, name: str) -> Source:
        """A model, checked anew for this visitor. Raises MergeError, like `open_source`."""
        name = self.pins.get(name, name)
        return open_source(name, folders=self.folders, token=self.token)


def visitor(
    private: bool,
    login: gr.OAuthToken | None,
    pins: Mapping[str, str] | None = None,
    profile: gr.OAuthProfile | None = None,
    session: str | None = None,
) -> Visitor:
    """The machine's own login and folders serve its own user alone (`private`), nobody else.

    Whoever needs the device is known by `profile` or `session` as well.
    """
    if private:
        token: hub.Token = hub.own_login()
    else:
        token = login.token if login else False
    account = profile.username if profile else ""
    return Visitor(token, private, pins or {}, session or "", account)
