"""Paddle's `paddle.incubate.optimizer.functional`: minimizers of a function, without an optimizer object."""

from ...minimizers import minimize_bfgs, minimize_lbfgs
from ...pages import publish

__all__ = ["minimize_bfgs", "minimize_lbfgs"]

publish(globals())
