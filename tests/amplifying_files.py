"""Small files that ask a reader for much, and a reader under limits that the operating system enforces.

`python amplifying_files.py FIRST COUNT SIZE` reads the files of these seeds, each in a process of its own. It
prints one JSON object: how many loaded and were refused, the worst of time and memory, what broke a bound.
"""

import gc
import io
import json
import math
import os
import random
import resource
import struct
import sys
import tempfile
import zipfile
from collections import Counter

import numpy as np

MEMORY, SPARE = 20, 50_000_000  # bytes for each byte of the file, and beside that
SECONDS, START = 2, 1  # for each MB, and beside that

ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
LOADED, REFUSED, MEMORY_ERROR, OTHER = 0, 1, 2, 3


def text(s):
    data = s.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def state(n, code):
    """What BUILD gives to an array of n elements."""
    dtype = b"cnumpy\ndtype\n(" + text(code) + b"\x89\x88tR(K\x03" + text("<") + b"NNNK\x00K\x00K\x00tb"
    data = bytes(n * int(code[1]))
    shape = b"(J" + struct.pack("<i", n) + b"t"
    return b"(K\x01" + shape + dtype + b"\x89B" + struct.pack("<I", len(data)) + data + b"t"


class Pickles:
    """Pickles made of pieces that name the same things again, are deep, long, wide or many."""

    def __init__(self, rng, size):
        self.rng, self.size, self.memo = rng, size, 0

    def many(self, most=None):
        """A number of anything, as often small as large."""
        return int(math.exp(self.rng.uniform(0, math.log(most or self.size))))

    def kept(self, made):
        """The instructions, and those that name the same object again."""
        i = self.memo
        self.memo += 1
        return made + b"r" + struct.pack("<I", i), b"h" + bytes([i]) if i < 256 else b"j" + struct.pack(
            "<I", i
        )

    def long(self):
        return text(self.rng.choice("aé☃\U0001f600\x01'") * self.many())

    def array(self):
        return ARRAY + state(self.many(self.size // 8), self.rng.choice(["i1", "u2", "f4", "f8"])) + b"b"

    def thing(self, depth=0):
        """The instructions of one object."""
        kinds = [k for k in dir(self) if k.startswith("a_")]
        if depth > 2:
            kinds = ["a_text_again", "a_number"]
        return getattr(self, self.rng.choice(kinds))(depth)

    def a_number(self, depth):
        return self.rng.choice([b"N", b"K\x05", b"M\x01\x02", b"G" + bytes(8), b"\x8a\x01\x07", b"\x88"])

    def a_text_again(self, depth):
        made, again = self.kept(self.long())
        where = self.rng.randrange(4)
        n = self.many()
        if where == 0:
            return b"](" + made + again * n + b"e"
        if where == 1:
            return b"](" + made + (b"}" + again + b"Ns") * n + b"e"
        if where == 2:
            return b"(" + made + again * n + b"t"
        return b"}(" + b"".join(b"J" + struct.pack("<i", i) + (again if i else made) for i in range(n)) + b"u"

    def an_array_again(self, depth):
        return self.a_list_of_arrays(depth)

    def a_list_of_arrays(self, depth):
        made, again = self.kept(self.array())
        n = self.many()
        if self.rng.random() < 0.3:  # tensors as Paddle pickles them
            name, named = self.kept(self.long())
            return b"]((" + name + made + b"t" + (named + again + b"\x86") * n + b"e"
        return b"](" + made + again * n + b"e"

    def a_nest_of_long_keys(self, depth):
        inside = self.thing(depth + 1)
        for _ in range(self.many(100)):
            inside = b"}" + self.long_key() + inside + b"s"
        return inside

    def long_key(self):
        return text(self.rng.choice("ab_.@") * self.many(self.size // 50 + 2))

    def a_thing_in_things(self, depth):
        made, again = self.kept(self.thing(depth + 1))
        for _ in range(self.many(60)):
            made, again = self.kept(b"](" + made + again * self.rng.randrange(1, 11) + b"e")
        return made

    def a_crowd(self, depth):
        one = self.rng.choice(
            [
                b"]",
                b"}",
                b")",
                b"N\x85",
                b"N\x94",
                b"(",
                b"\x8c\x02ab",
                b"]\x94",
                b"K\x05",
                b"M\x01\x02",
                b"G" + bytes(8),
                b"\x8a\x01\x07",
                b"N",
                b"(t",
                b"NN\x86",
                b"](e",
                b"}K\x01Ns",
                b"}\x8c\x01aNs",
                b"c_codecs\nencode\n",
                b"C\x01x",
                b"\x8e" + bytes(8),
            ]
        )
        return b"](" + one * self.many() + b"e"

    def a_chain(self, depth):
        one = self.rng.choice([b"\x85", b"\x94", b"q\x05", b"r\xff\xff\xff\x7f"])
        return self.thing(depth + 1) + one * self.many()

    def memos_out_of_order(self, depth):
        return b"N" + b"".join(b"r" + struct.pack("<I", 7 * i + 9) for i in range(self.many()))

    def a_memo_of_many(self, depth):
        return self.memos_out_of_order(depth)

    def a_wide_tuple(self, depth):
        made, again = self.kept(b"(" + b"N" * self.many() + b"t")
        return b"](" + made + again * self.many() + b"e"

    def a_crowd_of_arrays(self, depth):
        made, again = self.kept(state(1, "i1"))
        return b"](" + ARRAY + made + b"b" + (ARRAY + again + b"b") * self.many(self.size // 20) + b"e"

    def a_dict_of_ints(self, depth):
        m = 1 << 17
        key, keys = 1, []
        for _ in range(self.many(self.size // 3)):  # the order in which a dict looks for a free place
            keys.append(key)
            key = (5 * key + 1) % m
        return b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in keys) + b"u"

    def a_dict_of_texts(self, depth):
        return b"}(" + b"".join(text(f"k{i}") + b"K\x01" for i in range(self.many(self.size // 3))) + b"u"

    def a_wrong_operand(self, depth):
        thing = self.thing(depth + 1)
        return self.rng.choice([
            thing + text("x") + b"\x93", text("x") + thing + b"\x93", b"cnumpy\ndtype\n" + thing + b"R",
            b"cnumpy\ndtype\n" + thing + b"\x89\x88\x87R", ARRAY + thing + b"b", thing + b"b",
            b"c_codecs\nencode\n" + thing + text("latin1") + b"\x86R", b"}" + thing + b"Ns", thing + b"R",
            ARRAY + b"(K\x01" + thing + b"N\x89" + thing + b"tb", b"cbuiltins\ntuple\n" + thing + b"\x85R",
        ])  # fmt: skip

    def table(self):
        """A table of names, or of cut arrays, that does not fit or fits too often."""
        if self.rng.random() < 0.3:
            made, again = self.kept(self.long())
            table = b"}(" + made + again + b"u"
            return text("StructuredToParameterName@@") + table
        part, again = self.kept(self.rng.choice([self.long, lambda: text("w0")])())
        parts = b"](" + part + again * self.many() + b"e"
        if self.rng.random() < 0.5:
            n = self.many(self.size // 5)
            parts = b"](" + b"".join(text(f"p{i}") for i in range(n)) + b"e"
            array, named = self.kept(ARRAY + state(self.many(self.size // 8), "u1") + b"b")
            before = b"".join(text(f"p{i}") + (named if i else array) for i in range(n))
        else:
            before = b""
        entry = (
            b"}("
            + text("OriginShape")
            + b"]("
            + b"K\x01" * self.many(40)
            + b"e"
            + text("slices")
            + parts
            + b"u"
        )
        return before + text("UnpackBigParamInfor@@") + b"}" + text("w") + entry + b"s"

    def whole(self):
        parts = [(self.long_key() if self.rng.random() < 0.5 else text(f"w{i}")) + self.thing()
                 for i in range(self.rng.choice([1, 1, 2, 3]))]  # fmt: skip
        if self.rng.random() < 0.2:
            parts.append(self.table())
        return b"\x80\x04}(" + b"".join(parts) + b"u."


def outline(rng, size, keys):
    """An outline, as a text, that is deep, wide or long, and may fit these arrays."""
    n = int(math.exp(rng.uniform(0, math.log(size))))
    node = rng.choice([
        '{"list": [' + ", ".join(["[]"] * n) + "]}", '{"list": [' + ", ".join(["{}"] * n) + "]}",
        '{"list": [' + ", ".join(['{"list": []}'] * n) + "]}", '{"list": [' + "0, " * n + "0]}",
        '{"list": [' + ", ".join(['{"dict": []}'] * n) + "]}", '"' + rng.choice("aé\U0001f600") * n + '"',
        '{"dict": [' + ", ".join(f"[{i * 2**18}, 0]" for i in range(n // 4)) + "]}",
        "[" * n, '{"call": [' + "[], " * n + "0]}", '{"tuple": [' * min(n, 150) + "0" + "]}" * min(n, 150),
        '{"scalar": ["<f8", "' + "0" * n + '"]}',
        '{"tensor": ["' + "a" * n + '"], "name": [' + "0, " * n + "0]}",
    ])  # fmt: skip
    pairs = [json.dumps([k, {"tensor": k, "name": k}]) for k in keys] + [f'["more", {node}]']
    return '{"layout": "general", "tree": {"dict": [' + ", ".join(pairs) + "]}}"


def safetensors(rng, size):
    """A .safetensors file."""
    n = int(math.exp(rng.uniform(0, math.log(size / 10 + 2))))
    long = rng.choice("aé\U0001f600") * rng.choice([0, 1, 1, n])
    names = [f"{i}{long if i < 3 else ''}" for i in range(rng.choice([1, 1, n]))]
    shape = rng.choice([[0], [0, 1], [0] * (n if rng.random() < 0.1 else 3), [0] + [1] * 40, [0, 2**40]])
    dtype = rng.choice(["U8", "F32", "BF16", "U16", "F8_E4M3", "F64"])
    header = {k: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for k in names}
    if rng.random() < 0.7:
        meta = {f"{i}": long for i in range(n)} if rng.random() < 0.2 else {}
        header["__metadata__"] = meta | (
            {"paddlejax": outline(rng, size, names)} if rng.random() < 0.8 else {}
        )
    data = json.dumps(header, separators=(",", ":"), ensure_ascii=rng.random() < 0.5).encode()
    return struct.pack("<Q", len(data)) + data


def npz(rng, size):
    """An .npz file, its members stored or packed."""
    n = int(math.exp(rng.uniform(0, math.log(size / 100 + 2))))
    file = io.BytesIO()
    long = "a" * rng.choice([0, 0, min(n, 60_000)])
    keys, claims = [f"{i}{long if i < 3 else ''}" for i in range(rng.choice([1, 1, n]))], rng.random() < 0.1
    with zipfile.ZipFile(file, "w") as archive:

        def put(key, x, packed):
            header = io.BytesIO()
            shape = (2**40,) if claims else x.shape
            described = {"shape": shape, "fortran_order": False, "descr": x.dtype.str}
            np.lib.format.write_array_header_1_0(header, described)
            kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
            archive.writestr(f"{key}.npy", header.getvalue() + x.tobytes(), kind)

        for key in keys:
            wide = 200 * size if rng.random() < 0.1 and key == keys[0] else rng.choice([0, 1, 10])
            put(key, np.zeros(wide, rng.choice(["u1", "u2", "<f4"])), wide > 10 or rng.random() < 0.2)
        if rng.random() < 0.6:
            written = np.frombuffer(outline(rng, size, keys).encode(), np.uint8)
            put("paddlejax", written, rng.random() < 0.2)
    data = bytearray(file.getvalue())
    if rng.random() < 0.3:  # a directory that lies, or names a member again
        at = data.find(b"PK\x01\x02") + rng.choice([10, 20, 24, 42])
        data[at : at + 4] = rng.choice([b"\xff\xff\xff\x7f", bytes(4), struct.pack("<I", len(data) // 2)])
    return bytes(data)


def made(seed, size):
    """The ending and the bytes of the file of this seed; what is named at most `size` times."""
    rng = random.Random(seed)
    size = int(math.exp(rng.uniform(math.log(50), math.log(size))))
    kind = rng.choices([".pdparams", ".safetensors", ".npz"], [8, 2, 2])[0]
    if kind == ".pdparams":
        return kind, Pickles(rng, size).whole()
    return kind, (safetensors if kind == ".safetensors" else npz)(rng, size)


def read(path, looks):
    """Load the file, or look into it; how it ended."""
    from paddlejax.checkpoint import CheckpointError, inspect
    from paddlejax.checkpoint.convert import read_any
    from paddlejax.checkpoint.files import handed_out

    try:
        if looks:
            inspect(path)
        else:
            # What is packed may unpack to as much as the caller allows: the same bound, here.
            handed_out(read_any(path, 8 * os.path.getsize(path)), True, False)
        return LOADED
    except CheckpointError as e:
        return MEMORY_ERROR if isinstance(e.__cause__, MemoryError) or len(str(e)) > 5000 else REFUSED
    except BaseException:
        return OTHER


def measured():
    """The address space, the memory and the most memory of this process, in bytes."""
    with open("/proc/self/status") as f:
        found = dict(line.split(":", 1) for line in f)
    return [int(found[key].split()[0]) * 1024 for key in ("VmSize", "VmRSS", "VmHWM")]


def limited(path, size, looks, warm):
    """Read a file in a child process under the limits; how it ended, its seconds and bytes."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        read(warm, looks)  # pages of libraries that are not there yet
        virtual, before, _ = measured()
        allowed = virtual + MEMORY * size + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        seconds = math.ceil(START + SECONDS * size / 1e6)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        ended = read(path, looks)
        os.write(writes, str(max(0, measured()[2] - before)).encode())
        os._exit(ended)
    os.close(writes)
    _, status, used = os.wait4(child, 0)
    with open(reads) as f:
        most = int(f.read() or 0)
    ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"
    return ended, used.ru_utime + used.ru_stime, most


def main(first, count, most):
    from paddlejax.checkpoint import CheckpointError, convert, inspect, save  # noqa: F401

    folder = tempfile.mkdtemp()
    for ending in (".pdparams", ".npz", ".safetensors"):  # whatever is imported late
        save({"w": np.ones(3)}, f"{folder}/x.pdparams")
        convert(f"{folder}/x.pdparams", f"{folder}/y{ending}")
        inspect(f"{folder}/y{ending}")
    gc.collect()
    gc.freeze()
    ends, broken = Counter(), []
    worst = {"seconds": (0.0, 0), "bytes": (0, 0), "seconds per MB": (0.0, 0), "bytes per byte": (0.0, 0)}
    total = 0
    for seed in range(first, first + count):
        ending, data = made(seed, most)
        path = f"{folder}/f{ending}"
        with open(path, "wb") as f:
            f.write(data)
        total += len(data)
        ended, seconds, used = limited(path, len(data), seed % 4 == 0, f"{folder}/y{ending}")
        ends[{LOADED: "loaded", REFUSED: "refused"}.get(ended, str(ended))] += 1
        found = {"seconds": seconds, "bytes": used}
        if len(data) >= 100_000:
            found |= {"seconds per MB": seconds / len(data) * 1e6, "bytes per byte": used / len(data)}
        worst |= {k: max(worst[k], (round(v, 3), seed)) for k, v in found.items()}
        bad = seconds > START + SECONDS * len(data) / 1e6 or used > MEMORY * len(data) + SPARE
        if ended not in (LOADED, REFUSED) or bad:
            broken.append([seed, ending, len(data), str(ended), seconds, used])
    print(json.dumps({"files": count, "input": total, **ends, "worst": worst, "broken": broken}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
