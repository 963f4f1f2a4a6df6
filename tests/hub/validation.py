"""What the test Hub says of a model card before it is uploaded: errors and warnings."""

from __future__ import annotations

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import cards

RELATIONS = ("adapter", "merge", "quantized", "finetune", "distill")
LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl
gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl
apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense
zlib pddl deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2
llama3.3 llama4 grok2-community gemma unknown other
"""
"""What the Hub knows as the `license` of a card; anything else needs "other" and a name."""


async def validate_yaml(request: Request) -> Response:
    """Errors and warnings about a card's front matter."""
    text = (await request.json())["content"]
    try:
        card = cards.metadata(text)
    except yaml.YAMLError as error:
        return faulty([f"The front matter is not YAML: {error}"])
    known, errors = LICENSES.split(), []
    if wrong := [name for name in cards.listed(card.get("license")) if name not in known]:
        errors.append(f'"license" must be one of {known}, not {wrong}')
    if card.get("base_model_relation", "merge") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {RELATIONS}')
    if wrong := [id for id in cards.listed(card.get("base_model")) if id.count("/") != 1]:
        errors.append(f'"base_model" must be names of models on the Hub, not {wrong}')
    if errors:
        return faulty(errors)
    empty = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
    return JSONResponse({"errors": [], "warnings": empty})


def faulty(errors: list[str]) -> Response:
    told = [{"message": error} for error in errors]
    return JSONResponse({"error": "Invalid metadata", "errors": told, "warnings": []}, 400)


ROUTES = [Route("/api/validate-yaml", validate_yaml, methods=["POST"])]
