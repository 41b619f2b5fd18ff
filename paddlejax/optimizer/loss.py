"""Losses as Paddle has them: deferred scalars that can be computed, added up and run backward."""

import functools
import operator
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import jax
import numpy as np
from jax.core import Tracer

from ..recent import Recent
from ..tracing import READ, check_outside, refuse_abstract
from . import gate
from .call import value_and_grad
from .parameter import Parameter
from .programs import Unseen, Watched, debugs, looking
from .store import Values, Where
from .transaction import complete


class _Known:
    """The programs of a call, and whether the last loss of it that was read before its backward did run
    backward afterwards."""

    follows = False

    def __init__(self, call: Any):
        self.forward = Watched(functools.partial(_forward, call), static_argnums=0)
        self.backward = Watched(functools.partial(_backward, call), static_argnums=0)


_calls: Recent[Any, _Known] = Recent()


def _known_of(call: Any) -> _Known:
    """Return what is known of a call; equal calls share it."""
    return _calls.get(call) or _calls.put(call, _Known(call))


_risky: WeakSet[Any] = WeakSet()  # calls whose programs may fail when they run


def _forward(call: Any, where: Where | None, trained: list[jax.Array], fixed: list[Any]) -> Any:
    """Return (loss, aux)."""
    return call(trained if where is None else where.spread(trained), fixed)


def _backward(call: Any, where: Where | None, trained: list[jax.Array], fixed: list[Any]) -> Any:
    """Return (loss, aux) and the gradients."""
    return value_and_grad(call, trained if where is None else where.spread(trained), fixed)


