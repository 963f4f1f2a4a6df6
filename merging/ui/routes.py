"""What the page serves beside gradio's own: the files of a merge whose parents are open to all.

Gradio's file route knows no user, and this one needs none: each request asks anew, for nobody.
"""

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
        try:
            text, _ = kept.recipe(identity)
            anyone = Visitor(False, private(request))
            if any(anyone.find(name).gated for name in Recipe.from_yaml(text).names()):
                raise FileNotFoundError(identity)  # for nobody
            pieces = kept.zipped(kept.files(identity))
        except (MergeError, OSError):
            return PlainTextResponse("No such files: press “Make files to download” again.", 404)
        name = f'attachment; filename="merge-{identity[:8]}.zip"'
        headers = {"Content-Disposition": name, "Content-Encoding": "identity"}
        return StreamingResponse(pieces, 200, headers, "application/zip")

    return Route("/merged/{identity}.zip", download)
