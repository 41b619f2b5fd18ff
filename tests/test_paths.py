"""Options by path."""

import re

from refusals import BOTH, TWO, P, refuse, row, rows

import paddlejax as pj
from paddlejax.paths import per_leaf

ADAM, SGD = pj.adam(0.1), pj.sgd(0.1)
TABLE = pj.by_path([("w", {"learning_rate": 2.0})], ADAM)
OTHER_TABLE, OTHER_RULE = pj.by_path([("w", {"rule": SGD})], ADAM), pj.by_path([], SGD)
START = ADAM.init(P)
FOREIGN = pj.GradientTransformation(lambda params: (), lambda g, s, params=None: (g, s))
BY_PATH = [
    row("no-match", lambda: pj.by_path([("*/bias", {})], ADAM).init(P), ValueError, r"\*/bias", "found b, w"),
    row("no-match-regex", lambda: pj.by_path([(re.compile("^x"), {})], ADAM).init(P), ValueError, "x",
        "found b, w"),
    row("option", lambda: pj.by_path([("w", {"lr": 1.0})], ADAM), TypeError, "'w'", "'lr'", "learning_rate",
        "beta1"),
    row("option-of-another", lambda: pj.by_path([("w", {"rho": 0.9})], ADAM), TypeError, "'w'", "'rho'",
        "beta1"),
    row("option-of-a-foreign", lambda: pj.by_path([("w", {"beta1": 0.9})], FOREIGN), TypeError, "'w'",
        "'beta1'"),
    row("factor-of-a-foreign", lambda: pj.by_path([("w", {"learning_rate": 2.0})], FOREIGN), TypeError,
        "'w'", "learning_rate"),
    row("factor-none", lambda: pj.by_path([("w", {"learning_rate": None})], ADAM), TypeError,
        "learning_rate", "None"),
    row("factor-shape", lambda: pj.by_path([("w", {"learning_rate": TWO})], ADAM), TypeError,
        "learning_rate", "2,"),
    row("range", lambda: pj.by_path([("w", {"beta1": 1.5})], ADAM), BOTH, "'w'", "beta1", "1.5"),
    row("frozen", lambda: pj.by_path([("w", {"frozen": 1})], ADAM), TypeError, "'w'", "frozen", "1",
        "True or False"),
    row("decay", lambda: pj.by_path([("w", {"weight_decay": "x"})], ADAM), TypeError, "'w'", "weight_decay",
        "'x'"),
    row("clip", lambda: pj.by_path([("w", {"grad_clip": 1.0})], ADAM), TypeError, "'w'", "grad_clip", "1.0"),
    row("row-rule", lambda: pj.by_path([("w", {"rule": 1.0})], ADAM), TypeError, "'w'", "rule", "1.0"),
    row("rule", lambda: pj.by_path([], pj.adam), TypeError, "rule", "expected"),
    row("general-decay", lambda: pj.by_path([], ADAM, weight_decay="x"), TypeError, "weight_decay", "'x'"),
    row("general-clip", lambda: pj.by_path([], ADAM, grad_clip=1.0), TypeError, "grad_clip", "1.0"),
    row("pattern", lambda: pj.by_path([(3, {})], ADAM), TypeError, "pattern", "3"),
    row("options", lambda: pj.by_path([("w", 2.0)], ADAM), TypeError, "'w'", "2.0", "dict"),
    row("not-pairs", lambda: pj.by_path(["w"], ADAM), TypeError, "table", "'w'", "expected"),
    row("dict", lambda: pj.by_path({"w": {"frozen": True}}, ADAM), TypeError, "table", "expected"),
    row("swapped", lambda: pj.by_path(ADAM, []), TypeError, "rule", r"\[\]", "expected"),
]  # fmt: skip
STATES = [
    row("rule-state", lambda: TABLE.update(P, START, P), TypeError, "PathState", "RuleState"),
    row("other-table", lambda: TABLE.update(P, OTHER_TABLE.init(P), P), ValueError,
        "another table", "found 2", "expected 1"),
    row("other-rule", lambda: TABLE.update(P, OTHER_RULE.init(P), P), ValueError, "Adam", "moment1"),
    row("no-params", lambda: TABLE.update(P, TABLE.init(P)), ValueError, "params"),
    row("per_leaf-no-params", lambda: per_leaf(lambda path: None).update(P, None), ValueError, "params"),
]  # fmt: skip


@rows(BY_PATH, state=STATES)
def test_refused(call, classes, words):
    refuse(call, classes, words)
