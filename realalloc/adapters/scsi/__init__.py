"""A SCSI command queue over two pools: requests are made once and used again, data buffers come from a reserve.

``cdb.py`` bytes and structures, ``tags.py`` the tag set, ``request.py`` what a submitter holds, ``queue.py`` submission,
completion and timeouts, ``target.py`` a target over files.
"""

from realalloc.adapters.scsi.cdb import (
    BLOCK_BYTES,
    SENSE_BYTES,
    Command,
    Opcode,
    Status,
    inquiry,
    read_10,
    read_capacity_10,
    request_sense,
    test_unit_ready,
    write_10,
)
from realalloc.adapters.scsi.queue import CommandQueue
from realalloc.adapters.scsi.request import CommandAborted, CommandTimedOut, Outcome, Request, TargetFailure
from realalloc.adapters.scsi.target import FileTarget, Target

__all__ = [
    "BLOCK_BYTES",
    "SENSE_BYTES",
    "Command",
    "CommandAborted",
    "CommandQueue",
    "CommandTimedOut",
    "FileTarget",
    "Opcode",
    "Outcome",
    "Request",
    "Status",
    "Target",
    "TargetFailure",
    "inquiry",
    "read_10",
    "read_capacity_10",
    "request_sense",
    "test_unit_ready",
    "write_10",
]
