"""What can still be read of a damaged recording: cut short, never closed, without index, or with a broken part.

A ``Salvage`` reads one file of any kind (MCAP, sqlite3, ROS 1) from its start, needs no index and no end, and lists
whatever message is whole. It offers the same few methods as the readers of ``rosbags``.

Sources: the MCAP specification (mcap.dev/spec), the ROS bag format 2.0 (wiki.ros.org/Bags/Format/2.0).
"""

from __future__ import annotations

import bz2
import logging
import mmap
import sqlite3
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import quote

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag1,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)

from flowodom.errors import BagError

log = logging.getLogger(__name__)

_SCHEMA_FORMATS = {
    "ros2msg": MessageDefinitionFormat.MSG,
    "ros1msg": MessageDefinitionFormat.MSG,
    "ros2idl": MessageDefinitionFormat.IDL,
    "omgidl": MessageDefinitionFormat.IDL,
}

Buffer = bytes | mmap.mmap


def kind_of(path: Path) -> str:
    """Returns what a file holds by its first bytes: ``mcap``, ``sqlite3``, ``ros1``, ``zstd``, or empty for none."""
    with path.open("rb") as file:
        head = file.read(16)
    magics = {b"\x89MCAP0\r\n": "mcap", b"SQLite format 3\0": "sqlite3", b"#ROSBAG V2.": "ros1", ZSTD: "zstd"}
    return next((kind for magic, kind in magics.items() if head.startswith(magic)), "")


ZSTD = b"\x28\xb5\x2f\xfd"
"""First bytes of whatever zstd has packed."""


def unpack_zstd(data: bytes | memoryview) -> bytes:
    """Returns what zstd packed into ``data``; of packed data that end early, the part that is there.

    Raises:
        zstandard.ZstdError: The data are damaged.
    """
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def unpack_zstd_file(source: IO[bytes], target: IO[bytes]) -> None:
    """Unpacks a whole file; of one that ends early or is damaged, the part before."""
    try:
        zstandard.ZstdDecompressor().copy_stream(source, target)
    except zstandard.ZstdError as error:
        log.warning("%s is damaged: %s; its readable part is used", getattr(source, "name", "file"), error)


def _unpack(data: bytes, compression: str) -> bytes:
    """Returns the unpacked part of a block, whole or cut short."""
    if compression in ("", "none"):
        return data
    if compression == "zstd":
        return unpack_zstd(data)
    if compression == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(data))
    if compression == "bz2":
        return bz2.BZ2Decompressor().decompress(data)
    raise BagError(f"compression {compression!r} is not supported")


_UNPACK_ERRORS = (BagError, zstandard.ZstdError, RuntimeError, OSError, EOFError)


class _Block(NamedTuple):
    """A compressed stretch of the file that holds messages."""

    start: int
    size: int
    compression: str


class _Entry(NamedTuple):
    """Where a message lies: in the unpacked block of that number, or in the file itself for -1; a row for sqlite3."""

    time: int
    connection: int
    block: int
    start: int
    size: int


