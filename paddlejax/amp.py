"""Paddle's `paddle.amp`: the loss scaling of mixed-precision training, as an object."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from .array_types import Numeric
from .attributes import Attributes
from .casting import amp_guard, auto_cast, decorate, is_bfloat16_supported, is_float16_supported
from .elsewhere import names_of
from .hyper import FLAG, INT, ArgumentError, checked, number, unless
from .loss_scaling import DECR_RATIO, INCR_RATIO, SCALE, all_finite, next_scale, times, unscaled
from .optimizer.copies import Copied
from .optimizer.expression import Constant
from .optimizer.gate import alone, whole
from .optimizer.ledger import Entries, StateDictError, load, written
from .optimizer.loss import Loss
from .optimizer.parameter import ZEROS, Parameter
from .optimizer.scaled import FIELDS, Progress, ScaledLoss, is_scaled, noted
from .optimizer.transaction import complete
from .optimizer.wrappers import innermost
from .pages import publish
from .tracing import check_outside

__all__ = [
    "GradScaler",
    "amp_guard",
    "auto_cast",
    "decorate",
    "is_bfloat16_supported",
    "is_float16_supported",
]

_next_scale = jax.jit(next_scale)


@jax.jit
def _unscale(grads: list[jax.Array], scale: Any) -> tuple[list[jax.Array], jax.Array]:
    grads_ = unscaled(grads, scale)
    return grads_, all_finite(grads) & all_finite(grads_)  # 1/scale may overflow, or be infinite itself


def _is_off(setting: Any, enable: bool) -> bool:
    """Paddle's scaler that is not enabled does not look at its settings."""
    return not enable


