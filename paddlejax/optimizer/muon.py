"""Paddle's Muon as an object, and what its muon_param_info_map holds: `paddle.optimizer.muon`."""

from typing import Any

from .. import pages, rules
from ..hyper import Must, Number, checked, given
from ..lifting import Lifted
from ..matrices import Division
from ..paths import LeafOptions
from ..rules.muon import MuonParamInfo
from . import saved
from .arguments import has_groups
from .lr import Rate
from .optimizer import Optimizer
from .settings import ANEW

__all__ = ["Muon", "MuonParamInfo"]

RATE = Must(lambda rate: rate is not None, "a number or an LRScheduler")
PARAMETERS = (
    given("a list of Parameters, or a tree of arrays"),
    Must(lambda x: not has_groups(x), "Parameters without groups: see lr_ratio and muon_param_info_map"),
)


@pages.of(rules.Muon, "optimizer.Muon(0.1, parameters=[p])", "[ 0.899 -1.898]")
class Muon(Optimizer):
    """Paddle's Muon, see `muon`; paths are the names of Parameters, and lr_ratio is asked about Parameters.

    As in Paddle, the rate and the regularizer of a Parameter have no effect, and there are no groups.
    """

    _division: Division | None = None

    @checked(learning_rate=RATE, parameters=PARAMETERS, weight_decay=Number("an int or float"))
    def __init__(
        self,
        learning_rate: Rate = 0.02,
        parameters: Any = None,
        momentum: Any = 0.95,
        adam_beta1: Any = 0.9,
        adam_beta2: Any = 0.95,
        weight_decay: Any = 0.01,
        ns_steps: int = 5,
        ns_coeff_type: str = "simple",
        ns_coeffs: Any = None,
        nesterov: bool = True,
        adam_epsilon: Any = 1e-9,
        grad_clip: Any = None,
        lr_ratio: Any = None,
        apply_decay_param_fun: Any = None,
        muon_version: int = 1,
        muon_exclude_patterns: Any = None,
        muon_extra_scale_factor: Any = 0.2,
        muon_param_info_map: Any = None,
        ns_matmul_dtype: Any = None,
        multi_precision: bool = False,
        name: str | None = None,
        *,
        muon_epsilon: Any = None,
        use_hyperball: bool = False,
        packed: bool = False,
    ):
        rule = rules.Muon(
            momentum,
            adam_beta1,
            adam_beta2,
            weight_decay,
            ns_steps,
            ns_coeff_type,
            ns_coeffs,
            nesterov,
            adam_epsilon,
            lr_ratio,
            apply_decay_param_fun,
            muon_version,
            muon_exclude_patterns,
            muon_extra_scale_factor,
            muon_param_info_map,
            ns_matmul_dtype,
            muon_epsilon=muon_epsilon,
            use_hyperball=use_hyperball,
        )
        common = learning_rate, parameters, None, grad_clip, name
        super().__init__(*common, rule=rule, packed=packed, masters=multi_precision)

    def _resolved(self) -> list[LeafOptions]:
        """Return what each Parameter gets: the rule that the division gives it, and no option of its own."""
        rule: Any = self._base.source.rule
        if self._division is None or self._division.rule is not rule:
            self._division = Division(rule, 0.0)
            self._division.check({p.name: p.shape for p in self.parameter_list})
        alike = {"learning_rate": 1.0, "weight_decay": None}
        return [
            o._replace(rule=self._division.of(p.name, p.shape), **alike)
            for p, o in zip(self.parameter_list, super()._resolved(), strict=True)
        ]

    @property
    def _rules(self) -> list[Lifted]:
        """The rule of each Parameter."""
        return [o.rule for o in self._resolved()]

    def _assign(self, name: str, value: Any) -> None:
        """Refuse a hyperparameter: each Parameter has one of two rules that were made of all of them."""
        if self._field_of(name) is not None:
            raise AttributeError(f"Muon.{name} cannot be assigned: it belongs to two rules; {ANEW}")
        super()._assign(name, value)

    def owners(self) -> list[str]:
        """Return the names: accumulators are filed under these even where there is a master."""
        return saved.owners_of(self.parameter_list, False, self._name)
