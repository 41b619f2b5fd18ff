"""What changed from version to version, newest first.

The reference makes this list from the tags of git; `git log` shows every commit.
"""
