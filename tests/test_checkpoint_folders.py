"""The checkpoint folders of large trainings, written by the real libraries: read, refused, gone on from."""

import json
import pickle
import shutil
import struct
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_cases import END, HALF, TOLERANCE, Case, error
from safetensors.numpy import save_file

import paddlejax as paddle
from paddlejax.__main__ import main
from paddlejax.checkpoint import (
    CheckpointError,
    folder_writer,
    inspect,
    load,
    load_npz,
    load_optimizer,
    load_parameters,
    save_checkpoint,
)
from paddlejax.checkpoint.folders import progress as bars
from paddlejax.checkpoint.folders.distcp import data
from paddlejax.checkpoint.folders.shards import Mapped, header
from paddlejax.master import MasterState
from paddlejax.rates import RuleState

FOLDER = Path(__file__).parent / "golden" / "large_checkpoints"
HOSTILE = FOLDER / "hostile"


class Large(Case):
    """One recorded training that saved a folder."""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name / self.manifest["saved_in"]["10"]

    @cached_property
    def arrays(self):
        with np.load(FOLDER / self.name / "replay.npz") as npz:
            return {k: x.view(jnp.bfloat16) if x.dtype == np.uint16 else x for k, x in npz.items()}


CASES = {
    path.parent.name: Large(path.parent.name, json.loads(path.read_text()))
    for path in sorted(FOLDER.glob("*/manifest.json"))
    if path.parent.name != "hostile"
}
SLICES, QUANTIZED = "uc_adamw_bf16_unmerged_nlp", "uc_adamw_quant_o1_nlp"
EXACT = [case for name, case in CASES.items() if name not in (SLICES, QUANTIZED)]


def empty(case):
    return jax.tree.map(jnp.zeros_like, case.tree(f"param/{HALF}"))


