"""Guides: what no single function can say.

- `paddlejax.guide.optimizers`: all optimizers in one table, with their names in each style and their
  accumulators
- `paddlejax.guide.functions`: the state, the rate, options by path, bfloat16
- `paddlejax.guide.coming_from`: what you write in Paddle, optax and torch, and what you write here
- `paddlejax.guide.differences`: where paddlejax differs from Paddle
- `paddlejax.guide.equality`: how equal the numbers are, and how that is tested
- `paddlejax.guide.costs`: what a step costs, and how to make it cheaper
- `paddlejax.guide.gallery`: the pictures of the examples

Guides to one package stand in that package: who owns an array and what an interrupt leaves in
`paddlejax.optimizer`, files in `paddlejax.checkpoint`, several devices in `paddlejax.distributed`,
embeddings in `paddlejax.sparse`, what a step did in `paddlejax.info`.
"""
