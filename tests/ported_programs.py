# Python 3.7 runs this too, hence the older syntax.
# ruff: noqa: B905, UP008
"""Training programs in the manner of Paddle's public libraries, written once for Paddle and paddlejax.

A program takes `paddle`, which is the module `paddle` (for 1.x `paddle.fluid`) of the one or the other;
`new_net()`, which makes a net with the same first values; the batches; and `record(net, loss, rate)`, which
it calls after each step. What Paddle's row "loss = loss_of(params, x, y)" of the README changes is behind
`net.loss(...)`, and what "params = paddle.parameters(tree)" changes is behind `net.parameters()`,
`net.named_parameters()` and `net.state_dict()`. Nothing else differs.

`tests/oracle/record_ported.py` runs them with Paddle, `tests/test_ported_programs.py` here.
"""

import copy
import math
import os
import tempfile

import numpy as np

PROGRAMS = {}  # by name: (kind of net, function)
STEPS = 12


def program(kind):
    def register(function):
        PROGRAMS[function.__name__] = (kind, function)
        return function

    return register


# ------------------------------------------------------------------ nets and data

# Per kind of net its parameters: the path in the net, Paddle's name, the shape.
BLOCK = [
    ("norm.weight", "layer_norm_{k}.w_0", (6,)),
    ("norm.bias", "layer_norm_{k}.b_0", (6,)),
    ("linear.weight", "linear_{k}.w_0", (6, 6)),
    ("linear.bias", "linear_{k}.b_0", (6,)),
]
NETS = {
    # a mean of embeddings, two residual blocks of layer norm and linear, a classifier of 3 classes
    "encoder": [
        ("embed.weight", "embedding_0.w_0", (12, 6)),
        *((f"blocks.{k}.{path}", name.format(k=k), shape) for k in range(2) for path, name, shape in BLOCK),
        ("head.weight", "linear_2.w_0", (6, 3)),
        ("head.bias", "linear_2.b_0", (3,)),
    ],
    # one hidden layer of tanh
    "mlp": [
        ("fc0.weight", "linear_0.w_0", (5, 6)),
        ("fc0.bias", "linear_0.b_0", (6,)),
        ("fc1.weight", "linear_1.w_0", (6, 3)),
        ("fc1.bias", "linear_1.b_0", (3,)),
    ],
}


def first_values(kind):
    """Return {path: array} of a net before training."""
    rng = np.random.RandomState(1)
    values = {}
    for path, _, shape in NETS[kind]:
        x = rng.normal(size=shape) / (1 if len(shape) == 1 else math.sqrt(shape[0]))
        values[path] = (1 + 0.1 * x if path.endswith("norm.weight") else x).astype("float32")
    return values


def batches_of(kind):
    """Return a list of batches: token ids and classes for the encoder, inputs and targets for the mlp."""
    rng = np.random.RandomState(2)
    batches = []
    for _ in range(STEPS):
        if kind == "encoder":
            ids = rng.randint(0, 12, (8, 4)).astype("int64")
            batches.append((ids, ids[:, 0] % 3))
        else:
            x = rng.normal(size=(8, 5)).astype("float32")
            batches.append((x, np.tanh(x[:, :3] - x[:, 2:])))
    return batches


# ------------------------------------------------------------------ which parameters, and at which rate


