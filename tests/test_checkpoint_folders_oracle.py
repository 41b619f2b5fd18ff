"""Folders of ours, read and gone on from by the real PaddleNLP and PaddleFormers.

PADDLEJAX_ORACLE_FOLDERS names Python interpreters, with ":" between them, that have paddlepaddle 3.3.1 and
paddlenlp 3.0.0b4 (with aistudio-sdk 0.2.6, pyarrow 19 and datasets 3) or paddleformers 1.2.0.
"""

import os
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import TOLERANCE, error
from test_checkpoint_folders import CASES, FOLDER, written

SCRIPT = Path(__file__).parent / "oracle" / "continue_folder.py"
PYTHONS = [p for p in os.environ.get("PADDLEJAX_ORACLE_FOLDERS", "").split(os.pathsep) if p]


@pytest.mark.slow  # needs a real Paddle
@pytest.mark.skipif(not PYTHONS, reason="PADDLEJAX_ORACLE_FOLDERS names no Python with PaddleNLP")
@pytest.mark.parametrize("name", ["dist_adamw", "uc_adamw_bf16_formers", "flex_adamw_bf16"])
def test_the_real_readers_take_our_folder_and_go_on(tmp_path, name):
    """What is recorded in any layout, written by us as a Unified Checkpoint."""
    case = CASES[name]
    written(case, tmp_path / "x")
    for python in PYTHONS:
        command = [python, SCRIPT, FOLDER / name, tmp_path / "x", tmp_path / "out.npz"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr[-3000:]
        with np.load(tmp_path / "out.npz") as npz:
            found = {k: x.view(jnp.bfloat16) if x.dtype == np.uint16 else x for k, x in npz.items()}
        tensor = {key: str(found[f"name/{key}"]) for key in case.names}
        narrow = {k for k, x in case.of("param/10").items() if x.dtype == jnp.bfloat16}
        for key, x in case.of("param/10").items():
            assert np.array_equal(found[f"loaded/param/{key}"], x)
        for key, x in case.of("master/10").items():
            assert np.array_equal(found[f"loaded/master/{tensor[key]}"], x)
        for key, x in case.of("acc/10").items():
            owner, accumulator = key.split("/")
            owner = tensor[owner] + ("_fp32_master_0" if owner in narrow else "")
            assert np.array_equal(found[f"loaded/acc/{owner}_{accumulator}"], x)
        for key, x in ({} if narrow else case.of("param/20")).items():
            assert error(found[f"param/{key}"], x) <= TOLERANCE
