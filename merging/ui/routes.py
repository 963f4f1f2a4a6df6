"""What the page serves beside gradio's own: the files of a merge whose parents are open to all.

Gradio's file route knows no user, and this one needs none: each request asks anew, for nobody.
"""

import os
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from merging.errors import MergeError
from merging.recipe import Recipe
from merging.ui import kept
from merging.ui.visitor import Visitor


def downloads(private: Callable[[Request], bool]) -> Route:
    """GET /merged/{identity}.zip."""

    def download(request: Request) -> Response:
        identity = request.path_params["identity"]
        folder = kept.files(identity)
        try:
            text, _ = kept.recipe(identity)
            anyone = Visitor(False, private(request))
            open_to_all = not any(anyone.find(n).gated for n in Recipe.from_yaml(text).names())
        except MergeError:
            open_to_all = False
        if not (open_to_all and folder.is_dir()):
            return PlainTextResponse("No such files: press “Make files to download” again.", 404)
        os.utime(folder)  # they are in use
        name = f'attachment; filename="merge-{identity[:8]}.zip"'
        headers = {"Content-Disposition": name, "Content-Encoding": "identity"}
        return StreamingResponse(kept.zipped(folder), 200, headers, "application/zip")

    return Route("/merged/{identity}.zip", download)
