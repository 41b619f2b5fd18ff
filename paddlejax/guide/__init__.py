"""Guides: what no single function can say.

- `paddlejax.guide.optimizers`: all optimizers in one table, with their names in each style and their
  accumulators
- `paddlejax.guide.functions`: the state, the rate, options by path, bfloat16
- `paddlejax.guide.coming_from`: what you write in Paddle, optax and torch, and what you write here
- `paddlejax.guide.differences`: where paddlejax differs from Paddle
- `paddlejax.guide.equality`: how equal the numbers are, and how that is tested
- `paddlejax.guide.costs`: what a step costs, and how to make it cheaper
- `paddlejax.guide.gallery`: the pictures of the examples
- `paddlejax.guide.changes`: what changed from version to version

Guides to one package stand in that package:

- `paddlejax.optimizer`: who owns an array, when it is donated, and what an interrupt leaves
- `paddlejax.checkpoint`: files of Paddle's, safetensors, npz, orbax
- `paddlejax.distributed`: several devices and processes
- `paddlejax.sparse`: embeddings of which a batch reads few rows
- `paddlejax.info`: what a step did
"""

from . import changes, coming_from, costs, differences, equality, functions, gallery, optimizers

__all__ = [
    "changes",
    "coming_from",
    "costs",
    "differences",
    "equality",
    "functions",
    "gallery",
    "optimizers",
]
