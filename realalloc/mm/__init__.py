"""The jitted room: buddy, slab, kmalloc, vmalloc and mempool on the words of one arena.

Rule 1: a kernel takes ``words`` (the arena as ``int64[::1]``) first, then integers, and returns one ``int64``:
zero or a positive result, or a negative status code of :mod:`realalloc.mm.layout`.
Rule 2: no Python object, no exception and no import from above crosses this line; arguments were checked once, in the faces.
Rule 3: a name that ends in ``_locked`` expects the arena lock to be held; a verb without it takes the lock itself.
Rule 4: nothing in here stores an address. A byte of the arena is named by its offset, and NULL is offset 0, the header.

Rooms, bottom up: ``jit`` - ``layout`` - ``bits``, ``atomic``, ``prim`` - ``freelist`` - ``buddy`` - ``slab`` -
``vmalloc`` - ``kmalloc`` - ``mempool``. A file may import those before it, never those after it.
"""