def named(tree):
    return {".".join(k.key for k in path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def found_in(state):
    """The accumulators KEY/moment1_0 and the masters of a functional state, and its count."""
    is_part = lambda x: isinstance(x, RuleState | MasterState)  # noqa: E731
    parts = [x for x in jax.tree.leaves(state, is_leaf=is_part) if is_part(x)]
    masters = {k: v for x in parts if isinstance(x, MasterState) for k, v in named(x.master).items()}
    parts += [
        y for x in parts if isinstance(x, MasterState) for y in jax.tree.leaves(x.inner, is_leaf=is_part)
    ]
    (rule,) = (x for x in parts if isinstance(x, RuleState))
    slots = {f"{k}/{slot}_0": x for slot, tree in rule.slots.items() for k, x in named(tree).items()}
    keys = {k.split("/")[0] for k in slots}
    shared = {f"{k}/{name}_0": x.reshape(1) for name, x in rule.shared.items() for k in keys}
    return slots | shared, masters, int(rule.count)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_a_folder_is_read_bit_for_bit_and_gone_on_from(case):
    tx = case.transformation()
    params = load_parameters(empty(case), case.folder)
    state = load_optimizer(tx.init(params), case.folder)
    slots, masters, count = found_in(state)
    assert count == (
        HALF if case.config["optimizer"] != "Momentum" or (case.folder / "scheduler.pdparams").exists() else 0
    )
    for found, prefix in ((named(params), "param"), (slots, "acc"), (masters, "master")):
        want = case.of(f"{prefix}/{HALF}")
        assert found.keys() == want.keys()
        for key, x in want.items():
            assert np.asarray(found[key]).dtype == x.dtype and np.array_equal(found[key], x), key
    step = jax.jit(lambda g, s, p: (lambda u: (paddle.apply_updates(p, u[0]), u[1]))(tx.update(g, s, p)))
    for i in range(HALF + 1, END + 1):
        params, state = step(case.tree(f"grad/{i}"), state, params)
    slots, masters, _ = found_in(state)
    for found, prefix in ((slots, "acc"), (masters, "master"), (named(params), "param")):
        for key, x in case.of(f"{prefix}/{END}").items():
            # A parameter of 16 bits is its master, rounded.
            assert error(found[key], x) <= (2**-8 if x.dtype == jnp.bfloat16 else TOLERANCE), key


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_objects_go_on_from_a_folder(case):
    scheduler = case.scheduler()
    params = [paddle.Parameter(jnp.zeros_like(x), k) for k, x in case.of(f"param/{HALF}").items()]
    names = {p.name: case.names[p.name] for p in params}
    if "decay_suffix" in case.config:
        case.config["decay_suffix"] = "weight"  # the Parameters here are called by their structured names
    opt = case.optimizer(params, scheduler)
    load_parameters(params, case.folder)
    load_optimizer(opt, case.folder)
    case.run(opt, scheduler, params, HALF + 1, END)
    for p in params:
        want = case.of(f"param/{END}")[p.name]
        assert error(p.value, want) <= (2**-8 if want.dtype == jnp.bfloat16 else TOLERANCE), names[p.name]


def test_what_cannot_be_joined_is_refused_with_the_reason():
    case = CASES[SLICES]
    params = load_parameters(empty(case), case.folder)  # the model was merged
    assert np.array_equal(params["encoder"]["weight"], case.of("param/10")["encoder.weight"])
    with pytest.raises(CheckpointError, match="slices of tensor parallelism.*only the model's class knows"):
        load_optimizer(case.transformation().init(params), case.folder)


def test_quantized_moments_are_read_and_it_is_said_that_they_are_not_exact():
    case = CASES[QUANTIZED]
    params = load_parameters(empty(case), case.folder)
    with pytest.warns(UserWarning, match="8 bits"):
        state = load_optimizer(case.transformation().init(params), case.folder)
    slots, masters, count = found_in(state)
    assert count == HALF and all(np.array_equal(masters[k], x) for k, x in case.of("master/10").items())
    for key, x in case.of("acc/10").items():
        assert error(slots[key], x) < 0.013, key


@pytest.mark.parametrize("name", json.loads((HOSTILE / "manifest.json").read_text())["cases"])
def test_a_hostile_folder_is_refused_and_nothing_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind = "uc_adamw_bf16_tp2_nlp" if name.startswith("uc_") else "dist_momentum_2rank"
    case = CASES[kind]
    template = empty(case)
    state = case.transformation().init(template)
    with pytest.raises(CheckpointError, match=name):
        load_optimizer(state, HOSTILE / name)
    with pytest.raises(CheckpointError, match=name):
        inspect(HOSTILE / name)
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------- written by ours


def written(case, folder, **options):
    """A folder of ours, of what a recorded one holds."""
    tx = case.transformation()
    params = load_parameters(empty(case), case.folder)
    state = load_optimizer(tx.init(params), case.folder)
    save_checkpoint(folder, params, state, schedule=case.schedule(), **options)
    return tx, params, state


def trees_equal(a, b):
    def alike(x, y):
        x, y = np.asarray(x), np.asarray(y)
        return x.dtype == y.dtype and np.array_equal(x, y)

    return jax.tree.all(jax.tree.map(alike, a, b))


def same_folder(a, b):
    """Whether two folders hold the same; a rate of ours is rounded to float32."""
    a, b = load(a, return_numpy=True), load(b, return_numpy=True)
    schedules = a.pop("LR_Scheduler"), b.pop("LR_Scheduler")
    assert schedules[0]["last_epoch"] == schedules[1]["last_epoch"]
    assert schedules[0]["last_lr"] == pytest.approx(schedules[1]["last_lr"], rel=1e-6)
    return trees_equal(a, b)


def test_a_folder_of_ours_has_what_paddleformers_wrote_and_is_read_back_whole(tmp_path):
    case = CASES["uc_adamw_bf16_formers"]
    tx, params, state = written(case, tmp_path / "x")
    assert same_folder(case.folder, tmp_path / "x")
    for index in case.folder.glob("*.index.json"):
        said, here = (json.loads((f / index.name).read_text()) for f in (case.folder, tmp_path / "x"))
        assert said.items() <= {k: v for k, v in here.items() if k != "paddlejax"}.items()
    state = paddle.set_learning_rate(state, 0.125)  # which Paddle's folder has no place for
    save_checkpoint(tmp_path / "y", params, state, max_shard_size=200)
    assert (tmp_path / "y" / "optimizer-00003-of-00003.safetensors").exists()
    assert trees_equal(load_optimizer(tx.init(empty(case)), tmp_path / "y"), state)
    assert trees_equal(load_parameters(empty(case), tmp_path / "y"), params)


def test_an_object_writes_the_same_folder(tmp_path):
    case = CASES["uc_adamw_bf16_formers"]
    params, scheduler = [paddle.Parameter(x, k) for k, x in case.of("param/10").items()], case.scheduler()
    opt = case.optimizer(params, scheduler)
    load_optimizer(opt, case.folder)
    save_checkpoint(tmp_path / "x", params, opt)
    assert same_folder(case.folder, tmp_path / "x")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    params = {"w": jnp.ones((2, 3))}
    state = paddle.adam(0.1).init(params)
    for bad, error_, words in (
        ({"layout": "flex"}, ValueError, "layout: found 'flex', expected 'unified'"),
        ({"max_shard_size": "5 apples"}, ValueError, "max_shard_size: found '5 apples', expected a number"),
        ({"max_shard_size": 0}, ValueError, "max_shard_size: found 0"),
        ({"names": {"x": "y"}}, ValueError, "names: found y, expected some of w"),
        ({"schedule": 3}, TypeError, "schedule: found 3"),
    ):
        with pytest.raises(error_, match=words):
            save_checkpoint(tmp_path / "x", params, state, **bad)
    with pytest.raises(TypeError, match="save: model/w has dtype complex128|complex"):
        save_checkpoint(tmp_path / "x", {"w": np.ones(2, np.complex128)})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="there"):
        save_checkpoint(tmp_path / "there", params)
    with monkeypatch.context() as m:
        m.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path / "x", params, state)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    save_checkpoint(tmp_path / "x", params, state, names={"linear.weight": "w"})
    assert list(load(tmp_path / "x")["model"]) == ["linear.weight"]
    back = load_optimizer(paddle.adam(0.1).init(params), tmp_path / "x", names={"linear.weight": "w"})
    assert trees_equal(back, state)


