"""The methods of an optimizer that Paddle's ModelAverage has, since there it is one."""

from typing import Any

from ..hyper import instance, verify
from .arguments import check_program
from .loss import Loss
from .parameter import Parameter

LOSS = instance(Loss, "a loss of a @paddle.loss function")


class OptimizerMethods:
    """What a ModelAverage has beside `step`, `minimize` and `apply_gradients`."""

    def backward(
        self: Any,
        loss: Any,
        startup_program: None = None,
        parameters: Any = None,
        no_grad_set: Any = None,
        callbacks: Any = None,
    ) -> list[tuple[Parameter, Any]]:
        """Run the loss's backward unless it has run; the (parameter, gradient) pairs of what is averaged."""
        verify(LOSS, "loss", loss)
        check_program(startup_program)
        if not loss.ran_backward:
            loss.backward()
        return [(p, p.grad) for p in self.parameter_list if p.trainable and p.grad is not None]

    def apply_optimize(self: Any, loss: Any, startup_program: None, params_grads: Any) -> list[Any]:
        """`apply_gradients`, with the arguments of Paddle's older method."""
        check_program(startup_program)
        return self.apply_gradients(params_grads)

    def clear_grad(self: Any, set_to_zero: bool = True) -> None:
        """Zero every gradient there is, or drop them."""
        for p in self.parameter_list:
            if p.trainable:
                p.clear_grad(set_to_zero)

    clear_gradients = clear_grad
