"""What was said of an optimizer's Parameters, and how it may be changed between two steps."""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

from ..attributes import Attributes, changes
from ..clip import ClipGradBase
from ..hyper import FLAG, scalar, verify
from ..leaves import LeafOptions
from ..lifting import Lifted, check_rounded_of, lift
from ..recent import Recent
from ..regularizer import WeightDecayRegularizer, as_regularizer
from ..tracing import check_outside
from ..trees import compute_dtype, is_narrow
from .arguments import Group, checked_clip, checked_pairs, read_group
from .parameter import Parameter
from .plan import Plan, planned, renewed

# Paddle's names of hyperparameters, where they are not those of the rule with an underscore.
ALIASES = {
    "_coeff": ("weight_decay",),
    "_weight_decay": ("weight_decay", "lamb_weight_decay"),
    "_n": ("batch_num",),
    "_initial_learning_rate": ("learning_rate",),
    "always_adapt": ("always_adapt",),
    "initial_accumulator_value": ("initial_accumulator_value",),
}
SET_LR = "use set_lr(value) or set_lr_scheduler(scheduler)"
DECAY = "assign regularization, a number or a regularizer"
ANEW = "make a new optimizer and give it state_dict()"
RULE = (
    "write the formula as a Rule, optimizer.Optimizer(rate, params, rule=MyRule()), see help(paddlejax.Rule)"
)
RATIO = f"a rate per Parameter is AdamW's lr_ratio=, optimize_attr or a group; {RULE}"
# What torch's users read of an optimizer, and Paddle's optimizers do not have either.
READ: Mapping[str, str] = {
    **dict.fromkeys(("lr", "learning_rate"), "get_lr() returns the rate, set_lr(value) changes it"),
    "param_groups": "get_lr() returns the rate, set_lr(value) changes it; _parameter_list has the Parameters",
}

# Methods that Paddle's optimizers call and that subclasses define there.
HOOKS: Mapping[str, str] = {
    **dict.fromkeys(("_append_optimize_op", "_apply_optimize", "_create_param_lr"), RATIO),
    **dict.fromkeys(("_create_accumulators", "_add_accumulator", "_finish_update"), RULE),
    **dict.fromkeys(("_add_moments_pows", "_set_accumulator", "_get_accumulator_master"), RULE),
    **dict.fromkeys(("_append_optimize_multi_tensor_op", "_multi_tensor_init"), RULE),
    **dict.fromkeys(("_create_optimization_pass", "_pir_create_optimization_pass"), RULE),
    **dict.fromkeys(("_update_param_group", "_add_param_group"), "say it in the group dicts, or by_path"),
    **dict.fromkeys(
        ("_create_regularization_of_grad", "append_regularization_ops"),
        "define a WeightDecayRegularizer with term(p), and give it as weight_decay",
    ),
    **dict.fromkeys(
        ("_create_global_learning_rate", "_global_learning_rate"), "define an LRScheduler with get_lr()"
    ),
    **dict.fromkeys(
        ("_create_master_weight", "_create_master_grad"), "multi_precision=True keeps float32 masters"
    ),
}