# -------------------------------------------------------------------------------- other ways in


def test_inspect_convert_and_load_take_a_folder_an_index_and_a_metadata(tmp_path, capsys):
    case = CASES["uc_adamw_bf16_formers"]
    report = inspect(case.folder)
    assert report.layout == "unified checkpoint" and report.others["LR_Scheduler/last_epoch"] == HALF
    slots = [r.slot for r in report.rows if r.name == "encoder.weight"]
    assert slots == ["", "moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc", "master_weights"]
    index = case.folder / "model.safetensors.index.json"
    assert main(["inspect", str(index)]) == 0 and "encoder.weight" in capsys.readouterr().out
    for name in EXACT:
        for suffix, take in ((".pdparams", load_parameters), (".pdopt", load_optimizer), (".npz", None)):
            file = tmp_path / f"{name}{suffix}"
            assert main(["convert", str(name.folder), str(file)]) == 0
            if take is not None:
                template = empty(name)
                if take is load_optimizer:
                    template = name.transformation().init(template)
                assert trees_equal(take(template, file), take(template, name.folder)), file
            else:
                assert trees_equal(load_npz(file, return_numpy=True), load(name.folder, return_numpy=True))
    flex = CASES["flex_adamw_bf16"].folder
    assert list(load(flex / "master_weight" / "0.metadata"))[0] == "encoder.weight.w_0"
    state = CASES["flex_adamw_bf16"].transformation().init(empty(CASES["flex_adamw_bf16"]))
    whole = load_optimizer(state, flex)
    assert trees_equal(load_optimizer(state, flex / "optimizer_state" / "0.metadata"), whole)


def test_a_folder_of_checkpoints_proposes_the_last(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"a folder of checkpoints \(2\).*the last is .*checkpoint-10$"):
        load_parameters({}, tmp_path)
    (tmp_path / "0.metadata").touch()
    (tmp_path / "optimizer.pdopt").touch()
    with pytest.raises(CheckpointError, match="a dist checkpoint and the .pdopt of every rank in it"):
        load_parameters({}, tmp_path)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / ".metadata").touch()
    with pytest.raises(CheckpointError, match="PyTorch"):
        inspect(tmp_path / "torch")


def test_names_and_one_report_of_all_that_is_wrong():
    case = CASES["uc_adamw_bf16_tp2_nlp"]
    params = load_parameters(empty(case), case.folder)
    other = {
        "encoder": params["encoder"],
        "out": {"kernel": jnp.zeros((8, 5), jnp.bfloat16)},
        "x": jnp.ones(1),
    }
    names = {"head.weight": "out/kernel"}
    with pytest.raises(ValueError) as e:
        load_parameters(other, case.folder, names)
    for words in (
        "missing: x",
        "misshapen: head.weight has shape (8, 4), expected (8, 5)",
        "unexpected: head.bias",
    ):
        assert words in str(e.value)
    ours = {
        "encoder": params["encoder"],
        "out": {"kernel": params["head"]["weight"], "b": params["head"]["bias"]},
    }
    names |= {"head.bias": "out/b"}
    found = load_parameters(ours, case.folder, names)
    assert trees_equal(found, ours)
    tx = case.transformation()
    state = load_optimizer(tx.init(ours), case.folder, names)
    assert np.array_equal(state.master["out"]["b"], case.of("master/10")["head.bias"])
    with pytest.raises(ValueError, match="unexpected: master_weights"):  # nobody here keeps masters
        load_optimizer(paddle.adam(0.1).init(ours), case.folder, names)


