"""Memory of an arena in other libraries' hands: the same bytes, not a copy, and alive for as long as they hold them.

Each library is an optional extra (``interchange``): without it its tests are skipped. What is asked of each: it shares the
memory; it may be the last to hold it; when it lets go, the block is free (the fixture ``arena`` checks that).
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from checks import address
from support import JIT, PAGE

import realalloc as ra

needs_jit = pytest.mark.skipif(not JIT, reason="NumPy's hook takes machine code, which NUMBA_DISABLE_JIT forbids")


def blocks(arena: ra.Arena) -> int:
    """Return how many blocks somebody holds."""
    gc.collect()
    return arena.stats().leases


# -- buffers of the arena -------------------------------------------------------------------------------------------------


def test_frombuffer_of_a_pools_element(arena: ra.Arena) -> None:
    pool = arena.mempool(2, size=8192)
    array = np.frombuffer(pool.alloc(), np.float64)
    assert array.flags.writeable and arena.owns(array) and array.ctypes.data % PAGE == 0
    tail = array[1000:]
    tail[:] = 7
    del array
    pool.alloc()[:8] = bytes(8)  # the other one: this one is not free
    assert (tail == 7).all()
    assert pool.stats().outstanding == 1
    del tail
    assert pool.curr_nr == 2
    pool.destroy()


def test_memoryviews_of_memoryviews(arena: ra.Arena) -> None:
    buf = arena.kmalloc(4096)
    words = buf.cast("q", (64, 8))
    words[3, 2] = -1
    assert bytes(buf[8 * 26 : 8 * 27]) == b"\xff" * 8
    array = np.asarray(words)
    assert np.shares_memory(array, np.frombuffer(buf, np.uint8))
    arena.kfree(buf)
    del words, buf
    assert array[3, 2] == -1
    assert blocks(arena) == 1
    del array


def test_dlpack_of_a_buffer(arena: ra.Arena) -> None:
    buf = arena.kmalloc(8000)
    other = np.from_dlpack(np.frombuffer(buf, np.int64))
    assert other.ctypes.data == address(buf)
    other[5] = 9
    assert buf[40] == 9
    del buf
    assert blocks(arena) == 1
    del other


def test_arrow_buffers(arena: ra.Arena) -> None:
    pa = pytest.importorskip("pyarrow")
    pool = arena.mempool(1, size=64 << 10)
    element = pool.alloc()
    buffer = pa.py_buffer(element)
    assert (buffer.address, buffer.size, buffer.is_mutable) == (address(element), 64 << 10, True)
    np.frombuffer(element, np.int32)[:] = np.arange(16 << 10)
    numbers = pa.Array.from_buffers(pa.int32(), 1000, [None, buffer.slice(4000, 4000)])
    assert numbers[7].as_py() == 1007
    back = numbers.to_numpy(zero_copy_only=True)
    assert back.ctypes.data == address(element) + 4000
    del buffer, numbers, element
    assert pool.curr_nr == 0
    assert back[999] == 1999
    del back
    gc.collect()
    assert pool.curr_nr == 1
    pool.destroy()


def test_arrow_reads_what_was_received(arena: ra.Arena) -> None:
    pa = pytest.importorskip("pyarrow")
    sink = pa.BufferOutputStream()
    table = pa.table({"a": np.arange(1000), "b": np.arange(1000) / 2})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    message = sink.getvalue()
    buf = arena.kmalloc(message.size)
    buf[:] = memoryview(message).cast("B")
    low = address(buf)
    read = pa.ipc.open_stream(pa.py_buffer(buf)).read_all()
    del buf
    assert low < read["a"].chunk(0).buffers()[1].address < low + message.size
    assert read.equals(table)
    assert blocks(arena) == 1
    del read


def test_images_over_a_buffer(arena: ra.Arena) -> None:
    image_of = pytest.importorskip("PIL.Image")
    buf = arena.kzalloc(64 * 32)
    image = image_of.frombuffer("L", (64, 32), buf, "raw", "L", 0, 1)
    buf[64 * 3 + 5] = 200
    assert image.getpixel((5, 3)) == 200
    del buf
    assert blocks(arena) == 1
    assert image.resize((16, 8)).size == (16, 8)
    image.close()
    del image


# -- arrays in the arena --------------------------------------------------------------------------------------------------


@needs_jit
def test_torch_shares_the_memory(arena: ra.Arena) -> None:
    torch = pytest.importorskip("torch")
    array = arena.ones(1000)
    for tensor in (
        torch.from_dlpack(array),
        torch.from_numpy(array),
        torch.frombuffer(memoryview(array), dtype=torch.float64),
    ):
        assert tensor.data_ptr() == array.ctypes.data
    tensor[3] = 5
    assert array[3] == 5
    back = np.from_dlpack(tensor)
    del array, tensor
    assert arena.owns(back)
    assert back.sum() == 1004
    del back


def test_torch_holds_a_pools_element(arena: ra.Arena) -> None:
    torch = pytest.importorskip("torch")
    pool = arena.mempool(1, size=8192)
    tensor = torch.from_dlpack(np.frombuffer(pool.alloc(), np.int32)).reshape(32, 64)
    tensor[1] = 5
    row = tensor[1:2]
    del tensor
    assert pool.stats().outstanding == 1
    assert row.sum() == 5 * 64
    del row
    gc.collect()
    assert pool.curr_nr == 1
    pool.destroy()


@needs_jit
def test_arrow_arrays_over_numpy(arena: ra.Arena) -> None:
    pa = pytest.importorskip("pyarrow")
    array = arena.array(np.arange(1000))
    numbers = pa.array(array)
    assert numbers.buffers()[1].address == array.ctypes.data
    back = np.from_dlpack(numbers)
    assert back.ctypes.data == array.ctypes.data
    del array, numbers
    assert back.sum() == 499_500
    del back


@needs_jit
def test_scipy_works_in_the_arena(arena: ra.Arena) -> None:
    fft = pytest.importorskip("scipy.fft")
    ndimage, signal = pytest.importorskip("scipy.ndimage"), pytest.importorskip("scipy.signal")
    given = np.random.default_rng(1).standard_normal((64, 64))
    x = arena.array(given, complex)
    where = x.ctypes.data
    with arena.numpy():
        there = fft.fft2(x, overwrite_x=True)
        assert there.ctypes.data == where  # in place
        back = fft.ifft2(there).real
        smooth = signal.sosfilt(signal.butter(4, 0.2, output="sos"), given)
    out = arena.empty(given.shape)
    assert ndimage.gaussian_filter(given, 2, output=out) is out
    np.testing.assert_allclose(back, given, atol=1e-12)
    np.testing.assert_array_equal(out, ndimage.gaussian_filter(given, 2))
    assert all(arena.owns(array) for array in (there, back, smooth))
    del x, there, back, smooth, out


@needs_jit
def test_pandas_works_in_the_arena(arena: ra.Arena) -> None:
    pd = pytest.importorskip("pandas")
    values = arena.array(np.arange(4000.0).reshape(1000, 4))
    frame = pd.DataFrame(values, columns=list("abcd"), copy=False)
    assert np.shares_memory(frame.to_numpy(), values)
    with arena.numpy():
        scaled = frame * 2 + 1
        sums = frame.groupby(frame.a % 7).sum()
    assert arena.owns(scaled.to_numpy())
    assert arena.owns(sums["b"].to_numpy())
    del values, frame
    expected = pd.DataFrame(np.arange(4000.0).reshape(1000, 4), columns=list("abcd"))
    pd.testing.assert_frame_equal(scaled, expected * 2 + 1)
    pd.testing.assert_frame_equal(sums, expected.groupby(expected.a % 7).sum())
    del scaled, sums


@needs_jit
def test_pandas_frames_from_another_process(arena: ra.Arena) -> None:
    pd = pytest.importorskip("pandas")
    import realalloc.pickle

    given = pd.DataFrame({"a": np.arange(1000), "b": np.arange(1000) / 2, "c": pd.date_range("2020", periods=1000)})
    data, buffers = realalloc.pickle.dumps(given)
    found = realalloc.pickle.loads(data, [bytes(buffer) for buffer in buffers], arena=arena)
    pd.testing.assert_frame_equal(found, given)
    for name in given:
        assert arena.owns(found[name].to_numpy())
    del found


@needs_jit
def test_arrow_tables_from_another_process(arena: ra.Arena) -> None:
    pa = pytest.importorskip("pyarrow")
    import realalloc.pickle

    given = pa.table({"a": np.arange(1000), "b": ["text"] * 1000})
    found = realalloc.pickle.loads(*realalloc.pickle.dumps(given), arena=arena)
    assert found.equals(given)
    assert 0 < found["a"].chunk(0).buffers()[1].address - arena.address < arena.size
    del found


@needs_jit
def test_images_of_arrays(arena: ra.Arena) -> None:
    image_of = pytest.importorskip("PIL.Image")
    array = arena.zeros((32, 64), np.uint8)
    image = image_of.frombuffer("L", (64, 32), array, "raw", "L", 0, 1)
    array[3, 5] = 200
    assert image.getpixel((5, 3)) == 200
    with arena.numpy():
        assert arena.owns(np.array(image.rotate(180)))
    del array
    assert image.getpixel((5, 3)) == 200
    image.close()
    del image


@needs_jit
def test_opencv_writes_into_the_arena(arena: ra.Arena) -> None:
    cv2 = pytest.importorskip("cv2")
    given: Any = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    out = arena.empty(given.shape, np.uint8)
    assert cv2.blur(given, (3, 3), dst=out).ctypes.data == out.ctypes.data
    expected = cv2.blur(given, (3, 3))
    assert (out == expected).all()
    with arena.numpy():
        small = cv2.resize(given, (32, 32))
        edges = cv2.Sobel(out, cv2.CV_32F, 1, 0)
    assert arena.owns(small)  # OpenCV asks NumPy for the memory of what it returns
    assert arena.owns(edges)
    assert (edges == cv2.Sobel(expected, cv2.CV_32F, 1, 0)).all()
    del out, small, edges
