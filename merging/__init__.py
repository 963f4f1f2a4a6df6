"""Merge language models, and chat with the result beside its parents.

The flow goes one way, a file a step: `recipe` says what to merge, `sources` are the parents, `plan`
decides, a method in `methods` combines, `merge` runs, `sinks` keep the result, `library` lends
models, `chat` asks them, and the page is in `ui`.

>>> recipe = Recipe.from_yaml('''
... merge_method: ties
... base_model: assets/demo/base
... models: [{model: assets/demo/a}, {model: assets/demo/b}]
... parameters: {density: 0.5}
... ''')
>>> decided = plan(recipe)
>>> decided.method.title, len(decided.steps) > 30
('TIES', True)
>>> from merging.sinks import Live
>>> live = Live()
>>> *_, last = merge(decided, live)
>>> last.share
1.0
"""

from merging.errors import MergeError
from merging.merge import Progress, merge
from merging.methods import methods
from merging.plan import Plan, plan
from merging.recipe import Recipe

__all__ = ["MergeError", "Plan", "Progress", "Recipe", "merge", "methods", "plan"]