# -------------------------------------------------------------------------------- other shapes of a folder


def changed(name, target, *deleted, **renamed):
    """A copy of a recorded folder without some files, and with others called otherwise."""
    shutil.copytree(CASES[name].folder, target)
    for pattern in deleted:
        for file in target.glob(pattern):
            file.unlink()
    for old, new in renamed.items():
        (target / old.replace("__", "-").replace("_dot_", ".")).rename(target / new)
    return target


def said(folder, stem, **changes):
    """Change what an index says; None takes a key away."""
    index = folder / f"{stem}.safetensors.index.json"
    new = {**json.loads(index.read_text()), **changes}
    index.write_text(json.dumps({k: v for k, v in new.items() if v is not None}))


def test_masters_that_were_left_out_are_the_parameters_cast_up(tmp_path):
    case = CASES["uc_adamw_bf16_formers"]
    folder = changed(case.name, tmp_path / "x", "master_weights*")
    said(folder, "optimizer", master_weights=False)
    params = load_parameters(empty(case), folder)
    state = load_optimizer(case.transformation().init(params), folder)
    assert trees_equal(state.master["encoder"]["weight"], params["encoder"]["weight"].astype(jnp.float32))
    assert state.master["head"]["weight"] is None


def test_unmerged_ranks_of_sharding_and_single_files_and_lora_are_the_same_state(tmp_path):
    case = CASES["uc_adamw_bf16_formers"]
    tx, params = case.transformation(), load_parameters(empty(case), case.folder)
    want = load_optimizer(tx.init(params), case.folder)
    numbered = {f"{s}__00001__of__00001_dot_safetensors": s for s in ("model", "optimizer", "master_weights")}
    shards = {old: f"{s}.shard00.safetensors" for old, s in numbered.items() if s != "model"}
    unmerged = changed(case.name, tmp_path / "unmerged", **shards)
    said(unmerged, "optimizer", weight_map=None)
    said(unmerged, "master_weights", weight_map=None)
    single = {old: f"{s}.safetensors" for old, s in numbered.items()}
    alone = changed(case.name, tmp_path / "alone", "model*.json", "master*.json", **single)
    said(alone, "optimizer", weight_map=None)
    (alone / "optimizer.safetensors.index.json").unlink()
    lora = changed(case.name, tmp_path / "lora")
    for file in lora.glob("model*"):
        text = file.read_bytes().replace(b"model-0", b"peft_model-0")
        (lora / f"peft_{file.name}").write_bytes(text)
        file.unlink()
    for folder in (unmerged, alone, lora):
        assert trees_equal(load_parameters(empty(case), folder), params), folder
        if folder is alone:  # nothing says there that it has masters but the files
            assert (folder / "master_weights.safetensors").exists()
        assert trees_equal(load_optimizer(tx.init(params), folder), want), folder


def test_the_second_name_of_a_shared_parameter_is_left_out_if_its_state_is_the_same(tmp_path):
    """Of tied weights several processes write the state under both names, the model under one."""
    case = CASES["uc_adamw_bf16_formers"]
    folder, tx = changed(case.name, tmp_path / "x", "*index.json"), case.transformation()
    for stem in ("model", "optimizer", "master_weights"):
        file = folder / f"{stem}-00001-of-00001.safetensors"
        arrays = {k: x for k, x in header(file).arrays.items()}
        if stem == "optimizer":
            arrays |= {k.replace("head", "tied"): x for k, x in arrays.items() if k.startswith("head.weight")}
        save_file({k: x[...] for k, x in arrays.items()}, file.with_name(f"{stem}.safetensors"))
        file.unlink()
    state = load_optimizer(tx.init(empty(case)), folder)
    assert trees_equal(state, load_optimizer(tx.init(empty(case)), case.folder))
    bad = {
        k: x[...] * (1 + ("tied" in k)) for k, x in header(folder / "optimizer.safetensors").arrays.items()
    }
    save_file(bad, folder / "optimizer.safetensors")
    with pytest.raises(ValueError, match="unexpected: tied.weight_moment1_0"):
        load_optimizer(tx.init(empty(case)), folder)


