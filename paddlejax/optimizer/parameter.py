"""Parameters as Paddle has them: named cells that hold a value and its gradient."""

import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..hyper import FACTOR, verify
from ..regularizer import as_regularizer
from ..selected_rows import SelectedRows
from ..tracing import READ, check_outside, loss_inside, refuse_abstract
from ..trees import flatten, path_name
from . import gate, models
from .parameter_options import ParamAttr, ParameterOptions, path_map
from .programs import arrived
from .spent import Spent, has_rows
from .store import Store
from .tensor_methods import TensorMethods

_counter = itertools.count()


class _Zeros:
    """The gradient after `clear_grad()`: zeros that nobody has looked at yet."""

    def __repr__(self) -> str:
        return "zeros"

    def __reduce__(self) -> str:
        return "ZEROS"  # one object, also after a copy


ZEROS: Any = _Zeros()


class Parameter(TensorMethods, ParameterOptions):
    """A named, mutable cell for one array and its gradient.

    It copies what it is given, and whatever `.value` has handed out survives later steps. `learning_rate` is
    a factor on the optimizer's; `regularizer` replaces the optimizer's weight decay; `need_clip=False` keeps
    the gradient out of clipping; `stop_gradient` freezes it. These may be assigned at any time and take
    effect at the next step; `optimize_attr["learning_rate"]` is Paddle's name for `learning_rate`. A new
    factor does not compile again. With sparse=True a loss may read it only through `sparse.embedding`, and
    its gradient is a SelectedRows. Arithmetic, comparison by size and indexing see the value; `==` asks
    whether it is the same Parameter.

    No other attribute can be assigned, so that a slip is not lost. For marks of your own declare the names
    once, `Parameter.allow_tags("no_weight_decay")`.

    >>> w = Parameter(jnp.ones(3), "w")
    >>> w.grad = jnp.zeros(3)
    >>> print(w * 2, w.shape, w.name)
    [2. 2. 2.] (3,) w
    """

    store: Store
    do_model_average: Any
    lazy_grad: Any  # the gradient that the next step takes, or ZEROS
    spent: Any  # without one what a `minimize` computed and stepped with: a gradient, or a Spent that has it
    is_real: bool
    traits: Any  # what a loss has to know beside stop_gradient: None if it is nothing special
    _shape: Any
    _dtype: Any
    __hash__ = object.__hash__
    __array_priority__ = 100  # numpy's operators hand over to ours

    def __init__(
        self,
        value: Any,
        name: str | None = None,
        *,
        trainable: bool = True,
        learning_rate: float = 1.0,
        regularizer: Any = None,
        need_clip: bool = True,
        sparse: bool = False,
        attr: ParamAttr | None = None,
    ):
        if attr is not None and not isinstance(attr, ParamAttr):
            raise TypeError(f"Parameter's attr: found {attr!r}, expected a ParamAttr")
        elif attr is not None and (trainable, learning_rate, regularizer, need_clip) != (
            True,
            1.0,
            None,
            True,
        ):
            raise TypeError("Parameter's attr: found beside other arguments, expected one or the other")
        attr = attr or ParamAttr(name, None, learning_rate, regularizer, trainable, True, need_clip)
        name = name or attr.name
        if name is not None and not isinstance(name, str):
            raise TypeError(f"Parameter's name: found {name!r}, expected a str")
        self.name = name or f"param_{next(_counter)}"
        for flag in ("trainable", "need_clip"):
            if not isinstance(getattr(attr, flag), bool):
                raise TypeError(f"Parameter's {flag}: found {getattr(attr, flag)!r}, expected True or False")
        if not isinstance(sparse, bool):
            raise TypeError(f"Parameter's sparse: found {sparse!r}, expected True or False")
        verify(FACTOR, "Parameter's learning_rate", attr.learning_rate)
        array = _array(value, f"the value of Parameter {self.name}")
        self.store = Store(array)
        self._shape, self._dtype = array.shape, array.dtype
        if sparse and self.ndim < 1:
            raise ValueError(
                f"Parameter {self.name}: found a scalar with sparse=True, expected a table of rows"
            )
        self.lazy_grad = self.spent = None
        self.is_real = jnp.issubdtype(self.dtype, jnp.floating)
        self.traits = (self.is_real, self.name) if sparse or not self.is_real else None
        self.own_rate, self._need_clip = float(attr.learning_rate), attr.need_clip
        self._sparse, self._group_rate, self.edits = sparse, None, (0, 0)
        self._regularizer = as_regularizer(f"Parameter {self.name}'s regularizer", attr.regularizer)
        self.do_model_average = attr.do_model_average
        self.stop_gradient = not attr.trainable

    @property
    def data(self) -> "Parameter":
        """Itself, as in Paddle; what is assigned to it goes to `set_value`."""
        return self

    @data.setter
    def data(self, value: Any) -> None:
        """Replace the value, see `set_value`."""
        self.set_value(value)

    @property
    @gate.whole
    def value(self) -> jax.Array:
        """The array as it is now; it stays valid after later steps, which leave it as it was."""
        self._check_outside()
        return self.store.share()

    def _read(self) -> jax.Array:
        """Return the array to a user's expression, which does not keep it."""
        self._check_outside()
        return self.store.peek()

    def peek(self) -> jax.Array:
        """Return the array to a reader that does not keep it: the next step may take its memory."""
        return self.store.peek()

    def _check_outside(self) -> None:
        """Raise inside a loss function or a trace, where the value would be a constant of the program."""
        name = loss_inside.value
        if name is not None:
            raise RuntimeError(
                f"{name}: found Parameter {self.name} inside the loss function, where its value would be "
                "compiled in for good; expected it among the arguments"
            )
        check_outside(f"the value of Parameter {self.name}", READ)

    @value.setter
    def value(self, value: Any) -> None:
        """Replace the value, see `set_value`."""
        self.set_value(value)

    def set_value(self, value: Any) -> None:
        """Replace the value by a copy of another of the same shape, cast to the parameter's dtype."""
        check_outside(f"set_value of Parameter {self.name}")
        new = _array(value, f"the value of Parameter {self.name}")
        if new.shape != self.shape:
            raise ValueError(
                f"Parameter {self.name}: found a value of shape {new.shape}, expected {self.shape}"
            )
        if jnp.iscomplexobj(new) and not jnp.issubdtype(self.dtype, jnp.complexfloating):
            found = f"found a value of dtype {new.dtype}, expected what {self.dtype} can hold"
            raise TypeError(f"Parameter {self.name}: {found}")
        new = new.astype(self.dtype)
        arrived([new])
        with gate.turn, gate.lock:
            gate.settle()
            self.store.put(new)

    @property
    @gate.whole
    def grad(self) -> Any:
        """The gradient: an array or a SelectedRows; None if there was none, zeros after `clear_grad()`.

        After `minimize` it is the gradient of that step, to look at. It is spent: for the next `backward`,
        `step` or `minimize` there is none.
        """
        check_outside(f"the gradient of Parameter {self.name}", "pass it to the function as an argument")
        return self.peek_grad()

    def peek_grad(self) -> Any:
        """Return the gradient that `grad` shows."""
        if self.lazy_grad is ZEROS:
            self.lazy_grad = self._zeros()
        elif self.spent is ZEROS:
            self.spent = self._zeros()
        elif type(self.spent) is Spent:
            self.spent = self.spent.read(self)
        return self.spent if self.lazy_grad is None else self.lazy_grad

    def _zeros(self) -> jax.Array:
        """Return zeros like the value."""
        packed = self.store.buffer is not None  # then the value would have to be cut out
        return jnp.zeros(self.shape, self.dtype) if packed else jnp.zeros_like(self.peek())

    def has_grad(self) -> bool:
        """Return whether there is a gradient, spent or not."""
        return self.lazy_grad is not None or self.spent is not None

    @grad.setter
    def grad(self, grad: Any) -> None:
        """Replace the gradient by another, or by None."""
        check_outside(f"the gradient of Parameter {self.name}")
        self.put_grads(None if grad is None else self.check_gradient(grad), None)

    def put_grads(self, lazy_grad: Any, spent: Any) -> None:
        """Assign both gradients, past `__setattr__`, which would show in the time of a step."""
        own = vars(self)
        own["lazy_grad"], own["spent"] = lazy_grad, spent

    def check_gradient(self, grad: Any) -> Any:
        """The gradient as an array or rows, or an error if it cannot be one of this parameter."""
        if not isinstance(grad, (jax.Array, np.ndarray, Parameter, SelectedRows)):
            raise TypeError(
                f"Parameter {self.name}: found a gradient of type {type(grad).__name__}, expected an array"
            )
        grad = grad if isinstance(grad, (jax.Array, SelectedRows)) else jnp.asarray(grad)  # slow for arrays
        if grad.shape != self._shape:
            expected = f"expected {self.shape}"
            raise ValueError(f"Parameter {self.name}: found a gradient of shape {grad.shape}, {expected}")
        if grad.dtype != self._dtype and not jnp.issubdtype(grad.dtype, jnp.floating):
            expected = "expected a real floating dtype"
            raise TypeError(f"Parameter {self.name}: found a gradient of dtype {grad.dtype}, {expected}")
        return grad

    def spend(self) -> None:
        """Keep the gradient to look at; the next step does not take it."""
        if self.lazy_grad is not None:
            self.put_grads(None, self.lazy_grad)

    def accumulated(self, grad: Any) -> Any:
        """Return what the gradient is once this one is added; nothing changes."""
        return grad if self.lazy_grad is None or self.lazy_grad is ZEROS else self.lazy_grad + grad

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Zero the gradient if there is one; drop a SelectedRows, and with set_to_zero=False any other."""
        grad = self.spent if self.lazy_grad is None else self.lazy_grad
        stays = set_to_zero and grad is not None and not has_rows(grad, self)
        self.put_grads(ZEROS if stays else None, None)

    clear_gradient = clear_grad

    @gate.whole
    def __getstate__(self) -> dict[str, Any]:
        """A copy lies by itself; it has the same array, which from then on neither may donate."""
        spent = self.spent.read(self) if type(self.spent) is Spent else self.spent
        return {**vars(self), "store": Store(self.store.share(), owned=False), "spent": spent}

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the value, which never changes."""
        return self._shape

    @property
    def dtype(self) -> Any:
        """The dtype of the value, which never changes."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self._shape)

    def recast(self, dtype: Any) -> None:
        """Hold the value and its gradient in this floating dtype from now on. See `amp.decorate`."""
        grad = self.lazy_grad
        if isinstance(grad, SelectedRows):
            grad = grad.with_values(grad.values.astype(dtype))
        elif grad is not None and grad is not ZEROS:
            grad = grad.astype(dtype)
        vars(self).update(_dtype=jnp.dtype(dtype), lazy_grad=grad, spent=None)
        self.store.put(self.peek().astype(dtype))

    @gate.whole
    def numpy(self) -> np.ndarray:
        """Return a copy of the value as a NumPy array."""
        return np.array(self._read())

    @gate.whole
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._read(), dtype)

    @property
    def __jax_array__(self) -> Any:
        refuse_abstract(f"Parameter {self.name}", f"{self.name}.value")
        return lambda: self.value

    @gate.whole
    def item(self) -> Any:
        """The one element of the value, as a Python number."""
        return self._read().item()

    def __float__(self) -> float:
        return float(self.item())

    def __repr__(self) -> str:
        frozen = ", stop_gradient=True" if self.stop_gradient else ""
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self.dtype}{frozen})"


def _array(value: Any, what: str) -> jax.Array:
    """Return a copy of a value as an array, or raise; `what` is what the error calls it."""
    if not isinstance(value, np.ndarray | Parameter):
        check_outside(what)
    try:
        array = jnp.array(value.peek() if isinstance(value, Parameter) else value)
        weak = getattr(array, "weak_type", True)  # then a step would compile twice; a random key has none
        return array.astype(array.dtype) if weak else array
    except (TypeError, ValueError, NotImplementedError) as e:  # the last for a random key
        raise TypeError(f"{what}: found {type(value).__name__}, expected an array") from e


def _refuse_in_place(self: Parameter, other: Any) -> Any:
    """Raise: `w += 1` would put an array in the variable w, and the Parameter would not change."""
    raise TypeError(f"Parameter {self.name}: found an assignment such as +=, expected set_value(...)")


def _delegate(name: str, swap: bool) -> Any:
    """Return the method for an operator: it applies to the value, as right operand if `swap`."""
    apply = getattr(operator, name)

    def method(self: Parameter, other: Any) -> Any:
        other = other.peek() if isinstance(other, Parameter) else other
        return apply(other, self._read()) if swap else apply(self._read(), other)

    return gate.whole(method)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Parameter, f"__{_name}__", _delegate(_name, swap=False))
    setattr(Parameter, f"__r{_name}__", _delegate(_name, swap=True))
for _name in ("iadd", "isub", "imul", "itruediv", "ipow"):
    setattr(Parameter, f"__{_name}__", _refuse_in_place)
for _name in ("lt", "le", "gt", "ge"):
    setattr(Parameter, f"__{_name}__", _delegate(_name, swap=False))
Parameter.__neg__ = lambda self: -self.value  # type: ignore[attr-defined]
Parameter.__abs__ = lambda self: abs(self.value)  # type: ignore[attr-defined]


@gate.whole
def values(tree: Any) -> Any:
    """The same tree with every Parameter replaced by its array, for jit, jnp functions and evaluation.

    All arrays are of one moment: another thread takes no step between two of them.

    >>> print(values({"w": Parameter(jnp.ones(2)), "n": 3}))
    {'n': 3, 'w': Array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(lambda x: x.value if isinstance(x, Parameter) else x, tree)


def parameters(tree: Any, separator: str = "/", names: Mapping[str, str] | None = None) -> Any:
    """The same tree with every array in a Parameter that is named by its path, such as `layer/w`.

    Leaves that are Parameters already stay; the arrays are copied. `separator` stands between the parts of a
    path. `names` gives other names: {Paddle's name: path}, as for checkpoints. So functions that look for
    Paddle's names, such as `apply_decay_param_fun`, find them. Of a model of flax or equinox only
    what it calls parameters is wrapped, and a warning names the rest: `help("paddlejax.optimizer.models")`.

    >>> params = parameters({"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)})
    >>> params["w"]
    Parameter('w', shape=(2, 3), dtype=float32)
    >>> params = parameters({"norm": {"scale": jnp.ones(3)}}, names={"layer_norm_0.w_0": "norm/scale"})
    >>> params["norm"]["scale"].name
    'layer_norm_0.w_0'
    """
    if not isinstance(separator, str) or not separator:
        raise TypeError(f"parameters' separator: found {separator!r}, expected a str such as '.'")
    by_path = path_map(names)
    paths, leaves, structure = flatten(tree)
    present = [leaf is None or isinstance(leaf, Parameter) for leaf in leaves]
    wrapped, fresh = [], models.trained(tree, paths, leaves, present)
    for path, leaf, new in zip(paths, leaves, fresh, strict=True):
        name = path_name(path) if path else "param"
        own = by_path.pop(name.replace("/", separator), None) or by_path.pop(name, None)
        if not new:
            wrapped.append(leaf)
        elif hasattr(leaf, "dtype"):
            p = Parameter(leaf, own or name.replace("/", separator))
            p.mapped = own is not None
            wrapped.append(p)
        else:
            raise TypeError(f"at {name} found {leaf!r}, expected an array or a Parameter")
    if by_path:
        known = ", ".join(path_name(path) for path in paths)
        raise ValueError(f"parameters' names: found no leaf at {', '.join(by_path)}; the paths are {known}")
    return structure.unflatten(wrapped)
