"""Write a pickle of arrays and plain containers, as any Paddle and any NumPy reads it."""

import struct
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

PROTOCOLS = (2, 3, 4)


class Pickler:
    """The instructions of one file; arrays go to it one at a time and are not kept.

    The standard pickler of NumPy 2 writes globals that NumPy 1 does not have, and holds a copy of every array
    until the file is complete.
    """

    def __init__(self, file: BinaryIO, protocol: int):
        self.write, self.protocol = file.write, protocol

    def dump(self, obj: Any) -> None:
        """Write one object as a whole pickle."""
        self.write(bytes((0x80, self.protocol)))
        self.save(obj)
        self.write(b".")

    def save(self, x: Any) -> None:
        """Write the instructions that make x; what a checkpoint cannot hold is an error."""
        if x is None or x is True or x is False:
            self.write({None: b"N", True: b"\x88", False: b"\x89"}[x])
        elif isinstance(x, np.ndarray | jax.Array):
            self.array(np.asarray(x))
        elif isinstance(x, np.generic):
            self.scalar(x)
        elif isinstance(x, int):
            self.integer(x)
        elif isinstance(x, float):
            self.write(b"G" + struct.pack(">d", x))
        elif isinstance(x, str):
            self.text(x.encode())
        elif isinstance(x, bytes):
            self.data(x)
        elif isinstance(x, dict):
            self.write(b"}(")
            for item in x.items():
                self.items(*item)
            self.write(b"u")
        elif isinstance(x, list):
            self.write(b"](")
            self.items(*x)
            self.write(b"e")
        else:
            self.tuple(*x)

    def items(self, *items: Any) -> None:
        """Write several objects in a row."""
        for item in items:
            self.save(item)

    def tuple(self, *items: Any) -> None:
        """Write a tuple of these items."""
        self.write(b"(")
        self.items(*items)
        self.write(b"t")

    def integer(self, x: int) -> None:
        """Write an int, in 4 bytes where it fits, else in 9."""
        if -(2**31) <= x < 2**31:
            self.write(b"J" + struct.pack("<i", x))
        else:
            self.write(b"\x8a\x09" + x.to_bytes(9, "little", signed=True))

    def text(self, text: bytes) -> None:
        """Write a str, given in UTF-8."""
        self.write(b"X" + struct.pack("<I", len(text)) + text)

    def data(self, data: Any) -> None:
        """Bytes; protocol 2 has none and writes them as a text in latin-1."""
        if self.protocol == 2:
            self.name("_codecs", "encode")
            self.write(b"(")
            self.text(bytes(data).decode("latin1").encode())
            self.items("latin1")
            self.write(b"tR")
        else:
            wide = len(data) >= 2**32
            self.write(
                b"\x8e" + struct.pack("<Q", len(data)) if wide else b"B" + struct.pack("<I", len(data))
            )
            self.write(data)

    def name(self, module: str, name: str) -> None:
        """Write the reference to a function or class of a module."""
        self.write(f"c{module}\n{name}\n".encode())

    def array(self, x: np.ndarray) -> None:
        """Write an array as NumPy pickles it; bfloat16 as the uint16 with the same bits, as Paddle does."""
        x = np.ascontiguousarray(x).reshape(x.shape)
        if x.dtype == jnp.bfloat16:
            x = x.view(np.uint16)
        self.name("numpy.core.multiarray", "_reconstruct")
        self.write(b"(")
        self.name("numpy", "ndarray")
        self.items((0,), b"b")
        self.write(b"tR(")
        self.items(1, x.shape)
        self.dtype(x.dtype)
        self.items(False)
        self.data(x.reshape(-1).view(np.uint8).data)
        self.write(b"tb")

    def scalar(self, x: np.generic) -> None:
        """Write a NumPy scalar as NumPy pickles it."""
        self.name("numpy.core.multiarray", "scalar")
        self.write(b"(")
        self.dtype(x.dtype)
        self.data(x.tobytes())
        self.write(b"tR")

    def dtype(self, dtype: np.dtype) -> None:
        """Write a dtype as NumPy pickles it."""
        order, code = dtype.str[0], dtype.str[1:]
        self.name("numpy", "dtype")
        self.tuple(code, False, True)
        self.write(b"R")
        self.tuple(3, order, None, None, None, -1, -1, 0)
        self.write(b"b")
