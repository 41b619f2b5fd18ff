"""The pictures that the examples draw. Each stands with the command that makes it.

A command runs in less than a minute on two cores, and its `--help` lists its options.
"""
