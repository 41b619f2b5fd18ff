"""The parameter trees that optimizers are measured on, as lists of shapes, and the bytes a step must move."""

Shape = tuple[int, ...]


def bert() -> list[Shape]:
    """BERT base: 199 tensors, 109.5 million parameters."""
    hidden, inner, vocabulary = 768, 3072, 30522
    shapes: list[Shape] = [(vocabulary, hidden), (512, hidden), (2, hidden), (hidden,), (hidden,)]
    for _ in range(12):
        shapes += 4 * [(hidden, hidden), (hidden,)] + [(hidden,), (hidden,)]
        shapes += [(hidden, inner), (inner,), (inner, hidden), (hidden,), (hidden,), (hidden,)]
    return [*shapes, (hidden, hidden), (hidden,)]


def resnet50() -> list[Shape]:
    """ResNet-50: 161 tensors, 25.6 million parameters."""

    def convolution(outs: int, ins: int, size: int) -> list[Shape]:
        return [(outs, ins, size, size), (outs,), (outs,)]

    shapes, channels = convolution(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += convolution(width, channels, 1) + convolution(width, width, 3)
            shapes += convolution(4 * width, width, 1)
            if block == 0:
                shapes += convolution(4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


WORKLOADS: dict[str, list[Shape]] = {
    "1 x 50M": [(50_000_000,)],
    "BERT 199 x 110M": bert(),
    "ResNet-50 161 x 25.6M": resnet50(),
    "2000 small": [((64, 128, 192, 256, 384, 512, 768, 1024)[5 * i % 8],) for i in range(2000)],
    "1000 x 64": [(64,)] * 1000,
    "6 tiny": [(16, 32), (32,), (32, 32), (32,), (32, 4), (4,)],
}
QUICK: dict[str, list[Shape]] = {"6 tiny": WORKLOADS["6 tiny"], "40 x 64": [(64,)] * 40}

# Bytes per float32 parameter with every array read and written once; lamb's and lars's norms read once more.
BYTES = {"sgd": 12, "momentum": 20, "adam": 28, "adamw": 28, "rmsprop": 28, "lamb": 40, "lars": 28}


def size(shapes: list[Shape]) -> int:
    total = 0
    for shape in shapes:
        elements = 1
        for n in shape:
            elements *= n
        total += elements
    return total


def named(argument: str, known: dict[str, list[Shape]]) -> dict[str, list[Shape]]:
    """The workloads whose names begin with one of these, separated by commas."""
    found = {}
    for part in argument.split(","):
        fit = {name: shapes for name, shapes in known.items() if name.lower().startswith(part.lower())}
        if not fit:
            raise SystemExit(f"--workloads: found {part!r}, expected beginnings of {', '.join(known)}")
        found |= fit
    return found
