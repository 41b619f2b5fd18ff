"""What arguments may be: declared above a function, refused at the call, in one wording."""

import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paddlejax as pj
from paddlejax.hyper import COUNT, FLAG, FRACTION, ArgumentError, Interval, Must, checked, each, optional
from paddlejax.wrap import check_state


@checked(rate=FRACTION, k=COUNT, end=optional(Must(lambda end, k: end > k, "more than k, {k}", ValueError)))
def planned(rate: float, k: int = 2, *, end: int | None = None) -> float:
    return rate


class Owner:
    @checked(flag=FLAG)
    def __init__(self, flag=True):
        self.flag = flag


class Heir(Owner):
    pass


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: planned(1.5), ArgumentError, r"^planned's rate: found 1.5, expected a number in \[0, 1\]$"),
        (lambda: planned(np.nan), ArgumentError, "planned's rate: found nan"),
        (lambda: planned(np.float32(2)), ArgumentError, "planned's rate: found 2.0"),
        (lambda: planned(jnp.array(2.0)), ArgumentError, "planned's rate: found 2.0"),
        (lambda: planned(True), TypeError, "planned's rate: found True of type bool, expected a number"),
        (lambda: planned(0.5, True), ArgumentError, "planned's k: found True, expected a positive int"),
        (lambda: planned(0.5, end=2), ValueError, "^planned's end: found 2, expected more than k, 2$"),
        (lambda: planned(), TypeError, r"planned\(\) missing 1 required positional argument: 'rate'"),
        (
            lambda: planned(0.5, bogus=1),
            TypeError,
            r"planned\(\): got an unexpected keyword argument 'bogus'; its arguments are rate",
        ),
        (lambda: Owner(1), TypeError, "^Owner's flag: found 1, expected True or False$"),
        (lambda: Heir(flag=None), TypeError, "^Heir's flag: found None"),
        (
            lambda: check_state("it", {}, tuple),
            TypeError,
            "it's state: found dict, expected the tuple that its",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_is_traced_passes():
    assert jax.jit(planned)(5.0) == 5.0


def test_signature_and_hints_are_the_functions_own():
    assert str(inspect.signature(planned)) == "(rate: float, k: int = 2, *, end: int | None = None) -> float"
    assert typing.get_type_hints(planned) == {"rate": float, "k": int, "end": int | None, "return": float}


@pytest.mark.parametrize(
    "interval, text",
    [
        (Interval(0, 1, open=True), "in [0, 1)"),
        (Interval(0, 1, above=True), "in (0, 1]"),
        (Interval(0), "of at least 0"),
        (Interval(0, above=True), "above 0"),
        (Interval(0, above=True, open=True), "above 0 and finite"),
        (Interval(high=1, open=True), "below 1"),
        (Interval(high=-0.5), "of at most -0.5"),
        (Interval(), ""),
    ],
)
def test_intervals_say_what_they_are(interval, text):
    assert str(interval) == text


def test_an_entry_of_a_list_is_named_by_its_place():
    with pytest.raises(TypeError, match="^names: entry 1: found 2, expected a str$"):
        each(Must(lambda x: isinstance(x, str), "a str"))("names", ["a", 2], {})


@pytest.mark.parametrize(
    "wrap", [lambda tx: pj.lookahead(tx), lambda tx: pj.accumulate_gradients(tx, 2), pj.with_master_weights]
)
def test_wrappers_refuse_the_state_of_another(wrap):
    tx, p = pj.sgd(0.1), jnp.ones(2)
    with pytest.raises(TypeError, match="state: found RuleState, expected the .*State that its init made"):
        wrap(tx).update(p, tx.init(p), p)
