"""Steps that measure themselves, and steps that are waited for."""

from typing import Any

from ..info import Info


class Measured:
    """The part of an optimizer that says what its last step did, and whether it waits for one."""

    _measures = False
    _safe: bool = False  # see `set_safe`
    _info: Info | None = None
    _steps: Any

    def set_safe(self, enabled: bool = True) -> None:
        """Wait for every program of a step from now on, or no longer. Paddle has no such method.

        Then whatever fails while it runs is raised by the call that ran it, and what fails before the update
        leaves everything as it was. Without it that is so for a loss, a rule or a clip with a callback, and
        for what would not find the memory; see `help(paddlejax.optimizer)`. `minimize` is two programs then.

        >>> opt = optimizer.SGD(0.5, parameters={"w": jnp.array([3.0, 4.0])})
        >>> opt.set_safe()
        >>> _ = opt.minimize(lambda p: (p["w"] ** 2).sum())
        """
        if not isinstance(enabled, bool):
            raise TypeError(f"set_safe's enabled: found {enabled!r}, expected True or False")
        self._safe = enabled

    def set_info(self, enabled: bool = True) -> None:
        """Measure every step from now on, for `get_info`, or no longer; the numbers of a step stay the same.

        The next step is compiled anew. Paddle has no such method.
        """
        if not isinstance(enabled, bool):
            raise TypeError(f"set_info's enabled: found {enabled!r}, expected True or False")
        if enabled != self._measures:
            self._steps = self._steps.afresh()
        self._measures, self._info = enabled, None

    def get_info(self) -> Info:
        """What the last step did, an `Info`: norms over the parameters that it reached, and the rate.

        `clip_factor` is None without grad_clip, `trust_ratios` {name: ()} for Lamb and LARS, else None.
        Steps that a GradScaler leaves out do not get here: `skipped` is None.

        >>> opt = optimizer.SGD(0.5, parameters={"w": jnp.array([3.0, 4.0])})
        >>> opt.set_info()
        >>> _ = opt.minimize(lambda p: (p["w"] ** 2).sum())
        >>> print(opt.get_info().gradient_norm, opt.get_info().update_norm, opt.get_info().learning_rate)
        10.0 5.0 0.5
        """
        if self._info is None:
            raise RuntimeError("get_info: found no measured step; call set_info() before the step")
        return self._info
