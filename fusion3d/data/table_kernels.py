"""Compiled loops over the bytes of a JSON table: where each value lies, and what it says.

Everything here takes bytes as uint8 arrays and releases the interpreter, so that tables are read side by side.
"""

from __future__ import annotations

import numba
import numpy as np

MORE, END, NOT_AN_OBJECT, BROKEN, CUT = range(5)  # how ``scan_rows`` stopped

_QUOTE, _ESCAPE, _COLON, _COMMA, _MINUS, _DOT, _ZERO, _NINE = (ord(c) for c in '"\\:,-.09')
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT, _SPACE = (ord(c) for c in "[]{} ")
_POWERS = 10.0 ** np.arange(23)  # those that a double holds exactly
_EXACT = 1 << 53
# The C library's. strtod rounds correctly, and stops at whatever follows a number in a list.
_address, _C = numba.types.uintp, numba.types.ExternalFunction
_memchr = _C("memchr", _address(_address, numba.types.intc, numba.types.uintp))
_memcpy = _C("memcpy", _address(_address, _address, numba.types.uintp))
_strtod = _C("strtod", numba.types.float64(_address, _address))


@numba.njit(cache=True, nogil=True, inline="always")
def _skip(text: np.ndarray, at: int) -> int:
    """Past white space and commas."""
    while at < len(text) and (text[at] <= _SPACE or text[at] == _COMMA):
        at += 1
    return at


@numba.njit(cache=True, nogil=True)
def _string_end(text: np.ndarray, at: int) -> int:
    """The closing quote of a string whose first character is at ``at``; -1 where there is none."""
    while at < len(text):
        base = np.uintp(text.ctypes.data)
        found = _memchr(base + np.uintp(at), _QUOTE, np.uintp(len(text) - at))
        if found == 0:
            return -1
        quote = int(np.int64(found - base))
        before = quote
        while before > at and text[before - 1] == _ESCAPE:
            before -= 1
        if (quote - before) % 2 == 0:
            return quote
        at = quote + 1
    return -1


@numba.njit(cache=True, nogil=True)
def _value_end(text: np.ndarray, at: int) -> int:
    """One past the value that begins at ``at``, or ``at`` where it is none; -1 where the text ends before it does."""
    begin = at
    if text[at] == _QUOTE:
        return _string_end(text, at + 1) + 1 or -1
    depth = 0
    while at < len(text):
        here = text[at]
        if here == _QUOTE:
            at = _string_end(text, at + 1)
            if at < 0:
                return -1
        elif here in (_OPEN_LIST, _OPEN_OBJECT):
            depth += 1
        elif here in (_CLOSE_LIST, _CLOSE_OBJECT):
            if depth == 0:
                return at  # the row's end
            depth -= 1
            if depth == 0:
                return at + 1 if text[at] == text[begin] + 2 else begin  # "[" and "]", as "{" and "}", are 2 apart
        elif depth == 0 and (here == _COMMA or here <= _SPACE):
            return at
        at += 1
    return -1


@numba.njit(cache=True, nogil=True)
def scan_rows(text: np.ndarray, at: int, keys: np.ndarray, spans: np.ndarray) -> tuple[int, int, int]:
    """Find the values of the next rows of an array of objects.

    Args:
        text: [N] uint8, the file.
        at: where to go on; 1 past the bracket at the beginning.
        keys: [K, W] uint8, the wanted keys, filled up with 0.
        spans: [R, K, 2] int64, is filled: beginning and end of each value, -1 where a row lacks the key.

    Returns:
        The number of rows found, where the next is or where reading failed, and why it stopped.
    """
    for row in range(len(spans)):
        at = _skip(text, at)
        if at >= len(text):
            return row, at, CUT
        if text[at] != _OPEN_OBJECT:
            return row, at, END if text[at] == _CLOSE_LIST else NOT_AN_OBJECT
        at += 1
        spans[row] = -1
        while True:
            at = _skip(text, at)
            if at >= len(text):
                return row, at, CUT
            if text[at] == _CLOSE_OBJECT:
                at += 1
                break
            if text[at] != _QUOTE:
                return row, at, BROKEN
            begin = at + 1
            end = _string_end(text, begin)
            at = end + 1
            while 0 < at < len(text) and text[at] <= _SPACE:
                at += 1
            if end < 0 or at >= len(text):
                return row, len(text), CUT
            if text[at] != _COLON:
                return row, at, BROKEN
            at += 1
            while at < len(text) and text[at] <= _SPACE:
                at += 1
            value = at
            at = _value_end(text, value) if value < len(text) else -1
            if at < 0:
                return row, len(text), CUT
            if at == value:
                return row, at, BROKEN
            for k in range(len(keys)):
                if _is_key(text, begin, end, keys[k]):
                    spans[row, k, 0] = value
                    spans[row, k, 1] = at
                    break
    return len(spans), at, MORE


@numba.njit(cache=True, nogil=True, inline="always")
def _is_key(text: np.ndarray, begin: int, end: int, key: np.ndarray) -> bool:
    size = end - begin
    if size > len(key) or (size < len(key) and key[size] != 0):
        return False
    for i in range(size):
        if text[begin + i] != key[i]:
            return False
    return True