class _Scan:
    """The list of messages in one file, grown record by record."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.blocks: list[_Block] = []
        self.entries: list[_Entry] = []
        self.connections: dict[int, Connection] = {}
        self.broken = 0

    def add_block(self, start: int, size: int, compression: str) -> bytes | None:
        """Returns a new block unpacked, None (and counts it) where that fails."""
        try:
            unpacked = _unpack(self.data[start : start + size], compression)
        except _UNPACK_ERRORS as error:
            log.warning("skipping a damaged block at byte %d: %s", start, error)
            self.broken += 1
            return None
        self.blocks.append(_Block(start, size, compression))
        return unpacked

    def read(self, entry: _Entry, cache: dict[int, bytes]) -> bytes | None:
        """Returns the bytes of one message; ``cache`` keeps the last few blocks."""
        if entry.block < 0:
            return self.data[entry.start : entry.start + entry.size]
        if entry.block not in cache:
            while len(cache) > 3:
                cache.pop(next(iter(cache)))
            block = self.blocks[entry.block]
            cache[entry.block] = _unpack(self.data[block.start : block.start + block.size], block.compression)
        return cache[entry.block][entry.start : entry.start + entry.size]

    def close(self) -> None:
        """Closes the file."""
        self.data.close()


def _string(data: Buffer, at: int) -> tuple[str, int]:
    (size,) = struct.unpack_from("<I", data, at)
    raw = bytes(data[at + 4 : at + 4 + size])
    if len(raw) != size:
        raise struct.error("string is cut")
    return raw.decode(errors="replace"), at + 4 + size


def _scan_mcap(data: mmap.mmap) -> _Scan:
    scan = _Scan(data)
    _mcap_records(scan, data, 8, {}, -1)
    return scan


def _mcap_records(
    scan: _Scan, data: Buffer, at: int, schemas: dict[int, tuple[str, MessageDefinition]], block: int
) -> None:
    """Walks the records of a file, or of one unpacked chunk (``block``), up to the first that is not whole."""
    while at + 9 <= len(data):
        opcode, size = struct.unpack_from("<BQ", data, at)
        at += 9
        whole = at + size <= len(data)
        if opcode == 0x06 and block < 0:
            _mcap_chunk(scan, at, min(size, len(data) - at), whole, schemas)
        if not whole or opcode in (0x00, 0x0F, 0x02):  # zeros of a crash; the end of data; the footer
            return
        try:
            if opcode == 0x03:
                _mcap_schema(data, at, schemas)
            elif opcode == 0x04:
                _mcap_channel(scan, data, at, schemas)
            elif opcode == 0x05 and size >= 22:
                channel, time = struct.unpack_from("<H4xQ", data, at)
                if channel in scan.connections:
                    scan.entries.append(_Entry(time, channel, block, at + 22, size - 22))
        except struct.error:
            scan.broken += 1
        at += size


def _mcap_schema(data: Buffer, at: int, schemas: dict[int, tuple[str, MessageDefinition]]) -> None:
    (key,) = struct.unpack_from("<H", data, at)
    name, at = _string(data, at + 2)
    encoding, at = _string(data, at)
    text, at = _string(data, at)
    form = _SCHEMA_FORMATS.get(encoding, MessageDefinitionFormat.NONE)
    schemas[key] = (_ros2_name(name), MessageDefinition(form, text))


def _mcap_channel(scan: _Scan, data: Buffer, at: int, schemas: dict[int, tuple[str, MessageDefinition]]) -> None:
    key, schema = struct.unpack_from("<HH", data, at)
    topic, at = _string(data, at + 4)
    encoding, at = _string(data, at)
    if encoding not in ("cdr", "ros1") or schema not in schemas:
        return
    ext = ConnectionExtRosbag2(encoding, []) if encoding == "cdr" else ConnectionExtRosbag1(None, None)
    msgtype, definition = schemas[schema]
    scan.connections[key] = Connection(key, topic, msgtype, definition, "", 0, ext, None)


def _mcap_chunk(
    scan: _Scan, at: int, size: int, whole: bool, schemas: dict[int, tuple[str, MessageDefinition]]
) -> None:
    try:
        _, _, unpacked_size, checksum = struct.unpack_from("<QQQI", scan.data, at)
        compression, body = _string(scan.data, at + 28)
        (packed_size,) = struct.unpack_from("<Q", scan.data, body)
    except struct.error:
        return
    body += 8
    unpacked = scan.add_block(body, min(packed_size, max(0, at + size - body)), compression)
    if unpacked is None:
        return
    if whole and (len(unpacked) != unpacked_size or (checksum and zlib.crc32(unpacked) != checksum)):
        log.warning("skipping a damaged chunk at byte %d: its checksum does not fit", at)
        scan.broken += 1
        return
    _mcap_records(scan, unpacked, 0, schemas, len(scan.blocks) - 1)


def _scan_ros1(data: mmap.mmap) -> _Scan:
    scan = _Scan(data)
    _ros1_records(scan, data, data.find(b"\n") + 1, -1)
    return scan


def _ros1_records(scan: _Scan, data: Buffer, at: int, block: int) -> None:
    """Walks the records of a file, or of one unpacked chunk (``block``), up to the first that is not whole."""
    while at + 8 <= len(data):
        try:
            (header_size,) = struct.unpack_from("<I", data, at)
            header = _ros1_header(bytes(data[at + 4 : at + 4 + header_size]), header_size)
            (size,) = struct.unpack_from("<I", data, at + 4 + header_size)
            operation = header[b"op"]
        except (struct.error, KeyError):
            return
        at += 8 + header_size
        whole = at + size <= len(data)
        if operation == b"\x05" and block < 0:
            compression = header.get(b"compression", b"none").decode(errors="replace")
            unpacked = scan.add_block(at, min(size, len(data) - at), compression) if size else None
            if unpacked is not None:
                _ros1_records(scan, unpacked, 0, len(scan.blocks) - 1)
        if not whole:
            return
        try:
            if operation == b"\x07":
                _ros1_connection(scan, header, bytes(data[at : at + size]))
            elif operation == b"\x02":
                (key,) = struct.unpack("<I", header[b"conn"])
                seconds, nanoseconds = struct.unpack("<II", header[b"time"])
                if key in scan.connections:
                    scan.entries.append(_Entry(seconds * 1_000_000_000 + nanoseconds, key, block, at, size))
        except (struct.error, KeyError):
            scan.broken += 1
        at += size


def _ros1_header(raw: bytes, size: int) -> dict[bytes, bytes]:
    if len(raw) != size:
        raise struct.error("header is cut")
    fields, at = {}, 0
    while at < size:
        (length,) = struct.unpack_from("<I", raw, at)
        name, equals, value = raw[at + 4 : at + 4 + length].partition(b"=")
        if not equals:
            raise struct.error("header has a field without name")
        fields[name] = value
        at += 4 + length
    return fields


def _ros1_connection(scan: _Scan, header: dict[bytes, bytes], data: bytes) -> None:
    (key,) = struct.unpack("<I", header[b"conn"])
    about = _ros1_header(data, len(data))
    latching = about.get(b"latching", b"0") == b"1"
    scan.connections[key] = Connection(
        key,
        header[b"topic"].decode(errors="replace"),
        _ros2_name(about[b"type"].decode(errors="replace")),
        MessageDefinition(MessageDefinitionFormat.MSG, about[b"message_definition"].decode(errors="replace")),
        "",
        0,
        ConnectionExtRosbag1(None, int(latching)),
        None,
    )


def _ros2_name(name: str) -> str:
    """Returns ``package/msg/Name`` of ``package/Name``."""
    package, _, rest = name.partition("/")
    return name if "/" in rest or not rest else f"{package}/msg/{rest}"


class _Table:
    """The messages of a sqlite3 bag, read row by row without its time index."""

    def __init__(self, path: Path) -> None:
        self.database = _connect(path)
        self.entries: list[_Entry] = []
        self.connections: dict[int, Connection] = {}
        self.broken = 0
        definitions: dict[str, MessageDefinition] = {}
        try:
            for name, encoding, text in self.database.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            ):
                definitions[name] = MessageDefinition(_SCHEMA_FORMATS.get(encoding, MessageDefinitionFormat.NONE), text)
        except sqlite3.DatabaseError:
            pass  # older schemas have no such table
        none = MessageDefinition(MessageDefinitionFormat.NONE, "")
        try:
            for key, topic, msgtype, encoding in self.database.execute(
                "SELECT id, name, type, serialization_format FROM topics"
            ):
                if encoding == "cdr":
                    ext = ConnectionExtRosbag2(encoding, [])
                    definition = definitions.get(msgtype, none)
                    self.connections[key] = Connection(key, topic, msgtype, definition, "", 0, ext, None)
            for row, key, time in self.database.execute("SELECT id, topic_id, timestamp FROM messages ORDER BY id"):
                if key in self.connections:
                    self.entries.append(_Entry(time, key, 0, row, 0))
        except sqlite3.DatabaseError as error:
            log.debug("sqlite3 scan of %s ended: %s", path, error)

    def read(self, entry: _Entry, cache: dict[int, bytes]) -> bytes | None:
        """Returns the bytes of one message; None where its pages are missing."""
        try:
            row = self.database.execute("SELECT data FROM messages WHERE id = ?", (entry.start,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Closes the database."""
        self.database.close()