class GradScaler(Attributes, Copied):
    """Scale the loss so that small float16 gradients do not vanish, and skip the steps where one overflows.

        scaled = scaler.scale(loss(...)); scaled.backward()
        scaler.step(opt); scaler.update(); opt.clear_grad()      or  scaler.minimize(opt, scaled)

    A step with an infinite or NaN gradient changes nothing in the optimizer: parameters, accumulators, beta
    powers; `consecutive_skips` and `total_skips` count them. incr_every_n_steps good steps in a row multiply
    the scale by incr_ratio, decr_every_n_nan_or_inf bad ones by decr_ratio; 0 means never. The scale stays
    within the bounds that `dynamic_loss_scale` names: Paddle's may become inf or 0, and skips every later
    step. As in Paddle, of several optimizers the one whose gradients were unscaled last moves the scale.
    Paddle's switches itself off on CPU and outside float16; this one works everywhere, and a skipped step
    does not also skip a later `opt.step()`. torch's heeds all optimizers and calls the ratios growth and
    backoff.

    `scale` is for use outside `jax.jit`, which would freeze the factor; inside, see `dynamic_loss_scale`.

    >>> w = Parameter(jnp.array([1.0]))
    >>> scaler, opt = GradScaler(init_loss_scaling=8.0), optimizer.SGD(0.5, parameters=[w])
    >>> w.grad = jnp.array([8.0])
    >>> scaler.step(opt); scaler.update()
    >>> print(w.value, scaler.scale(1.0))
    [0.5] 8.0
    """

    _enable: bool
    _dynamic: bool
    _ratios: list[float]
    _intervals: list[int]
    _init_loss_scaling: float
    _progress: Progress
    _ways = {
        f"{start}{name}": f"use set_{name}(value)"
        for name in ("incr_ratio", "decr_ratio", "incr_every_n_steps", "decr_every_n_nan_or_inf")
        for start in ("", "_")
    }
    _ways |= dict.fromkeys(("init_loss_scaling", "_init_scale"), "use set_init_loss_scaling(value)")

    @checked(
        enable=FLAG,
        use_dynamic_loss_scaling=FLAG,
        incr_ratio=unless(_is_off, *INCR_RATIO),
        decr_ratio=unless(_is_off, *DECR_RATIO),
        incr_every_n_steps=unless(_is_off, INT),
        decr_every_n_nan_or_inf=unless(_is_off, INT),
        init_loss_scaling=SCALE,
    )
    def __init__(
        self,
        enable: bool = True,
        init_loss_scaling: Numeric = 65536.0,
        incr_ratio: float = 2.0,
        decr_ratio: float = 0.5,
        incr_every_n_steps: int = 2000,
        decr_every_n_nan_or_inf: int = 1,
        use_dynamic_loss_scaling: bool = True,
    ):
        self._enable, self._dynamic = enable, use_dynamic_loss_scaling
        self._ratios = [incr_ratio, decr_ratio]
        self._intervals = [incr_every_n_steps, decr_every_n_nan_or_inf]
        self._progress = Progress(np.float32(0))
        self._set_scale(init_loss_scaling)

    @property
    def consecutive_skips(self) -> int:
        """How many of the last steps were skipped in a row."""
        return self._progress.consecutive_skips

    @property
    def total_skips(self) -> int:
        """How many steps were skipped in all."""
        return self._progress.total_skips

    @property
    def _scale(self) -> np.float32:
        """The factor on the loss."""
        return self._progress.scale

    def __repr__(self) -> str:
        return f"GradScaler(scale={self._scale:g})" if self._enable else "GradScaler(enable=False)"

    # ------------------------------------------------------------------ one step

    def scale(self, loss: Any) -> Any:
        """The loss times the scale, in float32 or wider; a Loss gives a Loss, anything else an array."""
        if not self._enable:
            return loss
        if isinstance(loss, Loss) and is_scaled(loss):
            raise TypeError(f"scale: found {loss!r}, which is scaled already")
        if not isinstance(loss, Loss):
            if not isinstance(loss, Parameter | jax.Array | np.ndarray | np.generic):
                number("scale's loss", loss, "a Loss, an array or a number")
            loss = jnp.asarray(loss.peek() if isinstance(loss, Parameter) else loss)
            floating = jnp.issubdtype(loss.dtype, jnp.inexact)
            return times(loss if floating else loss.astype(jnp.float32), self._scale)
        if isinstance(loss, Constant):
            return loss * float(self._scale)
        if loss.call is None:  # of a pipeline
            expected = "expected what a @paddle.loss function returned"
            raise TypeError(f"scale's loss: found {type(loss).__name__}, {expected}")
        if loss.ran_backward:
            raise RuntimeError("scale: backward() ran already for this loss; scale it before")
        return ScaledLoss(loss, np.asarray(self._scale))

    @alone
    def unscale_(self, optimizer: Any) -> None:
        """Divide the optimizer's gradients by the scale, to clip or look at them before `step`.

        16-bit gradients become float32, where they do not vanish.
        """
        if not self._enable:
            return
        parameters, optimizer = _parameters("unscale_", optimizer), innermost(optimizer)
        before = self._progress
        if optimizer in before.stepped:
            raise RuntimeError("unscale_: found it called after step(), expected update() in between")
        if optimizer in before.unscaled:
            raise RuntimeError(
                "unscale_: found it called twice for this optimizer, expected update() in between"
            )
        check_outside("unscale_")
        there = [p for p in parameters if p.lazy_grad is not None and p.lazy_grad is not ZEROS]
        grads, finite = _unscale([p.lazy_grad for p in there], self._scale)
        bad = not finite
        after = before._replace(found_inf=bad, unscaled={**before.unscaled, optimizer: bad})

        def store() -> None:
            for p, g in zip(there, grads, strict=True):
                p.put_grads(g, None)
            self._progress = after

        complete(store)

    @alone
    def step(self, optimizer: Any) -> None:
        """`optimizer.step()` with unscaled gradients, or nothing if one of them is infinite or NaN."""
        if not self._enable:
            return optimizer.step()
        _parameters("step", optimizer)
        inner = innermost(optimizer)  # whose gradients they are: wrappers share them
        if inner in self._progress.stepped:
            raise RuntimeError("step: found it called twice for this optimizer, expected update() in between")
        if inner not in self._progress.unscaled:
            self.unscale_(optimizer)
        good, after = self._judged(inner, self._progress)
        if self._dynamic:
            after = after._replace(stepped=after.stepped | {inner})
        else:
            after = after._replace(unscaled={o: bad for o, bad in after.unscaled.items() if o is not inner})
        noted(inner, optimizer.step if good else None, lambda: setattr(self, "_progress", after))

    @alone
    def update(self) -> None:
        """Adapt the scale to whether the last `step` was skipped; every optimizer may step again."""
        if not (self._enable and self._dynamic):
            return
        check_outside("update")
        self._progress = self._updated(self._progress)

    def _updated(self, progress: Progress) -> Progress:
        """Return the progress with the next scale; every optimizer's gradients are scaled again."""
        if not self._dynamic:
            return progress._replace(unscaled={})
        found = _next_scale(
            progress.scale, *progress.counts, progress.last_was_bad, *self._ratios, *self._intervals
        )
        scale, good, bad = jax.device_get(found)
        counts = int(good), int(bad)
        return progress._replace(scale=np.float32(scale), counts=counts, unscaled={}, stepped=frozenset())

    @alone
    def minimize(self, optimizer: Any, loss: Any, *args: Any, **kwargs: Any) -> tuple[list[Any], list[Any]]:
        """`step` and `update` in one; `([], [(parameter, gradient), ...])`.

        The gradients are spent, as `optimizer.minimize` says, also where the step is skipped.
        A Loss whose backward has not run is scaled, unless it is already, and runs backward. The remaining
        arguments are those of `optimizer.minimize`.
        """
        if not self._enable:
            return optimizer.minimize(loss, *args, **kwargs)
        parameters, inner = _parameters("minimize", optimizer), innermost(optimizer)
        check_outside("minimize")
        if isinstance(loss, Loss):
            if not loss.ran_backward:
                if inner in self._progress.unscaled:
                    raise RuntimeError(
                        "minimize: found a loss whose backward has not run, after unscale_(); "
                        "expected loss.backward() before unscale_()"
                    )
                prepare = getattr(optimizer, "recomputing", lambda loss: loss)
                scaled = prepare(loss if is_scaled(loss) else self.scale(loss))
                if all(p.lazy_grad is None or p.lazy_grad is ZEROS for p in parameters):
                    step = functools.partial(optimizer.minimize, scaled, *args, **kwargs)
                    return [], self._minimize(inner, set(parameters), scaled, step)
                scaled.backward()  # adds to scaled gradients that are there
        elif callable(loss):
            expected = "what a @paddle.loss function returned"
            raise TypeError(f"minimize's loss: found a {type(loss).__name__}, expected {expected}")
        elif args or kwargs:
            expected = "a Loss, to which the further arguments belong"
            raise TypeError(
                f"minimize's loss: found {type(loss).__name__} with further arguments, expected {expected}"
            )
        if isinstance(loss, Loss) and loss.left:  # of the `minimize` of another optimizer, still scaled
            given, loss.left = loss.left, {p: g for p, g in loss.left.items() if p not in parameters}
            for p in parameters:
                if p in given:
                    p.put_grads(p.accumulated(given[p]), None)
        before, cells = self._progress, [(p.lazy_grad, p.spent) for p in parameters]
        done = False

        def note() -> None:
            nonlocal done
            done = True
            self._progress = after
            for p in parameters:
                p.spend()

        try:
            if inner not in before.unscaled:
                self.unscale_(optimizer)
            pairs = [(p, p.peek_grad()) for p in parameters if p.lazy_grad is not None]
            good, judged = self._judged(inner, self._progress)
            after = self._updated(judged)
            step = optimizer.step
            if isinstance(loss, Loss):
                step = functools.partial(optimizer.minimize, loss, *args, **kwargs)
            result = noted(inner, step if good else None, note)
        except BaseException:
            if not done:  # as if it had not been called
                self._progress = before
                for p, cell in zip(parameters, cells, strict=True):
                    p.put_grads(*cell)
            raise
        return [], result[1] if result else pairs

    def _minimize(
        self, inner: Any, own: set[Parameter], loss: Loss, step: Callable[[], Any]
    ) -> list[tuple[Parameter, Any]]:
        """Minimize a scaled loss whose gradients alone take part: it is given these, unscaled."""
        result, grads = loss.gradients()
        mine = [i for i, p in enumerate(loss.parameters) if p in own]
        others = [i for i, p in enumerate(loss.parameters) if p not in own]
        found, finite = _unscale([grads[i] for i in mine], self._scale)
        # Those of other optimizers stay scaled, for their own `minimize`.
        left = {loss.parameters[i]: grads[i] for i in others}
        ready = {**dict(enumerate(grads)), **dict(zip(mine, found, strict=True))}
        before, bad = self._progress, not finite
        good, judged = self._judged(
            inner, before._replace(found_inf=bad, unscaled={**before.unscaled, inner: bad})
        )
        after = self._updated(judged)

        def note() -> None:
            self._progress = after
            if not good:
                loss.settle(result)
                loss.left = left
                for i in mine:
                    loss.parameters[i].put_grads(None, ready[i])

        try:
            loss.result, loss.ready = result, [ready[i] for i in range(len(grads))]
            done = noted(inner, step if good else None, note)
        finally:
            loss.ready = None  # they are not those of the scaled loss
        return done[1] if good else [(loss.parameters[i], ready[i]) for i in mine]

    def _judged(self, inner: Any, before: Progress) -> tuple[bool, Progress]:
        """Return whether the step may be taken, and the progress that `update` will go by.

        Paddle asks only what the last unscale_ found, and applies an infinite gradient if another optimizer
        was unscaled after it. That verdict moves the scale here too, but the optimizer's own counts too.
        """
        bad = before.found_inf or before.unscaled[inner]
        return not bad, before._replace(
            last_was_bad=before.found_inf,
            consecutive_skips=before.consecutive_skips + 1 if bad else 0,
            total_skips=before.total_skips + bad,
        )

    # ------------------------------------------------------------------ settings

    def is_enable(self) -> bool:
        """Return whether the scaler scales at all."""
        return self._enable

    def is_use_dynamic_loss_scaling(self) -> bool:
        """Return whether the factor changes with what the steps find."""
        return self._dynamic

    def get_init_loss_scaling(self) -> float:
        """Return the factor at the start."""
        return self._init_loss_scaling

    @checked(new_init_loss_scaling=SCALE)
    def set_init_loss_scaling(self, new_init_loss_scaling: Numeric) -> None:
        """Start again from this scale; the counts go on."""
        self._set_scale(new_init_loss_scaling)

    def _set_scale(self, new_init_loss_scaling: Any) -> None:
        self._init_loss_scaling = float(new_init_loss_scaling)
        self._progress = self._progress._replace(scale=np.float32(self._init_loss_scaling))

    def get_incr_ratio(self) -> float:
        """Return by what the factor is multiplied after enough good steps."""
        return self._ratios[0]

    @checked(new_incr_ratio=INCR_RATIO)
    def set_incr_ratio(self, new_incr_ratio: float) -> None:
        """Set by what the factor is multiplied after enough good steps."""
        self._ratios[0] = new_incr_ratio

    def get_decr_ratio(self) -> float:
        """Return by what the factor is multiplied after enough bad steps."""
        return self._ratios[1]

    @checked(new_decr_ratio=DECR_RATIO)
    def set_decr_ratio(self, new_decr_ratio: float) -> None:
        """Set by what the factor is multiplied after enough bad steps."""
        self._ratios[1] = new_decr_ratio

    def get_incr_every_n_steps(self) -> int:
        """Return how many good steps in a row raise the factor."""
        return self._intervals[0]

    @checked(new_incr_every_n_steps=INT)
    def set_incr_every_n_steps(self, new_incr_every_n_steps: int) -> None:
        """Set how many good steps in a row raise the factor."""
        self._intervals[0] = new_incr_every_n_steps

    def get_decr_every_n_nan_or_inf(self) -> int:
        """Return how many bad steps lower the factor."""
        return self._intervals[1]

    @checked(new_decr_every_n_nan_or_inf=INT)
    def set_decr_every_n_nan_or_inf(self, new_decr_every_n_nan_or_inf: int) -> None:
        """Set how many bad steps lower the factor."""
        self._intervals[1] = new_decr_every_n_nan_or_inf

    # ------------------------------------------------------------------ state

    @whole
    def state_dict(self) -> dict[str, Any]:
        """Scale, counts and settings under Paddle's names; empty if the scaler is not enabled."""
        if not self._enable:
            return {}
        return written((field, value) for field, value in zip(FIELDS, self._saved(), strict=True))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict()` returned, or raise one error with all that does not fit, and change
        nothing. A scaler that is not enabled ignores it."""
        if not self._enable:
            return
        load(self._loading, state_dict, counters=False)

    def _saved(self) -> tuple[Any, ...]:
        """The values of FIELDS."""
        return self._scale, *self._ratios, *self._intervals, *self._progress.counts, self._dynamic

    def _loading(self, entries: Entries, strict: bool) -> Iterator[None]:
        if not entries.rest:
            raise StateDictError("the state_dict is empty: it may come from a GradScaler with enable=False")
        scale, up, down, every_good, every_bad, good, bad, dynamic = map(entries.read, FIELDS)
        yield
        self._set_scale(scale)
        self._ratios, self._intervals = [up, down], [every_good, every_bad]
        self._progress, self._dynamic = self._progress._replace(counts=(good, bad)), dynamic


def _parameters(method: str, optimizer: Any) -> list[Parameter]:
    parameters = getattr(optimizer, "parameter_list", None)
    if parameters is None or not callable(getattr(optimizer, "step", None)):
        raise TypeError(f"{method}: found {optimizer!r}, expected an optimizer")
    if (workers := getattr(innermost(optimizer), "_workers", 1)) > 1:  # whose gradients it never sees
        raise ArgumentError(
            f"{method}: found {type(optimizer).__name__} with {workers} workers, expected one; use "
            "dgc_momentum inside dynamic_loss_scale(..., axis_name=...)"
        )
    return list(parameters)


__path__: list[str] = []  # Paddle has modules below this one, see elsewhere.py

if not TYPE_CHECKING:
    __getattr__ = names_of(__name__)

publish(globals())
