"""Starts the page. `spaces` comes first: ZeroGPU must be there before torch looks for CUDA."""

import os
import sys

import spaces  # noqa: F401  # imported for what it does

# Before gradio and huggingface_hub are imported: nobody is to be contacted but the Hub on request.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "64")  # of past requests; nobody reads it
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")  # the owner's is for no visitor
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads take cores from the others

from functools import partial  # after the environment is set, like all below

from merging import MergeError, gpu, hub, pushing, readiness, templates
from merging.library import budget
from merging.loading import prepare
from merging.threads import keep_freed_memory
from merging.ui import LAUNCH, build, kept
from merging.ui.look import EMBEDDED

try:
    hub.clean()
    budget("cpu")
except MergeError as error:  # of a setting
    sys.exit(str(error))
keep_freed_memory()
kept.clean()
pushing.clean()
demo = build()

if __name__ == "__main__":
    readiness.start({
        "chat templates": templates.start,
        "the libraries": prepare,
        "the embedded models": partial(gpu.warm, EMBEDDED),
    })  # fmt: skip
    demo.launch(**LAUNCH)
