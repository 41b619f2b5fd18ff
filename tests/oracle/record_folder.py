"""Record examples/data/paddlenlp: a training in the real Paddle, saved as a folder by PaddleNLP 3.0.0b4.

    PYTHON record_folder.py OUT_DIR

A network of two layers learns noisy points, eight at a time, under AdamW and a cosine schedule. OUT_DIR
receives checkpoint-60, written by PaddleNLP's own functions after 60 steps, and training.json with all 100
losses: each that of all points, after the step.
"""

import json
import os
import sys

import numpy as np
import paddle
import paddlenlp
from paddlenlp.trainer.unified_checkpoint import load_save_single_card as library
from paddlenlp.transformers import PretrainedConfig, PretrainedModel

SEED, DONE, STEPS = 7, 60, 100


class Tiny(PretrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "tiny"

    def __init__(self):
        super().__init__(PretrainedConfig())
        self.hidden, self.output = paddle.nn.Linear(6, 16), paddle.nn.Linear(16, 3)

    def forward(self, x):
        return self.output(paddle.tanh(self.hidden(x)))


def main(out):
    paddle.seed(SEED)
    rng = np.random.RandomState(SEED)
    x = rng.randn(256, 6)
    y = np.tanh(x @ rng.randn(6, 3)) + 0.3 * rng.randn(256, 3)
    order = rng.randint(0, len(x), (STEPS, 8))
    x, y = (paddle.to_tensor(array.astype(np.float32)) for array in (x, y))
    model = Tiny()
    rate = paddle.optimizer.lr.CosineAnnealingDecay(0.1, STEPS, 0.001)
    opt = paddle.optimizer.AdamW(rate, parameters=model.parameters(), weight_decay=0.01)
    losses = []
    for step, batch in enumerate(order, 1):
        loss = ((model(x[batch]) - y[batch]) ** 2).mean()
        loss.backward()
        opt.step()
        opt.clear_grad()
        rate.step()
        losses.append(float(((model(x) - y) ** 2).mean()))
        if step == DONE:
            folder = os.path.join(out, f"checkpoint-{DONE}")
            library.save_single_card_checkpoint(model, folder)
            library.save_single_card_optimizer(model, opt, folder)
            paddle.save(rate.state_dict(), os.path.join(folder, "scheduler.pdparams"))
    about = {"paddle": paddle.__version__, "paddlenlp": paddlenlp.__version__, "seed": SEED, "losses": losses}
    with open(os.path.join(out, "training.json"), "w") as f:
        json.dump(about, f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
