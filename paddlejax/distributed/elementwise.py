"""Whether a function treats every element by itself, so that zeros behind its arrays change nothing."""

from typing import Any

import jax

# Names of primitives; what is not here counts as one that mixes elements.
ALONE = frozenset(
    """abs add add_any and asin acos atan atan2 cbrt ceil clamp convert_element_type copy copy_p cos cosh div
    eq erf erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul
    mul_add_any ne neg nextafter not optimization_barrier or pow reduce_precision rem round rsqrt select_n
    sign sin sinh sqrt square stop_gradient sub tan tanh xor""".split()
)
SAME = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}
)  # of a scalar, or of the same shape


def is_elementwise(function: Any, *arguments: Any) -> bool:
    """Return whether a function of abstract arrays is made of such operations alone.

    What cannot be traced is not. Numbers may be used in any way.
    """
    try:
        return _all_alone(jax.make_jaxpr(function)(*arguments).jaxpr)
    except Exception:  # noqa: BLE001  # a transformation of somebody else's: it is asked again in its own shapes
        return False


def _all_alone(jaxpr: Any) -> bool:
    return all(_is_alone(eqn) for eqn in jaxpr.eqns)


def _is_alone(eqn: Any) -> bool:
    shapes = {v.aval.shape for v in (*eqn.invars, *eqn.outvars) if getattr(v.aval, "shape", ())}
    if not shapes:
        return True
    inner = [x for value in eqn.params.values() for x in (value if isinstance(value, tuple) else (value,))]
    jaxprs = [getattr(x, "jaxpr", x) for x in inner if hasattr(getattr(x, "jaxpr", x), "eqns")]
    if jaxprs:
        # A loop or a scan cuts its arrays; a call and a branch hand them on.
        calls = eqn.primitive.name in (
            "cond",
            "jit",
            "pjit",
            "closed_call",
            "custom_jvp_call",
            "custom_vjp_call",
        )
        return calls and all(map(_all_alone, jaxprs))
    return len(shapes) == 1 and eqn.primitive.name in ALONE | SAME
