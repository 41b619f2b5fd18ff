"""Checkpoints that are folders: those of large trainings.

kinds.py        which kind lies there, and what a path means
contents.py     what every kind has: parameters, accumulators, masters; and its names
shards.py       arrays in a .safetensors, read part by part from a memory map
unified.py      Unified Checkpoint of PaddleNLP, ERNIEKit and PaddleFormers
quantized.py    its optimizer states in 8 bits
dist.py         paddle.distributed.save_state_dict, and flex checkpoint, which is three of those
metadata.py     their records: a pickle of three classes
pieces.py       an array that lies in pieces
ranks.py        one .pdopt of each rank
placing.py      into memory, onto the devices of a template
progress.py     a bar, where it takes long and somebody is looking
"""

__all__: list[str] = []  # what users call is in paddlejax.checkpoint