@program("encoder")
def bert_fine_tuning(paddle, new_net, batches, record):
    """No decay for biases and norms, by name; warm-up and linear decay as a subclass of LambdaDecay."""

    class LinearDecayWithWarmup(paddle.optimizer.lr.LambdaDecay):
        def __init__(self, learning_rate, total_steps, warmup, last_epoch=-1, verbose=False):
            warmup_steps = warmup if isinstance(warmup, int) else int(math.floor(warmup * total_steps))

            def lr_lambda(current_step):
                if current_step < warmup_steps:
                    return float(current_step) / float(max(1, warmup_steps))
                return max(0.0, float(total_steps - current_step) / float(max(1, total_steps - warmup_steps)))

            super(LinearDecayWithWarmup, self).__init__(learning_rate, lr_lambda, last_epoch, verbose)

    net = new_net()
    lr_scheduler = LinearDecayWithWarmup(2e-2, len(batches), 0.25)
    decay_params = [p.name for n, p in net.named_parameters() if not any(nd in n for nd in ["bias", "norm"])]
    optimizer = paddle.optimizer.AdamW(
        learning_rate=lr_scheduler,
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-6,
        parameters=net.parameters(),
        weight_decay=0.1,
        apply_decay_param_fun=lambda x: x in decay_params,
        grad_clip=paddle.nn.ClipGradByGlobalNorm(clip_norm=0.5),
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        rate = optimizer.get_lr()
        optimizer.step()
        lr_scheduler.step()
        optimizer.clear_grad()
        record(net, loss, rate)


@program("encoder")
def layer_wise_decay(paddle, new_net, batches, record):
    """Vision transformers: the lower a layer, the smaller its rate; linear warm-up before a cosine."""
    net = new_net()

    def layer_of(name):
        if name.startswith("embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 3

    for name, p in net.named_parameters():
        p.optimize_attr["learning_rate"] *= 0.65 ** (3 - layer_of(name))
        if len(p.shape) == 1 or name.endswith(".bias"):
            p.need_clip = False
    scheduler = paddle.optimizer.lr.LinearWarmup(
        learning_rate=paddle.optimizer.lr.CosineAnnealingDecay(0.05, T_max=len(batches), eta_min=1e-4),
        warmup_steps=4,
        start_lr=1e-3,
        end_lr=0.05,
    )
    optimizer = paddle.optimizer.AdamW(
        scheduler, parameters=net.parameters(), weight_decay=0.05, grad_clip=paddle.nn.ClipGradByNorm(0.3)
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        record(net, loss, optimizer.get_lr())
        scheduler.step()


@program("encoder")
def lars_large_batch(paddle, new_net, batches, record):
    """LARS without decay for biases and norms, by parts of their names; polynomial decay."""
    net = new_net()
    scheduler = paddle.optimizer.lr.PolynomialDecay(1.0, decay_steps=len(batches), end_lr=0.1, power=2)
    optimizer = paddle.incubate.optimizer.LarsMomentumOptimizer(
        learning_rate=scheduler,
        momentum=0.9,
        lars_coeff=0.01,
        lars_weight_decay=0.02,
        parameter_list=net.parameters(),
        exclude_from_weight_decay=["layer_norm", ".b_0"],
        epsilon=1e-8,
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        optimizer.minimize(loss)
        optimizer.clear_gradients()
        record(net, loss, optimizer.get_lr())
        scheduler.step()


@program("encoder")
def lamb_pretraining(paddle, new_net, batches, record):
    """LAMB with a function that keeps biases and norms out of the decay, as BERT's pretraining has it."""
    net = new_net()

    def exclude_fn(param):
        return param.name.find("layer_norm") > -1 or any(
            param.name.endswith(suffix) for suffix in ["_bias", "_b", ".b_0"]
        )

    optimizer = paddle.optimizer.Lamb(
        learning_rate=0.02,
        lamb_weight_decay=0.1,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-6,
        parameters=net.parameters(),
        grad_clip=paddle.nn.ClipGradByGlobalNorm(1.0),
        exclude_from_weight_decay_fn=exclude_fn,
    )
    for step, batch in enumerate(batches):
        if step == len(batches) // 2:
            optimizer.set_lr(optimizer.get_lr() * 0.1)
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        record(net, loss, optimizer.get_lr())


@program("encoder")
def detection_groups(paddle, new_net, batches, record):
    """Groups: a backbone at a tenth of the rate, norms without decay; steps after a linear warm-up."""
    net = new_net()
    backbone, norms, head = [], [], []
    for name, p in net.named_parameters():
        (norms if "norm" in name else head if name.startswith("head") else backbone).append(p)
    scheduler = paddle.optimizer.lr.LinearWarmup(
        paddle.optimizer.lr.PiecewiseDecay(boundaries=[6, 9], values=[0.1, 0.05, 0.01]), 3, 0.02, 0.1
    )
    optimizer = paddle.optimizer.Momentum(
        learning_rate=scheduler,
        momentum=0.9,
        parameters=[
            {"params": backbone, "learning_rate": 0.1},
            {"params": norms, "weight_decay": 0.0},
            {"params": head, "grad_clip": paddle.nn.ClipGradByNorm(0.5)},
        ],
        weight_decay=paddle.regularizer.L2Decay(0.01),
        use_nesterov=True,
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        record(net, loss, optimizer.get_lr())
        scheduler.step()


@program("encoder")
def freeze_then_tune(paddle, new_net, batches, record):
    """First the head alone; then all, with decays of their own; two losses are weighed and summed."""
    net = new_net()
    for name, p in net.named_parameters():
        if not name.startswith("head"):
            p.stop_gradient = True
        if name == "embed.weight":
            p.regularizer = paddle.regularizer.L2Decay(0.2)
    optimizer = paddle.optimizer.Adam(
        0.02, parameters=net.parameters(), weight_decay=paddle.regularizer.L1Decay(0.001)
    )
    for step, batch in enumerate(batches):
        if step == 4:
            for p in net.parameters():
                p.stop_gradient = False
        main = net.loss(*batch)
        other = net.loss(*batches[step - 1])
        loss = 0.75 * main + other / 4
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        record(net, loss, optimizer.get_lr())


# ------------------------------------------------------------------ loops


@program("mlp")
def custom_scheduler(paddle, new_net, batches, record):
    """A scheduler of one's own: warm-up, then a cosine, which stands in an optimizer and is saved."""

    class WarmupCosine(paddle.optimizer.lr.LRScheduler):
        def __init__(self, learning_rate, warmup, total, min_lr=0.0, last_epoch=-1, verbose=False):
            self.warmup = warmup
            self.total = total
            self.min_lr = min_lr
            super(WarmupCosine, self).__init__(learning_rate, last_epoch, verbose)

        def get_lr(self):
            if self.last_epoch < self.warmup:
                return self.base_lr * (self.last_epoch + 1) / self.warmup
            done = (self.last_epoch - self.warmup) / (self.total - self.warmup)
            return self.min_lr + (self.base_lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * done))

    net = new_net()
    scheduler = WarmupCosine(0.3, 4, len(batches), min_lr=0.01)
    optimizer = paddle.optimizer.Adagrad(
        learning_rate=scheduler,
        parameters=net.parameters(),
        weight_decay=0.01,
        grad_clip=paddle.nn.ClipGradByValue(0.2),
    )
    for step, batch in enumerate(batches):
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        record(net, loss, scheduler.last_lr)
        scheduler.step()
        if step == 5:
            saved = scheduler.state_dict()
            scheduler = WarmupCosine(0.3, 4, len(batches), min_lr=0.01)
            scheduler.set_state_dict(saved)
            optimizer.set_lr_scheduler(scheduler)


@program("mlp")
def accumulation(paddle, new_net, batches, record):
    """Four small batches make a step; the running loss is printed."""
    net = new_net()
    scheduler = paddle.optimizer.lr.ExponentialDecay(0.05, gamma=0.8)
    optimizer = paddle.optimizer.NAdam(scheduler, parameters=net.parameters(), weight_decay=0.01)
    accumulate_steps, total = 4, 0.0
    for step, batch in enumerate(batches):
        loss = net.loss(*batch)
        total += float(loss)
        assert f"{loss:.3f}" == f"{float(loss):.3f}"
        loss = loss / accumulate_steps
        loss.backward()
        if (step + 1) % accumulate_steps == 0:
            optimizer.step()
            optimizer.clear_grad()
            scheduler.step()
        record(net, total / (step + 1), optimizer.get_lr())


@program("mlp")
def amp(paddle, new_net, batches, record):
    """A GradScaler, gradients clipped by hand after unscale_, and a batch with an infinite target."""
    net = new_net()
    optimizer = paddle.optimizer.AdamW(0.03, parameters=net.parameters(), weight_decay=0.1)
    scaler = paddle.amp.GradScaler(
        enable=True, init_loss_scaling=1024.0, incr_every_n_steps=3, decr_every_n_nan_or_inf=1
    )
    for step, (x, y) in enumerate(batches):
        if step == 5:
            y = y.copy()
            y[2, 1] = np.inf
        with paddle.amp.auto_cast(enable=False):
            loss = net.loss(x, y)
        scaled = scaler.scale(loss)
        scaled.backward()
        scaler.unscale_(optimizer)
        paddle.nn.utils.clip_grad_norm_(net.parameters(), max_norm=0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.clear_grad()
        record(net, loss, scaler.state_dict()["scale"][0])


@program("mlp")
def amp_minimize(paddle, new_net, batches, record):
    """The short form: scaler.minimize after the backward of the scaled loss."""
    net = new_net()
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, net.parameters(), weight_decay=1e-3)
    scaler = paddle.amp.GradScaler(init_loss_scaling=2.0**15, incr_every_n_steps=4)
    for batch in batches:
        loss = net.loss(*batch)
        scaled = scaler.scale(loss)
        scaled.backward()
        scaler.minimize(optimizer, scaled)
        optimizer.clear_grad(set_to_zero=False)
        record(net, loss, scaler.state_dict()["scale"][0])


@program("mlp")
def plateau(paddle, new_net, batches, record):
    """The rate falls where the loss of the epoch has stopped to fall."""
    net = new_net()
    scheduler = paddle.optimizer.lr.ReduceOnPlateau(
        0.02, mode="min", factor=0.5, patience=1, threshold=1e-2, cooldown=1
    )
    optimizer = paddle.optimizer.RMSProp(
        learning_rate=scheduler,
        rho=0.9,
        epsilon=1e-4,
        momentum=0.5,
        centered=True,
        parameters=net.parameters(),
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        scheduler.step(loss)
        record(net, loss, optimizer.get_lr())


@program("mlp")
def resume(paddle, new_net, batches, record):
    """Half of a training, saved into files, goes on in a new net with a new optimizer and scheduler."""

    def start():
        net = new_net()
        scheduler = paddle.optimizer.lr.NoamDecay(d_model=16, warmup_steps=5, learning_rate=0.5)
        clip = paddle.nn.ClipGradByGlobalNorm(1.0)
        optimizer = paddle.optimizer.Adam(
            learning_rate=scheduler, parameters=net.parameters(), weight_decay=0.01, grad_clip=clip
        )
        return net, scheduler, optimizer

    def train(net, scheduler, optimizer, batches):
        for batch in batches:
            loss = net.loss(*batch)
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
            record(net, loss, optimizer.get_lr())
            scheduler.step()

    half = len(batches) // 2
    net, scheduler, optimizer = start()
    train(net, scheduler, optimizer, batches[:half])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "epoch_0")
        paddle.save(net.state_dict(), path + ".pdparams")
        paddle.save(optimizer.state_dict(), path + ".pdopt")
        net, scheduler, optimizer = start()
        net.set_state_dict(paddle.load(path + ".pdparams"))
        optimizer.set_state_dict(paddle.load(path + ".pdopt"))
    train(net, scheduler, optimizer, batches[half:])


@program("encoder")
def two_optimizers(paddle, new_net, batches, record):
    """The embedding has an optimizer of its own; one backward serves both."""
    net = new_net()
    wide = [p for name, p in net.named_parameters() if name.startswith("embed")]
    deep = [p for name, p in net.named_parameters() if not name.startswith("embed")]
    scheduler = paddle.optimizer.lr.MultiStepDecay(learning_rate=0.1, milestones=[4, 8], gamma=0.3)
    optimizers = [
        paddle.optimizer.Adagrad(0.2, parameters=wide, initial_accumulator_value=0.1),
        paddle.optimizer.Momentum(scheduler, 0.8, deep, weight_decay=paddle.regularizer.L1Decay(1e-3)),
    ]
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.clear_grad()
        record(net, loss, optimizers[1].get_lr())
        scheduler.step()


# ------------------------------------------------------------------ averages


@program("mlp")
def shadow_average(paddle, new_net, batches, record):
    """An exponential moving average by hand over NumPy arrays, applied and taken back for evaluation."""

    class ExponentialMovingAverage:
        def __init__(self, model, decay):
            self._model, self._decay, self._step = model, decay, 0
            self._shadow, self._backup = {}, {}
            for name, param in model.named_parameters():
                if param.stop_gradient is False:
                    self._shadow[name] = param.numpy().copy()

        def update(self):
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            for name, param in self._model.named_parameters():
                new_val = np.array(param.numpy().copy())
                self._shadow[name] = (decay * self._shadow[name] + (1 - decay) * new_val).astype("float32")
            self._step += 1

        def apply(self):
            for name, param in self._model.named_parameters():
                self._backup[name] = np.array(param.numpy().copy())
                param.set_value(np.array(self._shadow[name]))

        def restore(self):
            for name, param in self._model.named_parameters():
                param.set_value(self._backup[name])
            self._backup = {}

    net = new_net()
    ema = ExponentialMovingAverage(net, 0.9)
    optimizer = paddle.optimizer.Adamax(0.05, parameters=net.parameters())
    for step, batch in enumerate(batches):
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        ema.update()
        if step % 3 == 2:
            ema.apply()
            with paddle.no_grad():
                record(net, net.loss(*batch), optimizer.get_lr())
            ema.restore()
        else:
            record(net, loss, optimizer.get_lr())


@program("mlp")
def state_dict_average(paddle, new_net, batches, record):
    """The same over state_dict with tensors, as in detection: the average becomes the net at the end."""

    class ModelEMA:
        def __init__(self, model, decay=0.8):
            self.step = 0
            self.decay = decay
            self.state_dict = {k: v.detach().clone() for k, v in model.state_dict().items()}

        @paddle.no_grad()
        def update(self, model):
            decay = self.decay * (1 - math.exp(-(self.step + 1) / 5))
            model_dict = model.state_dict()
            for k, v in self.state_dict.items():
                self.state_dict[k] = decay * v + (1 - decay) * model_dict[k]
            self.step += 1

        def apply(self):
            return {k: v / 1.0 for k, v in self.state_dict.items()}

    net = new_net()
    ema = ModelEMA(net)
    optimizer = paddle.optimizer.Momentum(0.05, parameters=net.parameters(), use_nesterov=True)
    for step, batch in enumerate(batches):
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        ema.update(net)
        if step == len(batches) - 1:
            net.set_state_dict(ema.apply())
        record(net, loss, optimizer.get_lr())


@program("mlp")
def slow_weights(paddle, new_net, batches, record):
    """LookAhead around an optimizer, and the average of the last parameters for evaluation."""
    net = new_net()
    inner = paddle.optimizer.SGD(0.1, parameters=net.parameters(), weight_decay=0.01)
    optimizer = paddle.incubate.LookAhead(inner, alpha=0.5, k=3)
    average = paddle.incubate.ModelAverage(
        0.5, parameters=net.parameters(), min_average_window=2, max_average_window=5
    )
    for batch in batches:
        loss = net.loss(*batch)
        loss.backward()
        optimizer.step()
        average.step()
        optimizer.clear_grad()
        with average.apply(need_restore=True):
            record(net, loss, inner.get_lr())


@program("mlp")
def target_network(paddle, new_net, batches, record):
    """Reinforcement learning: a second net follows softly, and its output is a constant in the loss."""
    net = new_net()
    target = copy.deepcopy(net)
    for p in target.parameters():
        p.stop_gradient = True
    optimizer = paddle.optimizer.RMSProp(0.01, parameters=net.parameters())
    tau = 0.25
    for x, y in batches:
        loss = net.loss_against(target, x, y)
        optimizer.clear_grad()
        loss.backward()
        optimizer.step()
        for param, target_param in zip(net.parameters(), target.parameters()):
            target_param.set_value(tau * param + (1 - tau) * target_param)
        record(target, loss, optimizer.get_lr())


# ------------------------------------------------------------------ 1.x, fluid.dygraph


@program("mlp")
def fluid_adam(fluid, new_net, batches, record):
    """Piecewise rates, arguments by position, a decay and a clip."""
    with fluid.dygraph.guard():
        net = new_net()
        optimizer = fluid.optimizer.AdamOptimizer(
            fluid.dygraph.PiecewiseDecay([3, 7], [0.05, 0.02, 0.01], 0),
            0.9,
            0.99,
            1e-6,
            net.parameters(),
            fluid.regularizer.L2Decay(0.01),
            fluid.clip.GradientClipByGlobalNorm(0.5),
        )
        for x, y in batches:
            loss = net.loss(fluid.dygraph.to_variable(x), fluid.dygraph.to_variable(y))
            loss.backward()
            optimizer.minimize(loss)
            net.clear_gradients()
            record(net, loss, optimizer.current_step_lr())


@program("mlp")
def fluid_momentum(fluid, new_net, batches, record):
    """Half of the training is saved, amid the warm-up, and goes on from the files."""

    def start():
        net = new_net()
        rate = fluid.dygraph.LinearLrWarmup(0.1, 8, 0.0, 0.1)
        return net, fluid.optimizer.Momentum(rate, 0.9, net.parameters(), True)

    def train(net, optimizer, batches):
        for x, y in batches:
            loss = net.loss(fluid.dygraph.to_variable(x), fluid.dygraph.to_variable(y))
            loss.backward()
            optimizer.minimize(loss)
            optimizer.clear_gradients()
            record(net, loss, optimizer.current_step_lr())

    with fluid.dygraph.guard():
        half = len(batches) // 2
        net, optimizer = start()
        train(net, optimizer, batches[:half])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model")
            fluid.save_dygraph(net.state_dict(), path)
            fluid.save_dygraph(optimizer.state_dict(), path)
            net, optimizer = start()
            params, state = fluid.load_dygraph(path)
            net.set_dict(params)
            optimizer.set_dict(state)
        train(net, optimizer, batches[half:])


@program("mlp")
def fluid_lamb(fluid, new_net, batches, record):
    """LAMB without decay for biases, under Noam's rate; nobody clears gradients, as minimize spends them."""
    with fluid.dygraph.guard():
        net = new_net()
        optimizer = fluid.optimizer.LambOptimizer(
            learning_rate=fluid.dygraph.NoamDecay(1 / 0.01, 5),
            lamb_weight_decay=0.05,
            parameter_list=net.parameters(),
            exclude_from_weight_decay_fn=lambda param: param.name.endswith(".b_0"),
        )
        for batch in batches:
            loss = net.loss(*map(fluid.dygraph.to_variable, batch))
            loss.backward()
            optimizer.minimize(loss)
            record(net, loss, optimizer.current_step_lr())


@program("mlp")
def fluid_lars(fluid, new_net, batches, record):
    """LARS with a clip; a warm-up, then steps of a cosine."""
    with fluid.dygraph.guard():
        net = new_net()
        cosine = fluid.dygraph.CosineDecay(1.0, step_each_epoch=4, epochs=3)
        rate = fluid.dygraph.LinearLrWarmup(cosine, warmup_steps=3, start_lr=0.0, end_lr=1.0)
        optimizer = fluid.optimizer.LarsMomentum(
            rate, 0.9, 0.01, 0.001, net.parameters(), grad_clip=fluid.clip.GradientClipByValue(0.3)
        )
        for batch in batches:
            loss = net.loss(*map(fluid.dygraph.to_variable, batch))
            loss.backward()
            optimizer.minimize(loss)
            optimizer.clear_gradients()
            record(net, loss, optimizer.current_step_lr())


@program("mlp")
def fluid_sgd(fluid, new_net, batches, record):
    """Rates of single parameters, one of which is frozen for a while; the rate decays by a function."""
    with fluid.dygraph.guard():
        net = new_net()
        weight, bias = net.parameters()[:2]
        bias.optimize_attr["learning_rate"] = 2.0
        weight.regularizer = fluid.regularizer.L1Decay(0.01)
        rate = fluid.layers.exponential_decay(0.2, 4, 0.5, True)
        optimizer = fluid.optimizer.SGD(rate, net.parameters())
        for step, batch in enumerate(batches):
            weight.trainable = not 3 <= step < 6
            loss = net.loss(*map(fluid.dygraph.to_variable, batch))
            loss.backward()
            optimizer.minimize(loss)
            net.clear_gradients()
            record(net, loss, optimizer.current_step_lr())