class Settings(Attributes):
    """The part of an optimizer that knows what each Parameter gets.

    What is assigned takes effect at the next step: `regularization`, `_grad_clip`, `_multi_precision` before
    the first step, and the hyperparameters of the rule by Paddle's names, such as `_momentum` or `_beta1`.
    """

    _ways: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("lr", "learning_rate", "_lr", "_learning_rate_map"), SET_LR),
        **dict.fromkeys(("weight_decay", "_regularization", "_regularization_coeff"), DECAY),
        **dict.fromkeys(("_regularization_method", "_weight_decay", "_coeff"), DECAY),
        **dict.fromkeys(("grad_clip", "clip", "_clip"), "assign _grad_clip, an instance of nn.ClipGradBy*"),
        **dict.fromkeys(("multi_precision", "_masters"), "assign _multi_precision before the first step"),
        **dict.fromkeys(("_parameter_list", "_param_groups", "_params", "param_groups"), ANEW),
        **dict.fromkeys(("_accumulators", "_master_weights", "_accumulators_holder"), "use set_state_dict"),
        "_default_dict": "say it in the group dicts that the constructor is given",
        "_use_fusion_storage": "packed=True lays small Parameters in common buffers",
        "type": "it is the name of the class",
    }
    _once: ClassVar[Mapping[str, str]] = {"parameters": ANEW, "parameter_list": ANEW}
    _hooks: ClassVar[Mapping[str, str]] = HOOKS
    _hint: ClassVar[str] = "a subclass may have attributes of its own"
    # Paddle's steps several tensors by one kernel where it is True. Here a step is one program anyway.
    _use_multi_tensor: Any = None

    _rate: Any
    _groups: list[Group]
    _base: Lifted  # the rule of all that no group says otherwise of
    _decay: WeightDecayRegularizer | None
    _clip_of_all: ClipGradBase | None
    _clips_outside: bool  # whether a clip has to be called before the step
    _in_groups: bool
    _plan: Plan
    _clipped: Recent[Any, tuple[object, list[float], Plan]]  # by what is fixed in the clip of a `minimize`
    _packing: Any
    _steps: Any
    parameter_list: list[Parameter]

    def _read_settings(
        self, groups: Iterable[tuple[list[Parameter], Mapping[str, Any]]], rule: Any, decay: Any, clip: Any
    ) -> None:
        """Take what the constructor was given."""
        groups = list(groups)
        self._base, self._decay, self._clip_of_all = lift(rule, 0.0), decay, clip
        self._groups = [read_group(members, self._base, own, clip) for members, own in groups]
        self._in_groups = any(own for _, own in groups) or len(groups) > 1
        for group in self._groups:
            for p in group.members:
                p.show_rate(group.factor)
        self._clips_outside = _any_outside(self._groups)
        self._warn_of_names()
        self._plan = planned(self._resolved())

    def _warn_of_names(self) -> None:
        """Warn where the rule's exclusions tell no Parameter from another: they may look for other names."""
        unmapped = [(p, g.rule.source.rule) for g in self._groups for p in g.members if not p.mapped]
        if len(unmapped) < 3:
            return
        answers = [answer for p, rule in unmapped if (answer := rule.decays(p)) is not None]
        if len(answers) >= 3 and len(set(answers)) == 1:
            names = ", ".join(p.name for p, _ in unmapped[:3])
            warnings.warn(
                f"{type(self).__name__}: what excludes parameters from decay excludes "
                f"{'none' if answers[0] else 'all'} of {len(answers)}, whose names are {names}, ...; if it "
                "looks for Paddle's names, give them: parameters(tree, separator='.', names={theirs: ours})",
                stacklevel=4,
            )

    def _resolved(self) -> list[LeafOptions]:
        """Return what each Parameter gets now, in the order of the optimizer."""
        return [o for group in self._groups for o in group.options(self._decay)]

    def _settled(self) -> Plan:
        """Return the plan for the next step; it is made anew if anything has changed since the last."""
        if self._plan.seen != changes.count:
            seen = changes.count
            options = self._resolved()
            self._check_options(options)
            self._plan = renewed(
                self._plan, seen, options, self._packing is not None, bool(self._steps.compiled)
            )
        return self._plan

    def _plan_with(self, grad_clip: Any) -> Plan:
        """Return what each parameter gets, with this clip in place of its own: equal clips have one plan."""
        if grad_clip.outside():
            raise TypeError(
                f"minimize's grad_clip: found {type(grad_clip).__name__}, which has _dygraph_clip, expected "
                "it in the constructor, or one that defines clip(self, grads)"
            )
        chosen = tuple(map(grad_clip.selects, self.parameter_list))
        numbers = [getattr(grad_clip, name) for name in grad_clip.adjustable()]
        known = self._clipped.get((grad_clip.fixed(), chosen))
        if known is not None and known[:2] == (self._plan.number, numbers):
            return known[2]
        clip = grad_clip.transformation()
        pairs = zip(chosen, self._plan.options, strict=True)
        options = [o._replace(grad_clip=clip if here else None) for here, o in pairs]
        plan = planned(options)
        if known is not None:
            plan = renewed(known[2], self._plan.seen, options, self._packing is not None, made=True)
        self._clipped.put((grad_clip.fixed(), chosen), (self._plan.number, numbers, plan))
        return plan

    def _check_options(self, options: list[LeafOptions]) -> None:
        """Raise if the optimizer cannot do this; a subclass says what."""

    @property
    def _options(self) -> list[LeafOptions]:
        """What each Parameter gets."""
        return self._settled().options

    @property
    def _rules(self) -> list[Lifted]:
        """The rule of each Parameter."""
        return [group.rule for group in self._groups for _ in group.members]

    # ------------------------------------------------------------------ what may be assigned

    @property
    def _learning_rate(self) -> Any:
        """The rate as it was given: a float or a scheduler."""
        return self._rate

    @_learning_rate.setter
    def _learning_rate(self, learning_rate: Any) -> None:
        if "_rate" in vars(self):
            check_outside("a new learning rate", "set it outside")
        self._rate = self._checked_rate(learning_rate)

    def _checked_rate(self, learning_rate: Any) -> Any:
        """Return the rate as a float, or the scheduler; raise on anything else."""
        raise NotImplementedError(f"{type(self).__name__} has no rate")

    @property
    def regularization(self) -> WeightDecayRegularizer | None:
        """The decay of the Parameters that have none of their own and whose group says nothing of it."""
        return self._decay

    @regularization.setter
    def regularization(self, value: Any) -> None:
        """Replace it by a number (L2), a regularizer or None."""
        self._change(_decay=as_regularizer("regularization", value))

    @property
    def _grad_clip(self) -> ClipGradBase | None:
        """The clip of the gradients."""
        return self._clip_of_all

    @_grad_clip.setter
    def _grad_clip(self, clip: Any) -> None:
        clip = checked_clip("_grad_clip", clip)
        self._refuse_groups("_grad_clip")
        groups = [group._replace(clip=clip) for group in self._groups]
        self._change(_clip_of_all=clip, _groups=groups, _clips_outside=_any_outside(groups))

    @property
    def maximize(self) -> bool:
        """Whether a step goes along the gradients, so that the loss grows; a decay still pulls to zero."""
        return any(group.maximize for group in self._groups)

    @maximize.setter
    def maximize(self, on: Any) -> None:
        """Turn every group around."""
        verify(FLAG, "maximize", on)
        self._change(_groups=[group._replace(maximize=on) for group in self._groups])

    @property
    def _multi_precision(self) -> bool:
        """Whether narrow Parameters have float32 masters."""
        return self._steps.masters is not None

    @_multi_precision.setter
    def _multi_precision(self, on: Any) -> None:
        if not isinstance(on, bool):
            raise TypeError(f"_multi_precision: found {on!r}, expected True or False")
        if on != self._multi_precision:
            self.begin_anew(on)

    def check_unstepped(self, masters: bool) -> None:
        """Raise if it is too late to say whether there are masters, or if the optimizer keeps none."""
        if self._steps.groups or self._steps.masters:
            name = f"{type(self).__name__}._multi_precision"
            raise AttributeError(f"{name} cannot be assigned: the first step was made; {ANEW}")
        if masters and "_multi_precision" in self._ways:
            self._assign("_multi_precision", masters)

    def begin_anew(self, masters: bool) -> None:
        """Say before the first step whether narrow Parameters have masters, whatever their dtypes are now."""
        self.check_unstepped(masters)
        if self._packing is not None:
            narrow = (i for i, p in enumerate(self.parameter_list) if masters and is_narrow(p.dtype))
            self._packing.apart |= {*narrow}
        self._steps = self._steps.afresh(masters={} if masters else None)

    def _change(self, **assigned: Any) -> None:
        """Assign these attributes, unless the optimizer cannot do what they say."""
        check_outside(f"an assignment to {type(self).__name__}", "assign it outside")
        before = {name: vars(self)[name] for name in assigned}
        vars(self).update(assigned)
        try:
            self._check_options(self._resolved())
        except BaseException:
            vars(self).update(before)
            raise
        finally:  # also where an interrupt comes after it
            changes.count += 1

    def _clipped_outside(self, grads: list[Any]) -> list[Any]:
        """Return the gradients as the clips that no program can contain make them, group by group."""
        clipped = dict(zip(self.parameter_list, grads, strict=True))
        for group in self._groups:
            if group.clip is not None and group.clip.outside():
                pairs = [(p, clipped[p]) for p in group.members if clipped[p] is not None]
                found = checked_pairs(group.clip(pairs), {p for p, _ in pairs})
                clipped |= {p: found.get(p) for p in group.members}
        return [clipped[p] for p in self.parameter_list]

    def _refuse_groups(self, name: str) -> None:
        """Raise if there are parameter groups: in Paddle too their dicts decide, and nothing else."""
        if self._in_groups:
            reason = f"the dicts of the parameter groups decide, as in Paddle; {ANEW}"
            raise AttributeError(f"{type(self).__name__}.{name} cannot be assigned: {reason}")

    # ------------------------------------------------------------------ hyperparameters

    def __getattr__(self, name: str) -> Any:
        field = self._field_of(name)
        if field is None:
            words = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(f"{words}; {READ[name]}" if name in READ else words)
        return getattr(self._base.source.rule, field)

    def _field_of(self, name: str) -> str | None:
        """Return the hyperparameter of the rule that Paddle calls so."""
        base = vars(self).get("_base")
        if base is None or name.startswith("__"):
            return None
        known = {f.name for f in fields(base.source.rule)}
        asked = ALIASES.get(name, (name[1:],) if name.startswith("_") else ())
        return next((field for field in asked if field in known), None)

    def _assign(self, name: str, value: Any) -> None:
        """Replace a hyperparameter of the rule, by Paddle's name."""
        field = self._field_of(name)
        if field is None:
            return super()._assign(name, value)
        self._refuse_groups(name)
        check_outside(f"{type(self).__name__}.{name}", "assign it outside")
        old, new = self._base, lift(replace(self._base.source.rule, **{field: scalar(value)}), 0.0)
        for p in self.parameter_list:
            if p.is_real:
                check_rounded_of(new.source.rule, p.name, compute_dtype((), p.peek()))
        steps = self._steps
        if steps.groups and _state_of(old) != _state_of(new):
            reason = f"it decides which accumulators there are, and the first step was made; {ANEW}"
            raise AttributeError(f"{type(self).__name__}.{name} cannot be assigned: {reason}")
        steps = steps.having(groups=[g.under(new) for g in steps.groups])
        self._change(_base=new, _groups=[g._replace(rule=new) for g in self._groups], _steps=steps)


def _any_outside(groups: Iterable[Group]) -> bool:
    """Return whether a clip of these groups cannot be a part of a program."""
    return any(group.clip is not None and group.clip.outside() for group in groups)


def _state_of(rule: Lifted) -> Any:
    """Return which accumulators a rule has, and of which shapes."""
    own = rule.source.rule
    return tuple((name, own.slot_shape(name, (3, 2))) for name in own.slots), tuple(own.shared())
