"""Other libraries' types and states: a run that began in optax or torch goes on here, and back in optax."""

from ..pages import publish
from .optax_states import from_optax, to_optax
from .optax_type import as_optax
from .torch_states import from_torch

__all__ = ["as_optax", "from_optax", "from_torch", "to_optax"]

publish(globals())
