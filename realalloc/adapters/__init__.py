"""Classic users of a mempool: block I/O, a SCSI command queue, socket buffers and servers. One file, or one package, for each.

They use the public API only: ``Arena``, ``KmemCache`` and ``MemPool``. Nothing below imports from here.
"""
