"""Training on many devices: compressed gradients, pipelines, sharded state, several processes.

Everything runs on jax.sharding, shard_map and jax.distributed; nothing here carries bytes by itself.
"""

from typing import TYPE_CHECKING

from ..elsewhere import names_of
from .data_parallel import local_grads, make_step, redistribute, state_specs
from .dgc import dgc_momentum
from .dgc_optimizer import DGCMomentumOptimizer
from .pipeline import PipelineOptimizer
from .processes import initialize, launch
from .sharding import state_shardings, zero1, zero1_shardings

__all__ = [
    "DGCMomentumOptimizer",
    "PipelineOptimizer",
    "dgc_momentum",
    "initialize",
    "launch",
    "local_grads",
    "make_step",
    "redistribute",
    "state_shardings",
    "state_specs",
    "zero1",
    "zero1_shardings",
]

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)
