"""Write hostile and damaged checkpoint files for loader security tests.

Usage:  python record_bad_files.py [OUT_DIR]     (plain numpy, no Paddle needed)

NEVER open the results with an unrestricted unpickler.  Every "evil_*" file would
execute "echo pwned > pwned.txt" in the current directory when loaded naively;
a correct loader raises and leaves no pwned.txt behind.
"""

import json
import os
import pickle
import sys

import numpy as np

COMMAND = "echo pwned > pwned.txt"


class Call:
    """Pickles as a call of the named global; nothing is imported here.

    With name None, module is itself a Call whose result is called."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args


class Writer(pickle._Pickler):
    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Call):
            return super().save(obj, save_persistent_id)
        if obj.name is None:
            self.save(obj.module)
        elif self.proto >= 4:
            super().save(obj.module)
            super().save(obj.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        super().save(tuple(obj.args))
        self.write(pickle.REDUCE)


def dump(path, obj, protocol=2):
    with open(path, "wb") as f:
        Writer(f, protocol).dump(obj)


def good_state():
    state = {
        "linear_0.w_0_moment1_0": np.arange(6, dtype="float32").reshape(2, 3),
        "linear_0.w_0_beta1_pow_acc_0": np.array([0.81], "float32"),
        "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.05},
    }
    state["StructuredToParameterName@@"] = {k: k for k in state if k != "LR_Scheduler"}
    return state


def main(out):
    os.makedirs(out, exist_ok=True)
    p = lambda n: os.path.join(out, n)  # noqa: E731
    files = {}

    def evil(name, obj, protocol, why):
        dump(p(name), obj, protocol)
        files[name] = why

    code = f"__import__('os').system({COMMAND!r})"
    evil("evil_os_system.pdopt", Call("os", "system", COMMAND), 2, "whole file is a call of os.system")
    evil(
        "evil_posix_nested.pdopt",
        dict(good_state(), extra=Call("posix", "system", COMMAND)),
        4,
        "valid optimizer state plus one value calling posix.system",
    )
    evil(
        "evil_subprocess.pdparams",
        dict(good_state(), extra=[1, {"x": Call("subprocess", "getoutput", COMMAND)}]),
        2,
        "deeply nested call of subprocess.getoutput",
    )
    evil(
        "evil_eval.pdopt",
        dict(good_state(), extra=Call("builtins", "eval", code)),
        4,
        "builtins.eval, the global Paddle itself emits for DenseTensor values",
    )
    evil(
        "evil_py2_eval.pdopt",
        dict(good_state(), extra=Call("__builtin__", "eval", code)),
        2,
        "the same under its protocol-2 name",
    )
    evil(
        "evil_numpy_prefix.pdopt",
        dict(good_state(), extra=Call("numpy.testing._private.utils", "runstring", code, {})),
        2,
        "defeats an allow-list that accepts every numpy.* module",
    )
    evil(
        "evil_dotted_name.pdopt",
        dict(good_state(), extra=Call("numpy", "lib._npyio_impl.os.system", COMMAND)),
        4,
        "dotted attribute path below an allowed module name",
    )
    found = Call("builtins", "getattr", Call("importlib", "import_module", "os"), "system")
    evil(
        "evil_getattr_chain.pdopt",
        dict(good_state(), extra=Call(found, None, COMMAND)),
        2,
        "importlib.import_module + getattr, then a call of the result",
    )
    evil(
        "evil_object_array.pdopt",
        dict(
            good_state(),
            extra=Call("numpy.core.multiarray", "_reconstruct", Call("os", "system", COMMAND), (0,), b"b"),
        ),
        2,
        "hostile argument inside an allowed numpy call",
    )
    evil("evil_key.pdopt", {Call("os", "system", COMMAND): 1}, 2, "call in a dict key position")

    whole = pickle.dumps(good_state(), 2)
    for name, data, why in (
        ("bad_truncated.pdopt", whole[: len(whole) * 2 // 3], "cut in the middle"),
        ("bad_truncated_last_byte.pdopt", whole[:-1], "STOP opcode missing"),
        ("bad_empty.pdopt", b"", "zero bytes"),
        ("bad_not_pickle.pdopt", b"this is not a checkpoint\n" * 4, "text file"),
    ):
        with open(p(name), "wb") as f:
            f.write(data)
        files[name] = why

    # An ndarray whose declared shape needs far more bytes than the file holds.
    arr = np.arange(4, dtype="float32")
    rec, args, state = arr.__reduce__()
    huge = {"w": HugeArray(rec, args, (state[0], (1 << 40,), *state[2:]))}
    with open(p("bad_huge_shape.pdopt"), "wb") as f:
        pickle.dump(huge, f, 2)
    files["bad_huge_shape.pdopt"] = "declared shape 2**40, 16 bytes of data"
    with open(p("bad_object_dtype.pdopt"), "wb") as f:
        pickle.dump({"w": np.array([None, "x"], dtype=object)}, f, 2)
    files["bad_object_dtype.pdopt"] = "object array: only numeric and bool dtypes are acceptable"
    with open(p("bad_not_a_dict.pdopt"), "wb") as f:
        pickle.dump([1, 2, 3], f, 2)
    files["bad_not_a_dict.pdopt"] = "valid pickle of a list"
    with open(p("bad_missing_slice.pdparams"), "wb") as f:
        pickle.dump(
            {
                "w@@.0": arr,
                "UnpackBigParamInfor@@": {"w": {"OriginShape": (8,), "slices": ["w@@.0", "w@@.1"]}},
            },
            f,
            2,
        )
    files["bad_missing_slice.pdparams"] = "slice table names a missing part"
    with open(p("ok_sliced.pdparams"), "wb") as f:
        pickle.dump(
            {
                "w@@.0": arr,
                "w@@.1": arr[:2] + 4,
                "b": arr[:1],
                "StructuredToParameterName@@": {"w": "linear_0.w_0", "b": "linear_0.b_0"},
                "UnpackBigParamInfor@@": {"w": {"OriginShape": (2, 3), "slices": ["w@@.0", "w@@.1"]}},
            },
            f,
            2,
        )
    files["ok_sliced.pdparams"] = "valid: w must load as arange(6).reshape(2, 3)"
    with open(p("manifest.json"), "w") as f:
        json.dump(files, f, indent=1)
    print(len(files), "files")


class HugeArray:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    main(sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "..", "golden", "checkpoints", "hostile"))
