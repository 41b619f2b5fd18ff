"""torch and PaddlePaddle; each is imported only in its own process."""

import os
import time
from typing import Any


def paddles(paddle: Any, optimizer: str, params: list[Any], rate: float, **more: Any) -> Any:
    """The same call for PaddlePaddle's classes and for paddlejax's."""
    o, common = paddle.optimizer, {"learning_rate": rate, "parameters": params, **more}
    lars = {"learning_rate": rate, "momentum": 0.9, "parameter_list": params, **more}
    makers = {
        "sgd": lambda: o.SGD(**common),
        "momentum": lambda: o.Momentum(momentum=0.9, **common),
        "adam": lambda: o.Adam(**common),
        "adamw": lambda: o.AdamW(weight_decay=0.01, **common),
        "rmsprop": lambda: o.RMSProp(rho=0.95, momentum=0.9, **common),
        "lamb": lambda: o.Lamb(**common),
        "lars": lambda: paddle.incubate.optimizer.LarsMomentumOptimizer(**lars),
    }
    return makers[optimizer]()


class Eager:
    optimizer: Any

    def start(self) -> dict[str, Any]:
        begin = time.perf_counter()
        self.step()
        return {"first": time.perf_counter() - begin}

    def step(self) -> None:
        self.optimizer.step()

    def wait(self) -> None:
        pass  # on CPU both return when the work is done

    def compiles(self) -> int:
        return 0


class Torch(Eager):
    def __init__(self, optimizer: str, shapes: list[tuple[int, ...]], rate: float, **form: bool):
        import torch

        if os.environ.get("BENCHMARK_DEVICE") == "gpu":
            torch.set_default_device("cuda")
            self.wait = torch.cuda.synchronize

        makers = {
            "sgd": (torch.optim.SGD, {}),
            "momentum": (torch.optim.SGD, {"momentum": 0.9}),
            "adam": (torch.optim.Adam, {}),
            "adamw": (torch.optim.AdamW, {"weight_decay": 0.01}),
            "rmsprop": (torch.optim.RMSprop, {"alpha": 0.95, "momentum": 0.9}),
        }
        if optimizer not in makers or optimizer == "rmsprop" and "fused" in form:
            raise NotImplementedError(f"torch has no {' '.join(form)} {optimizer}")
        self.params = [torch.full(shape, 0.02).requires_grad_() for shape in shapes]
        for p in self.params:
            p.grad = torch.full_like(p, 0.01)
        make, arguments = makers[optimizer]
        self.optimizer = make(self.params, lr=rate, **arguments, **form)

    def set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


class TorchMasters(Torch):
    """As training loops do it: the optimizer owns float32 copies, and the parameters are cast from them."""

    def __init__(self, *arguments: Any, **form: bool):
        import torch

        super().__init__(*arguments, **form)
        self.torch = torch
        self.narrow = [p.detach().to(torch.bfloat16) for p in self.params]
        self.grads = [torch.full_like(p, 0.01) for p in self.narrow]

    def step(self) -> None:
        with self.torch.no_grad():
            self.torch._foreach_copy_([p.grad for p in self.params], self.grads)
            self.optimizer.step()
            self.torch._foreach_copy_(self.narrow, self.params)


class Paddle(Eager):
    def __init__(self, optimizer: str, shapes: list[tuple[int, ...]], rate: float):
        import paddle

        paddle.set_device("cpu")
        start = paddle.nn.initializer.Constant(0.02)
        self.params = [
            paddle.create_parameter(list(shape), "float32", default_initializer=start) for shape in shapes
        ]
        for p in self.params:
            p.grad = paddle.full(p.shape, 0.01)
        self.optimizer = paddles(paddle, optimizer, self.params, rate)

    def set_rate(self, rate: float) -> None:
        self.optimizer.set_lr(rate)
