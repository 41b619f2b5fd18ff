"""Where parameters lie on a mesh before anything spreads them."""

from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..hyper import ArgumentError
from ..trees import align, path_name
from .held import names_of


def own_shardings(
    what: str, mesh: Mesh, tree: Any, paths: list[Any], leaves: list[Any], given: Any, axis: str | None = None
) -> list[Any]:
    """The shardings of the parameters on the mesh: as given, their own, or replicated.

    With an `axis` they must not be sharded over it, nor over another one unless it is given.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    shardings: list[Any] = [whole] * len(leaves)
    if given is not None:
        shardings = align(tree, paths, given, "param_shardings")
    for i, (path, p, sharding) in enumerate(zip(paths, leaves, shardings, strict=True)):
        where = f"at {path_name(path)}"
        if p is None:
            shardings[i] = whole
            continue
        if given is not None:
            if not (isinstance(sharding, NamedSharding) and sharding.mesh == mesh):
                found = f"found {sharding!r}, expected a NamedSharding of the mesh {mesh}"
                raise ArgumentError(f"{what}'s param_shardings: {where}: {found}")
        elif isinstance(own := _sharding_of(p, mesh), NamedSharding):
            if own.mesh != mesh:
                raise ArgumentError(f"{what}: {where}: the parameter is on another mesh, {own}")
            shardings[i] = sharding = own
        if axis in names_of(sharding.spec):
            found = f"the parameter is sharded over {axis!r} already, {sharding.spec}"
            instead = "jax.jit(tx.init, out_shardings=state_shardings(tx, params)) puts its state beside it"
            raise ArgumentError(f"{what}: {where}: {found}; {what} is not needed: {instead}")
        if axis is not None and given is None and not sharding.is_fully_replicated:
            found = f"the parameter is sharded, {sharding.spec}"
            raise ArgumentError(
                f"{what}: {where}: {found}; name the parameters' shardings in param_shardings"
            )
    return shardings


def _sharding_of(p: Any, mesh: Mesh) -> Any:
    """Return the sharding of a parameter, also of one that is traced where its type says it."""
    if not isinstance(p, Tracer):
        return getattr(p, "sharding", None)
    sharding = getattr(jax.typeof(p), "sharding", None)
    if sharding is None or sharding.mesh.axis_names != mesh.axis_names or not any(sharding.spec):
        return None
    return NamedSharding(mesh, sharding.spec)