def _connect(path: Path) -> sqlite3.Connection:
    """Opens a database to read, with its write-ahead log if that can be had, and without regard for its true size."""
    location = f"file:{quote(str(path.resolve()))}"
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        database = sqlite3.connect(f"{location}?{mode}", uri=True, check_same_thread=False)
        try:
            # Tells sqlite to go on when the file has fewer pages than its header says.
            database.execute("PRAGMA writable_schema = ON")
            database.execute("SELECT count(*) FROM topics").fetchone()
            return database
        except sqlite3.DatabaseError as error:
            database.close()
            problem = error
    raise BagError(f"{path} cannot be read as a sqlite3 bag: {problem}")


class Salvage:
    """Every whole message of one damaged file, by time.

    Args:
        path: An MCAP, sqlite3 or ROS 1 file.

    Raises:
        BagError: The file is none of these, or not even its list of topics can be read.
    """

    def __init__(self, path: Path) -> None:
        kind = kind_of(path)
        self._source: _Scan | _Table
        if kind in ("mcap", "ros1"):
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._source = _scan_mcap(data) if kind == "mcap" else _scan_ros1(data)
        elif kind == "sqlite3":
            self._source = _Table(path)
        else:
            raise BagError(f"{path} is neither an MCAP, nor a sqlite3, nor a ROS 1 bag")
        self._source.entries.sort(key=lambda e: e.time)
        counts = Counter(e.connection for e in self._source.entries)
        self.connections = [c._replace(msgcount=counts[key]) for key, c in self._source.connections.items()]
        self.broken = self._source.broken

    @property
    def start_time(self) -> int:
        """Time of the earliest message, nanoseconds."""
        return self._source.entries[0].time if self._source.entries else 2**63 - 1

    @property
    def end_time(self) -> int:
        """Time just after the latest message, nanoseconds."""
        return self._source.entries[-1].time + 1 if self._source.entries else 0

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yields (connection, time, bytes) in order of time.

        Args:
            connections: Which of ``connections``; all when empty.
            start: Only messages at or after this time, nanoseconds.
            stop: Only messages before this time, nanoseconds.
        """
        wanted = {c.id: c for c in connections or self.connections}
        cache: dict[int, bytes] = {}
        for entry in self._source.entries:
            if entry.connection not in wanted or (start is not None and entry.time < start):
                continue
            if stop is not None and entry.time >= stop:
                return
            data = self._source.read(entry, cache)
            if data is not None:
                yield wanted[entry.connection], entry.time, data

    def close(self) -> None:
        """Closes the file."""
        self._source.close()