class Loss:
    """A scalar that has not been computed yet: `float()`, `.item()`, `.numpy()`, `.backward()`, or `minimize`
    it.

    It speaks of the parameters as they were when it was built. Once a step has moved them it cannot be
    computed any more (their old values are gone) and says so; a value that was computed before stays.

    It is a number: it can be compared and formatted, and `+ - * / **` with numbers and other Losses give
    another Loss, whose one backward pass goes through all. Arrays that it meets are constants: a term that is
    to be differentiated belongs into a loss function.

    To read it before backward costs a forward pass, which backward cannot use. Where the last loss of the
    same function was read and then run backward, reading computes the gradients too, and `backward` or
    `minimize` takes these. So a training loop that prints its loss first pays one forward pass more in its
    first step alone. A loss that is only read costs one forward pass and holds no gradients, but for the
    first one after such a loop; under `no_grad` that one too.

    >>> @loss
    ... def square(w):
    ...     return jnp.sum(w * w)
    >>> w = Parameter(jnp.array([3.0, 4.0]))
    >>> y = square(w) / 5 + 1
    >>> y.backward()
    >>> print(f"{y:.1f}", y > 5, w.grad)
    6.0 True [1.2 1.6]
    """

    retained = False  # whether backward may run again
    again: Any = None  # returns `fixed` anew, where Parameters are in it
    outer: Any = None  # the scaled loss that was made of this one, which computes both

    def __init__(self, call: Any, parameters: list[Parameter], fixed: list[Any]):
        self.call, self.parameters, self.fixed = call, parameters, fixed
        self.trained: Any = Values.of([p.store for p in parameters])
        self.moves = gate.own.moves
        self.ran_backward = False
        self.result: Any = None
        self.ready: Any = None  # gradients that were computed when it was read
        # Gradients that a `minimize` computed for Parameters of other optimizers.
        self.left: dict[Parameter, Any] = {}

    # ------------------------------------------------------------------ backward

    def backward(self, grad_tensor: Any = None, retain_graph: bool = False) -> None:
        """Compute the gradients and add them to every Parameter's `.grad`.

        `grad_tensor` is a factor on them. With retain_graph=True backward may run again, as long as no step
        has moved the Parameters; the arrays that the loss was built from are kept for it.
        """
        if not isinstance(retain_graph, bool):
            raise TypeError(f"backward's retain_graph: found {retain_graph!r}, expected True or False")
        if grad_tensor is not None:
            return (self * grad_tensor).backward(retain_graph=retain_graph)
        check_outside(f"{self.name}.backward()", "differentiate a function of arrays there, by jax.grad")
        self.run_backward(Parameter.accumulated, retain_graph)

    def run_backward(self, total: Callable[[Parameter, Any], Any], retain_graph: bool = False) -> None:
        """Run backward, and store what `total` says of each Parameter and its gradient."""
        result, grads = self.gradients()
        grads = [total(p, g) for p, g in zip(self.parameters, grads, strict=True)]
        self.retain(retain_graph)
        complete(lambda: self.take(result, grads))

    def gradients(self) -> tuple[Any, list[Any]]:
        """Run backward and return (what `learn` takes, the gradient of every Parameter); nothing is stored.

        It raises where backward cannot run.
        """
        self.check_runs()
        self.follow()
        if self.ready is not None:
            return self.result, self.ready
        return self._run(_known_of(self.call).backward)

    def check_runs(self) -> None:
        """Raise if there is nothing to differentiate, or nothing is left of it."""
        if self.is_finished():
            raise RuntimeError(
                "backward() ran already for this loss; call the loss function again for another, or run "
                "backward(retain_graph=True) first"
            )
        if not self.parameters:
            raise RuntimeError(
                f"{self.name}: found a loss of no trainable Parameter, so it has no gradient; expected "
                "Parameters among the arguments of the loss function, such as opt.parameters"
            )

    def follow(self) -> None:
        """Note that backward follows; reading the next such loss computes its gradients if this one was
        read."""
        if self.result is not None and not self.ran_backward:
            _known_of(self.call).follows = True

    def take(self, result: Any, grads: list[Any]) -> None:
        """Keep the value, and these gradients in place of what is there; twice is as good as once."""
        self.settle(result)
        for p, g in zip(self.parameters, grads, strict=True):
            p.put_grads(g, None)

    def learn(self, result: Any) -> None:
        """Keep what a program computed of this loss."""
        self.result = result

    def settle(self, result: Any) -> None:
        """Backward has run, wherever: keep the value and let go of what it was computed from."""
        self.learn(result)
        self.ran_backward, self.ready = True, None
        if not self.retained:
            self.trained, self.fixed, self.again = Values([], None), [], None

    def retain(self, retain_graph: bool) -> None:
        """Say whether backward may run again after the one that is about to be stored."""
        self.retained = retain_graph

    def has_gradients(self) -> bool:
        """Return whether its gradients were computed when it was read, and nobody has taken them."""
        return self.ready is not None

    def is_finished(self) -> bool:
        """Return whether only its value is left, as backward ran."""
        return self.ran_backward and not self.retained

    def is_current(self) -> bool:
        """Return whether all its parameters still hold the arrays that they held when it was built."""
        stores = [p.store for p in self.parameters]
        still = self.trained.are_still(stores)
        if not still and self.moves == gate.own.moves and not self.is_finished():
            self.trained = Values.of(stores)  # as if it had been built after the other thread's step
            return True
        return still

    def is_risky(self) -> bool:
        """Return whether computing it may fail, as far as is known: it calls out, or needs much memory."""
        return self.call in _risky

    def note_risk(self) -> None:
        """From now on equal calls are waited for before anything is done with what they return."""
        _risky.add(self.call)

    def _run(self, compiled: Watched) -> Any:
        """Run a program over what the loss was built from; raise if a step has taken that memory."""
        if not (compiled.new or self.is_risky() or debugs()):
            try:
                return self._locked(compiled)
            except Unseen:
                pass
        if not (self.is_risky() or debugs()):
            if compiled.may_fail(self._arguments()):
                self.note_risk()
            compiled.new = False
        if self.is_risky() or debugs():
            return compiled.beside(*self._arguments())
        with looking():
            result = self._locked(compiled)
        return result

    def _locked(self, compiled: Watched) -> Any:
        """Run it while no other thread takes the memory."""
        with gate.lock:
            gate.settle()
            result = compiled.jit(*self._arguments())
        return result

    def _arguments(self) -> tuple[Any, ...]:
        """Return what its programs take."""
        if self._is_gone():  # as another thread has stepped?
            self.is_current()
            if self.again is not None and self.moves == gate.own.moves:
                self.fixed = self.again()
        if self._is_gone():
            raise RuntimeError(
                f"{self.name}: this loss was built before a step moved its parameters and was not computed "
                "in time; call the loss function again"
            )
        return self.trained.where, self.trained.arrays, self.fixed

    def _is_gone(self) -> bool:
        """Return whether a step has taken an array that it was built from."""
        given = (*self.trained.arrays, *self.fixed)
        return any([isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted() for x in given])

    # ------------------------------------------------------------------ a number

    def computed(self) -> Any:
        """Return (loss, aux), after the forward pass if nothing has computed them yet."""
        if self.result is None and self.outer is not None:
            self.outer.computed()
        if self.result is None:
            if self.parameters:
                check_outside(f"reading the loss {self.name}", READ)
            self.read()
        return self.result

    def read(self) -> None:
        """Compute the value, and the gradients too if they will be asked for."""
        known = _known_of(self.call)
        if known.follows and self.parameters:
            result, self.ready = self._run(known.backward)
        else:
            result = self._run(known.forward)
        known.follows = False  # until backward follows again
        self.learn(result)

    @property
    def name(self) -> str:
        """What messages call the loss."""
        return self.call.name

    @property
    def value(self) -> jax.Array:
        """The loss as an array; it is computed now if it was not."""
        return self.computed()[0]

    @property
    def aux(self) -> Any:
        """What the function returned beside the loss, with `@loss(has_aux=True)`."""
        return self.computed()[1]

    def item(self) -> float:
        """Return the loss as a Python float; it is computed now if it was not."""
        return float(self.value)

    __float__ = item

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def numpy(self) -> np.ndarray:
        """Return the loss as a NumPy array; it is computed now if it was not."""
        return np.array(self.value)

    @property
    def __jax_array__(self) -> Any:
        refuse_abstract("a Loss", "loss.value")
        raise AttributeError("__jax_array__")  # elsewhere JAX takes __array__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype)

    def mean(self) -> "Loss":
        """Return the loss: the mean of one number."""
        return self

    sum = mean

    def detach(self) -> "Loss":
        """Return the same number without a gradient: a constant in a sum of losses."""
        from .expression import Constant

        return Constant(self)

    def __repr__(self) -> str:
        shown = ", not computed yet)" if self.result is None else f" = {self.item():g})"
        return f"Loss({self.name}{shown}"

    def _with(self, operation: str, other: Any = None, swap: bool = False) -> Any:
        """Return the Loss of an operation with a number or another Loss, as right operand if `swap`."""
        from .expression import combined

        return combined(operation, self, other, swap)

    def __neg__(self) -> "Loss":
        return self._with("mul", -1.0)

    def __pos__(self) -> "Loss":
        return self

    def __add__(self, other: Any) -> "Loss":
        return self._with("add", other)

    def __radd__(self, other: Any) -> "Loss":
        return self._with("add", other, swap=True)

    def __sub__(self, other: Any) -> "Loss":
        return self._with("sub", other)

    def __rsub__(self, other: Any) -> "Loss":
        return self._with("sub", other, swap=True)

    def __mul__(self, other: Any) -> "Loss":
        return self._with("mul", other)

    def __rmul__(self, other: Any) -> "Loss":
        return self._with("mul", other, swap=True)

    def __truediv__(self, other: Any) -> "Loss":
        return self._with("truediv", other)

    def __rtruediv__(self, other: Any) -> "Loss":
        return self._with("truediv", other, swap=True)

    def __pow__(self, other: Any) -> "Loss":
        return self._with("pow", other)

    def __rpow__(self, other: Any) -> "Loss":
        return self._with("pow", other, swap=True)

    def __lt__(self, other: Any) -> bool:
        return _compared(operator.lt, self, other)

    def __le__(self, other: Any) -> bool:
        return _compared(operator.le, self, other)

    def __gt__(self, other: Any) -> bool:
        return _compared(operator.gt, self, other)

    def __ge__(self, other: Any) -> bool:
        return _compared(operator.ge, self, other)

    def __eq__(self, other: Any) -> bool:
        return _compared(operator.eq, self, other)

    __hash__ = object.__hash__
    __array_priority__ = 100  # numpy's operators hand over to ours


def _compared(compare: Callable[[float, float], bool], loss: Loss, other: Any) -> Any:
    """Return the comparison of a loss with a number or another loss, by value."""
    if not isinstance(other, Loss | int | float | np.generic | np.ndarray | jax.Array):
        return NotImplemented
    return compare(loss.item(), float(other))