@numba.njit(cache=True, nogil=True)
def copy_strings(text: np.ndarray, spans: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Copy the bytes of each span [n, 2] into a row of ``out`` [n, W] of zeros; true [n] where one is escaped."""
    escaped = np.zeros(len(spans), dtype=np.bool_)
    for row in range(len(spans)):
        begin, size = spans[row, 0], np.uintp(spans[row, 1] - spans[row, 0])
        source = text.ctypes.data + np.uintp(begin)
        _memcpy(out[row].ctypes.data, source, size)
        escaped[row] = _memchr(source, _ESCAPE, size) != 0
    return escaped


@numba.njit(cache=True, nogil=True)
def read_integers(text: np.ndarray, spans: np.ndarray, out: np.ndarray) -> int:
    """Read whole numbers of up to 18 digits into ``out`` [n] int64; the first row that is none, or -1."""
    for row in range(len(spans)):
        at, end = spans[row]
        negative = text[at] == _MINUS
        at += negative
        if not 0 < end - at <= 18:
            return row
        value = 0
        while at < end:
            if not _ZERO <= text[at] <= _NINE:
                return row
            value = value * 10 + np.int64(text[at] - _ZERO)
            at += 1
        out[row] = -value if negative else value
    return -1


@numba.njit(cache=True, nogil=True)
def read_vectors(text: np.ndarray, spans: np.ndarray, out: np.ndarray) -> int:
    """Read lists of numbers into ``out`` [n, k] float64, correctly rounded; the first row that is none, or -1."""
    stopped = np.zeros(1, dtype=np.uintp)
    for row in range(len(spans)):
        at, end = spans[row, 0], spans[row, 1] - 1
        if text[at] != _OPEN_LIST:
            return row
        at += 1
        for k in range(out.shape[1]):
            at = _skip(text, at)
            value, after = _short_number(text, at)
            if after < 0:
                value = _strtod(text.ctypes.data + np.uintp(at), stopped.ctypes.data)
                after = int(np.int64(stopped[0]) - np.int64(text.ctypes.data))
            if after == at or not (text[after] <= _SPACE or text[after] == _COMMA or after == end):
                return row
            out[row, k] = value
            at = after
        if _skip(text, at) != end:
            return row
    return -1


@numba.njit(cache=True, nogil=True, inline="always")
def _short_number(text: np.ndarray, at: int) -> tuple[float, int]:
    """A decimal number whose digits a double holds exactly, and where it ends; -1 for any other.

    One division of two doubles that are exact is correctly rounded (Clinger 1990, How to read floating point numbers
    accurately).
    """
    negative = text[at] == _MINUS
    at += negative
    first, digits, after_dot = at, 0, -1
    while True:
        here = text[at]
        if _ZERO <= here <= _NINE:
            digits = digits * 10 + np.int64(here - _ZERO)
            if digits > _EXACT:
                return 0.0, -1
        elif here == _DOT and after_dot < 0 and at > first:
            after_dot = at + 1
        else:
            break
        at += 1
    places = at - after_dot if after_dot >= 0 else 0
    if at == first or at == after_dot or places > 22 or here not in (_COMMA, _CLOSE_LIST, _SPACE, 10, 13):
        return 0.0, -1
    value = digits / _POWERS[places]
    return -value if negative else value, at


@numba.njit(cache=True, nogil=True, inline="always")
def _hash(word: np.ndarray) -> np.uint64:
    """Of eight bytes after the other, up to those that are all 0 (after FNV-1a, and the end of MurmurHash3)."""
    state = np.uint64(14695981039346656037)
    for part in word:
        if part == 0:
            break
        state = (state ^ part) * np.uint64(0xFF51AFD7ED558CCD)
        state ^= state >> np.uint64(32)
    return state


@numba.njit(cache=True, nogil=True, inline="always")
def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Are they the same up to the zeros at their ends?"""
    both = min(len(one), len(other))
    for i in range(both):
        if one[i] != other[i]:
            return False
    return (len(one) == both or one[both] == 0) and (len(other) == both or other[both] == 0)


@numba.njit(cache=True, nogil=True)
def find_rows(words: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[n] int32: the first row of ``table`` [m, V] that is the word, for each of ``words`` [n, W]; -1 for none.

    Both are uint64: strings of eight bytes after the other, filled up with 0.
    """
    size = 16
    while size < 2 * len(table):
        size *= 2
    slots = np.full(size, -1, dtype=np.int32)  # open addressing
    last = np.uint64(size - 1)
    one = np.uint64(1)
    for row in range(len(table)):
        slot = _hash(table[row]) & last
        while slots[slot] >= 0 and not _equal(table[slots[slot]], table[row]):
            slot = (slot + one) & last
        if slots[slot] < 0:
            slots[slot] = row
    found = np.empty(len(words), dtype=np.int32)
    for i in range(len(words)):
        slot = _hash(words[i]) & last
        while slots[slot] >= 0 and not _equal(table[slots[slot]], words[i]):
            slot = (slot + one) & last
        found[i] = slots[slot]
    return found


@numba.njit(cache=True, nogil=True)
def split_words(words: np.ndarray, at: np.ndarray, first: np.ndarray, last: np.ndarray) -> None:
    """Copy each word's first ``at`` [n] bytes into ``first`` and the others into ``last``, both of zeros."""
    for row in range(len(words)):
        for i in range(words.shape[1]):
            if i < at[row]:
                first[row, i] = words[row, i]
            else:
                last[row, i - at[row]] = words[row, i]


@numba.njit(cache=True, nogil=True)
def after_double_underscore(words: np.ndarray) -> np.ndarray:
    """[n] int64: one past the last ``__`` of each word [n, W]; 0 where there is none."""
    found = np.zeros(len(words), dtype=np.int64)
    underscore = ord("_")
    for row in range(len(words)):
        for i in range(words.shape[1] - 1, 0, -1):
            if words[row, i] == underscore and words[row, i - 1] == underscore:
                found[row] = i + 1
                break
    return found
