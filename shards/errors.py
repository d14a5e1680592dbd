"""The base of the one family of errors.

    DistAlexnetError
    ├── InputError        what the user gave is wrong (config, paths, shards): one line, exit code 2
    └── StorageFault      storage failed (missing, short, wrong bytes): the run stops and can be resumed, exit code 1

dist_alexnet/errors.py adds the trainer's own members. A message is one sentence: the thing, the value found, what was
expected, what to do.
"""


class DistAlexnetError(Exception):
    """Whatever this project raises on purpose."""

    exit_code = 1


class InputError(DistAlexnetError):
    """The user's input is wrong; nothing was overwritten."""

    exit_code = 2


class StorageFault(DistAlexnetError):
    """Storage did not give the bytes that the index promises; never a reason to change the run."""
