"""Continue a recorded training from a checkpoint folder, through the readers of PaddleNLP or PaddleFormers.

    PYTHON continue_folder.py CASE_DIR FOLDER OUT.npz

CASE_DIR holds manifest.json and replay.npz of a recorded case. The folder is loaded by the library's own
functions; OUT.npz receives loaded/param/<key>, loaded/acc/<name>, loaded/master/<name>. In float32 the
recorded gradients of steps 11 to 20 follow, and param/<key>, acc/<name>; the CPU has no optimizers for
bfloat16.
"""

import json
import os
import sys

import numpy as np
import paddle

sys.path.insert(0, os.path.dirname(__file__))
from continue_paddle3 import optimizer, scheduler  # noqa: E402

try:
    from paddlenlp.trainer.unified_checkpoint import load_save_single_card as library
    from paddlenlp.transformers import PretrainedConfig, PretrainedModel
except ImportError:
    from paddleformers.trainer.unified_checkpoint import load_save_single_card as library
    from paddleformers.transformers import PretrainedConfig, PretrainedModel


class Tiny(PretrainedModel):
    config_class = PretrainedConfig
    base_model_prefix = "tiny"

    def __init__(self, sizes):
        super().__init__(PretrainedConfig())
        n, m, k = sizes
        self.encoder, self.head = paddle.nn.Linear(n, m), paddle.nn.Linear(m, k)


def plain(x):
    """An array that numpy files hold: bfloat16 as its bits."""
    return x.numpy() if hasattr(x, "numpy") else np.asarray(x)


def state(opt):
    """The accumulators and masters of an optimizer by name."""
    entries = opt.state_dict()
    masters = entries.pop("master_weights", {})
    entries.pop("LR_Scheduler", None)
    return {f"acc/{k}": plain(x) for k, x in entries.items()} | {
        f"master/{k}": plain(x) for k, x in masters.items()
    }


def main(case, folder, out):
    with open(os.path.join(case, "manifest.json")) as f:
        manifest = json.load(f)
    config, replay = manifest["config"], np.load(os.path.join(case, "replay.npz"))
    model = Tiny(config.get("sizes", [6, 5, 3]))
    narrow = {p["key"].split(".")[0] for p in manifest["params"] if p["dtype"] == "bfloat16"}
    for layer in narrow:
        getattr(model, layer).to(dtype="bfloat16")
    rate = scheduler(config["scheduler"])
    opt = optimizer(config, model.parameters(), rate)
    library.load_single_card_checkpoint(model, folder)
    found = library.load_single_card_optimizer(model, opt, folder)
    masters = found.get("master_weights", {})
    saved = {f"loaded/param/{k}": plain(p) for k, p in model.state_dict().items()}
    saved |= {f"loaded/acc/{k}": plain(x) for k, x in found.items() if hasattr(x, "numpy")}
    saved |= {f"loaded/master/{k}": plain(x) for k, x in masters.items()}
    saved |= {f"name/{k}": np.array(p.name) for k, p in model.state_dict().items()}
    if not narrow:
        found["LR_Scheduler"] = paddle.load(os.path.join(folder, "scheduler.pdparams"))
        opt.set_state_dict(found)
        for step in range(11, 21):
            for key, p in model.state_dict().items():
                p.grad = paddle.to_tensor(replay[f"grad/{step}/{key}"])
            opt.step()
            opt.clear_grad()
            if not isinstance(rate, float):
                rate.step()
        saved |= {f"param/{k}": plain(p) for k, p in model.state_dict().items()} | state(opt)
    np.savez(out, **saved)


if __name__ == "__main__":
    main(*sys.argv[1:])