def test_a_distributed_checkpoint_of_safetensors_and_of_large_arrays(tmp_path):
    """With safetensors there are no tables of tensor names: `names` says them."""
    case = CASES["dist_momentum_2rank"]
    folder = changed(case.name, tmp_path / "x", "*.distcp")
    for rank in (0, 1):
        arrays = data(case.folder / f"{rank}_0.distcp").arrays
        save_file({k: np.asarray(x) for k, x in arrays.items()}, folder / f"{rank}_0.safetensors")
    program = (folder / "0.metadata").read_bytes()
    for rank in (b"0", b"1"):
        program = program.replace(b"\x8c\n" + rank + b"_0.distcp", b"\x8c\x0f" + rank + b"_0.safetensors")
    program = program[:3] + struct.pack("<Q", len(program) - 11) + program[11:]
    (folder / "0.metadata").write_bytes(program)
    params = load_parameters(empty(case), folder)
    assert trees_equal(params, load_parameters(empty(case), case.folder))
    names = {static: key.replace(".", "/") for key, static in case.names.items()}
    state = case.transformation().init(params)
    assert trees_equal(load_optimizer(state, folder, names), load_optimizer(state, case.folder))
    with pytest.raises(ValueError, match=r'"linear_0.w_0": "encoder/weight"'):
        load_optimizer(state, folder)
    large = {f"w{i}": np.random.default_rng(i).normal(size=(300 * i, 40)) for i in range(1, 4)}
    (tmp_path / "0_0.distcp").write_bytes(pickle.dumps({**large, "StructuredToParameterName@@": {}}, 4))
    found = data(tmp_path / "0_0.distcp").arrays
    assert all(isinstance(x, Mapped) and np.array_equal(x[...], large[k]) for k, x in found.items())
    assert np.array_equal(found["w2"][3:5, 7:9], large["w2"][3:5, 7:9])


def test_a_bar_where_it_takes_long_and_somebody_looks(monkeypatch, capsys):
    for terminal, patience in ((True, -1.0), (False, -1.0), (True, 9.0)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(bars, "PATIENCE", patience)
        with bars.progress("loading", 4 * 10**9) as advance:
            advance(10**9)
        shown = capsys.readouterr().err
        assert ("loading [#######" in shown and "1.0 of 4.0 GB" in shown) == (terminal and patience < 0)


def test_every_process_finds_the_folder_that_is_written_behind_a_link(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "empty").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "empty")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(folder_writer, "_tell", lambda name: "written.tmp")
    monkeypatch.setattr(folder_writer, "_meet", lambda where: None)
    with folder_writer._together(link) as folder:
        assert folder == tmp_path / "elsewhere" / "written.tmp"


def test_a_state_without_accumulators_goes_through_a_folder(tmp_path):
    tx, params = paddle.sgd(0.5), {"w": jnp.ones(2)}
    state = paddle.set_learning_rate(tx.init(params)._replace(count=jnp.int32(7)), 0.25)
    paddle.checkpoint.save_checkpoint(tmp_path / "c", params, state)
    found = load_optimizer(tx.init(params), tmp_path / "c")
    assert (int(found.count), float(found.learning_rate)) == (7, 0.25)


def test_a_level_of_the_tree_may_have_dots_in_its_name(tmp_path):
    tx, params = paddle.momentum(0.1), {"enc": {"layer.0": {"w": jnp.ones(2)}}}
    _, state = tx.update(params, tx.init(params), params)
    paddle.checkpoint.save_checkpoint(tmp_path / "c", params, state)
    found = load_optimizer(tx.init(params), tmp_path / "c")
    assert found.slots["velocity"]["enc"]["layer.0"]["w"].tolist() == [1, 1]


def test_a_rule_that_is_lifted_later_is_known(tmp_path):
    params = {"w": jnp.ones(2)}
    for slot in ("early_slot", "late_slot"):  # a folder is written between the two

        @paddle.rule
        class Own(paddle.Rule):
            slots = (slot,)

            def step(self, g, p, slots, shared, lr, leaf):
                return -lr * g, slots

        tx = paddle.lift(Own(), 0.1)
        paddle.checkpoint.save_checkpoint(tmp_path / slot, params, tx.init(params))
        assert load_optimizer(tx.init(params), tmp_path / slot).slots.keys() == {slot}


@pytest.mark.parametrize(
    ("params", "found"),
    [({}, "a tree without arrays"), ({"__metadata__": jnp.ones(2)}, "'__metadata__'")],
)
def test_what_could_not_be_read_back_is_not_written(params, found, tmp_path):
    with pytest.raises(ValueError, match=f"found {found}, expected"):
        paddle.checkpoint.save_checkpoint(tmp_path / "c", params)
    assert not list(tmp_path.iterdir())
