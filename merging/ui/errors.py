"""How a handler's error reaches the page: a sentence that stays where the user is looking."""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec

from merging.errors import MergeError
from merging.ui import look
from merging.ui.page import Page
from merging.ui.visitor import Visitor

FAULT = "This is a fault of the app, and its log says more: try again."
Values = Mapping[Any, Any]
"""What a handler is given: its inputs' values by component."""
Updates = dict[Any, Any]
"""What a handler gives: new values by component."""


Handler = Callable[[Page, Visitor, Values], Iterator[Updates]]
"""What the page does at an event, for one visitor."""


P = ParamSpec("P")
_Handler = Callable[Concatenate[Page, Visitor, Values, P], Iterator[Updates]]
"""A handler that takes something of its own as well."""


def shows_errors(where: str) -> Callable[[_Handler[P]], _Handler[P]]:
    """Turn a MergeError into a sentence that stays in the page's `where`; a bug is logged, and said
    to be one. Handlers that write down what is under way take it back at any exception."""

    def decorate(handler: _Handler[P]) -> _Handler[P]:
        @wraps(handler)
        def shown(
            page: Page, visitor: Visitor, values: Values, /, *args: P.args, **kwargs: P.kwargs
        ) -> Iterator[Updates]:
            try:
                yield from handler(page, visitor, values, *args, **kwargs)
            except MergeError as error:
                yield {getattr(page, where): look.failure(str(error))}
            except Exception:
                logging.getLogger(__name__).exception("A handler failed")
                yield {getattr(page, where): look.failure(FAULT)}

        return shown

    return decorate
