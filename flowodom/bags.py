"""Recordings in and out: every kind of ROS bag is read, an MCAP rosbag2 is written.

Reading goes through ``rosbags``; what that refuses because it is damaged goes through ``flowodom.salvage``. Messages
come out as ROS 2 messages whatever the bag was recorded with. Writing goes through ``mcap``, onto a file that keeps
some room back, so that a full disk leaves a whole recording.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import re
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import yaml
from mcap.writer import CompressionType, Writer
from rosbags.interfaces import Connection, ConnectionExtRosbag1, MessageDefinitionFormat, Nodetype
from rosbags.rosbag1 import Reader as Reader1
from rosbags.rosbag2 import Reader as Reader2
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, TypesysError, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from zstandard import ZstdError

from flowodom.errors import BagError, FlowodomError, MessageError
from flowodom.frames import FrameTree
from flowodom.messages import NANOSECONDS, deserialize, serialize, typestore
from flowodom.salvage import ZSTD, Salvage, kind_of, unpack_zstd, unpack_zstd_file
from flowodom.selection import COMPRESSED_IMAGE, IMAGE, Selection, Topic, select

__all__ = ["BagReader", "BagWriter", "RawMessage", "Selection", "Topic", "select"]

log = logging.getLogger(__name__)

_LATCHED = ("/tf_static", "/robot_description")
_TRANSFORMS = 200
"""Messages of moving transforms that are read to know which frames there are."""
_RENAMED = {"tf/msg/tfMessage": "tf2_msgs/msg/TFMessage"}


class _Storage(Protocol):
    """One open file of a recording: a rosbags reader, or a salvage."""

    @property
    def connections(self) -> list[Connection]: ...

    @property
    def start_time(self) -> int: ...

    @property
    def end_time(self) -> int: ...

    def messages(
        self, connections: Collection[Connection] = (), start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]: ...

    def close(self) -> None: ...


class _Codec:
    """Turns one connection's bytes into CDR and ROS 2 messages.

    The definition that the bag carries decides; where the default types have the same layout they are used instead, so
    that fields have their ROS 2 names (ROS 1 calls ``k`` of a CameraInfo ``K``).
    """

    def __init__(self, connection: Connection, default: Typestore) -> None:
        self._ros1 = isinstance(connection.ext, ConnectionExtRosbag1)
        self._native = connection.msgtype
        self._embedded = _embedded(connection, default)
        name = _RENAMED.get(connection.msgtype, connection.msgtype)
        same = self._embedded is None or _layout(self._embedded, self._native) == _layout(default, name)
        self.store = default if self._embedded is None or same else self._embedded
        self.msgtype = name if self.store is default else self._native

    def cdr(self, data: bytes) -> bytes | memoryview:
        """Returns ``data`` as CDR."""
        if self._ros1:
            store, name = (self.store, self.msgtype) if self._embedded is None else (self._embedded, self._native)
            try:
                return store.ros1_to_cdr(data, name)
            except (SerdeError, KeyError) as error:
                raise MessageError(f"{len(data)} bytes do not hold one {self._native}: {error}") from error
        if data[:4] == ZSTD:
            try:
                return unpack_zstd(data)
            except ZstdError as error:
                raise MessageError(f"{len(data)} compressed bytes do not hold one {self._native}: {error}") from error
        return data

    def message(self, data: bytes) -> Any:
        """Returns the message in ``data``."""
        return deserialize(self.cdr(data), self.msgtype, self.store)


def _embedded(connection: Connection, default: Typestore) -> Typestore | None:
    """Returns the types of a connection's own definition; None where it has none, or none that can be parsed."""
    form, text = connection.msgdef
    try:
        if form == MessageDefinitionFormat.MSG:
            types = get_types_from_msg(text, connection.msgtype)
        elif form == MessageDefinitionFormat.IDL:
            parts = [p.split("\n", 1)[1] for p in text.split("=" * 80 + "\n") if p.startswith("IDL: ")]
            types = {}
            for part in parts or [text]:
                types.update(get_types_from_idl(part))
        else:
            return None
        if isinstance(connection.ext, ConnectionExtRosbag1) and "std_msgs/msg/Header" in types:
            types["std_msgs/msg/Header"] = default.fielddefs["std_msgs/msg/Header"]  # rosbags drops seq by itself
        store = get_typestore(Stores.EMPTY)
        store.register(types)
    except (TypesysError, SyntaxError, ValueError, KeyError) as error:
        log.warning("the bag's definition of %s cannot be read: %s", connection.msgtype, error)
        return None
    return store


def _layout(store: Typestore, msgtype: str) -> Any:
    """Returns the types of a message's fields, nested, without names; None for an unknown message."""

    def of(description: Any) -> Any:
        kind, rest = description
        if kind == Nodetype.BASE:
            return rest[0]
        if kind == Nodetype.NAME:
            return _layout(store, rest)
        return kind, of(rest[0]), rest[1]

    if msgtype not in store.fielddefs:
        return None
    return tuple(of(description) for _, description in store.fielddefs[msgtype][1])


class _File:
    """One file of a recording: a reader of rosbags, with a salvage to take over where that fails."""

    def __init__(self, path: Path, name: str, default: Typestore) -> None:
        self.path, self.name, self.default = path, name, default
        self.problem = ""
        self.storage = self._open()
        self.codecs: dict[int, _Codec] = {}

    def _open(self) -> _Storage:
        kind = kind_of(self.path)
        if not self.path.stat().st_size:
            raise BagError(f"{self.name} is empty")
        if not kind:
            raise BagError(f"{self.name} is no recording: neither MCAP, nor sqlite3, nor a ROS 1 bag")
        reader: Reader1 | Reader2
        try:
            reader = Reader1(self.path) if kind == "ros1" else Reader2(self.path)
            reader.open()
        except Exception as error:  # a damaged file can fail anywhere in the reader
            return self._salvage(error)
        return reader

    def _salvage(self, error: Exception) -> Salvage:
        salvage = Salvage(self.path)
        count = sum(c.msgcount for c in salvage.connections)
        self.problem = f"{self.name} is cut short, damaged or was never closed ({error}); {count} messages can be read"
        log.warning(self.problem)
        return salvage

    def close(self) -> None:
        """Closes the file."""
        self.storage.close()

    def codec(self, connection: Connection) -> _Codec:
        """Returns the codec of one of this file's connections."""
        if connection.id not in self.codecs:
            self.codecs[connection.id] = _Codec(connection, self.default)
        return self.codecs[connection.id]

    def messages(
        self, names: Collection[str] | None, start: int | None, stop: int | None
    ) -> Iterator[tuple[int, _Codec, str, bytes]]:
        """Yields (time, codec, topic, bytes) by time; goes on in a salvage where the reader fails on the way."""
        last, seen = -1, 0
        try:
            for time, codec, topic, data in self._read(names, start, stop):
                seen = seen + 1 if time == last else 1
                last = time
                yield time, codec, topic, data
            return
        except Exception as error:  # likewise
            if isinstance(self.storage, Salvage):
                raise
            broken, self.storage, self.codecs = self.storage, self._salvage(error), {}
            broken.close()
        for time, codec, topic, data in self._read(names, max(last, start or 0), stop):
            if time == last and seen:
                seen -= 1
            else:
                yield time, codec, topic, data

    def _read(
        self, names: Collection[str] | None, start: int | None, stop: int | None
    ) -> Iterator[tuple[int, _Codec, str, bytes]]:
        wanted = [c for c in self.storage.connections if names is None or c.topic in names]
        if wanted:
            for connection, time, data in self.storage.messages(wanted, start, stop):
                yield time, self.codec(connection), connection.topic, data


class BagReader:
    """A recording to read: rosbag2 (MCAP, sqlite3, compressed or not, split or not) or ROS 1.

    The path is a rosbag2 directory (its ``metadata.yaml`` may be missing) or a bare ``.mcap``, ``.db3`` or ``.bag``
    file. Damaged recordings give what can be read, with a warning in the log.

    Args:
        path: The recording.
        distribution: ROS 2 distribution whose types are used for bags that carry none.

    Attributes:
        path: The recording.
        topics: Its topics by name.

    Raises:
        BagError: On entry: there is no such file, it is no recording, or it holds no messages.
    """

    def __init__(self, path: Path | str, *, distribution: str = "jazzy") -> None:
        self.path = Path(path)
        self.store = typestore(distribution)
        self._files: list[_File] = []
        self._stack = contextlib.ExitStack()
        self._silent: set[str] = set()
        self._missing: list[str] = []
        self.topics: dict[str, Topic] = {}

    def __enter__(self) -> BagReader:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Opens the recording."""
        problems: list[str] = []
        try:
            paths, self._missing = _files_of(self.path)
            for path in paths:
                try:
                    file = _File(self._unpacked(path), str(path), self.store)
                except BagError as error:
                    problems.append(str(error))
                    continue
                self._files.append(file)
                self._stack.callback(file.close)
            self.topics = self._list_topics()
            if not self._files:
                raise BagError("; ".join(problems))
            self._missing += [f"{problem}; the rest of the recording is read" for problem in problems]
            for problem in self._missing:
                log.warning(problem)
            if not any(t.count for t in self.topics.values()):
                damaged = any(isinstance(f.storage, Salvage) for f in self._files)
                raise BagError(
                    f"{self.path} is damaged, and no message of it can be read"
                    if damaged
                    else f"{self.path} holds no messages: was the recorder stopped before anything was published?"
                )
        except OSError as error:
            self.close()
            raise BagError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the recording."""
        self._stack.close()
        self._files = []

    @property
    def problems(self) -> list[str]:
        """What is damaged or missing, one sentence each."""
        return self._missing + [file.problem for file in self._files if file.problem]

    def _unpacked(self, path: Path) -> Path:
        if kind_of(path) != "zstd":
            return path
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="flowodom-"))
        target = Path(folder) / path.with_suffix("").name
        with path.open("rb") as packed, target.open("wb") as unpacked:
            unpack_zstd_file(packed, unpacked)
        return target

    def _list_topics(self) -> dict[str, Topic]:
        counts: dict[str, Counter[str]] = {}
        for file in self._files:
            for connection in file.storage.connections:
                msgtype = _RENAMED.get(connection.msgtype, connection.msgtype)
                counts.setdefault(connection.topic, Counter())[msgtype] += connection.msgcount
        return {
            name: Topic(name, types.most_common(1)[0][0], sum(types.values())) for name, types in sorted(counts.items())
        }

    @property
    def start(self) -> int:
        """Time of the earliest message, nanoseconds, on the recorder's clock."""
        return min(f.storage.start_time for f in self._files)

    @property
    def end(self) -> int:
        """Time of the latest message, nanoseconds, on the recorder's clock."""
        return max(f.storage.end_time for f in self._files) - 1

    @property
    def duration(self) -> float:
        """Seconds from the earliest message to the latest."""
        return (self.end - self.start) / NANOSECONDS

    def messages(
        self, topics: Collection[str] | None = None, *, start: float = 0.0, duration: float | None = None
    ) -> Iterator[tuple[str, int, Any]]:
        """Yields (topic, time, message) in order of time.

        A message that cannot be decoded is skipped, with a warning for the first of its topic.

        Args:
            topics: Which topics; all when None.
            start: Seconds after the recording's start to begin at. What holds for ever (``/tf_static``) comes also
                when it was recorded earlier.
            duration: Seconds to read; to the end when None.
        """
        for topic, time, _, data, codec in self._raw(topics, start, duration):
            try:
                message = codec.message(data)
            except MessageError as error:
                self._skip(topic, error)
                continue
            yield topic, time, message

    def raw_messages(
        self, topics: Collection[str] | None = None, *, start: float = 0.0, duration: float | None = None
    ) -> Iterator[RawMessage]:
        """Yields messages as CDR, to be copied or decoded later; otherwise like ``messages``."""
        for topic, time, _, data, codec in self._raw(topics, start, duration):
            try:
                cdr = codec.cdr(data)
            except MessageError as error:
                self._skip(topic, error)
                continue
            yield RawMessage(topic, time, codec.msgtype, cdr, codec.store)

    def _skip(self, topic: str, error: Exception) -> None:
        if topic not in self._silent:
            self._silent.add(topic)
            log.warning("skipping messages of %s that cannot be read: %s", topic, error)

    def _raw(
        self, topics: Collection[str] | None, start: float, duration: float | None
    ) -> Iterator[tuple[str, int, int, bytes, _Codec]]:
        first = self.start + round(start * NANOSECONDS) if start > 0 else None
        stop = None if duration is None else (first or self.start) + round(duration * NANOSECONDS)
        held = [n for n in _LATCHED if n in self.topics and (topics is None or n in topics)]
        if first is not None and held:
            yield from self._merged(held, None, first)
        yield from self._merged(topics, first, stop)

    def _merged(
        self, topics: Collection[str] | None, start: int | None, stop: int | None
    ) -> Iterator[tuple[str, int, int, bytes, _Codec]]:
        streams = [file.messages(topics, start, stop) for file in self._files]
        for time, codec, topic, data in heapq.merge(*streams, key=lambda item: item[0]):
            yield topic, time, 0, data, codec

    def frame_tree(self) -> FrameTree:
        """Returns the tree of frames that the recording names; of the moving ones only the first few are read."""
        tree = FrameTree(duration=1e9)
        for topic, static, most in (("/tf_static", True, None), ("/tf", False, _TRANSFORMS)):
            if topic in self.topics:
                for _, _, message in itertools.islice(self.messages([topic]), most):
                    with contextlib.suppress(FlowodomError):
                        tree.insert_message(message, static=static)
        return tree

    def select(self, overrides: Mapping[str, str | None] | None = None) -> Selection:
        """Finds the topics to use, see ``flowodom.selection.select``; looks into one image of each topic.

        Raises:
            BagError: There is no image topic, or a named topic is missing or of another type.
        """
        encodings: dict[str, str] = {}
        for topic in self.topics.values():
            if topic.msgtype in (IMAGE, COMPRESSED_IMAGE) and topic.count:
                for _, _, message in self.messages([topic.name]):
                    encodings[topic.name] = getattr(message, "encoding", "") or getattr(message, "format", "")
                    break
        return select(self.topics.values(), overrides, encodings=encodings)


class RawMessage(NamedTuple):
    """One message of a recording that was not decoded.

    Attributes:
        topic: Its topic.
        time: When it was recorded, nanoseconds.
        msgtype: Its type.
        data: CDR with its 4-byte header.
        store: The types that describe it.
    """

    topic: str
    time: int
    msgtype: str
    data: bytes | memoryview
    store: Typestore

    def message(self) -> Any:
        """Returns the message.

        Raises:
            MessageError: The bytes do not hold one.
        """
        return deserialize(self.data, self.msgtype, self.store)


def _files_of(path: Path) -> tuple[list[Path], list[str]]:
    """Returns the files that a recording consists of, in order, and what is wrong with that."""
    if path.name == "metadata.yaml":
        path = path.parent
    if not path.exists():
        raise BagError(f"there is no recording {path}")
    if not path.is_dir():
        return [path], []
    files = [p for p in path.iterdir() if re.search(r"\.(mcap|db3|bag)(\.zstd|\.active)?$", p.name) and p.is_file()]
    files.sort(key=_natural)
    problems: list[str] = []
    named = _named_files(path, problems)
    if named:
        missing = [n for n in named if not (path / n).exists()]
        problems += [f"{n} of the recording {path} is missing; the rest is read" for n in missing]
        files = [path / n for n in named if n not in missing] or files
    if not files:
        raise BagError(
            f"{path} is a directory but no recording: it holds neither metadata.yaml nor any .mcap, .db3 or .bag file"
        )
    if not named and len({re.sub(r"_\d+(?=\.)", "", p.name) for p in files}) > 1:
        raise BagError(f"{path} holds several recordings; name one of: {', '.join(p.name for p in files)}")
    return files, problems


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _named_files(path: Path, problems: list[str]) -> list[str]:
    """Returns the file names in a rosbag2's metadata; none where that is missing or damaged."""
    metadata = path / "metadata.yaml"
    if not metadata.exists():
        return []
    try:
        return [Path(name).name for name in yaml.safe_load(metadata.read_text())[_INFORMATION]["relative_file_paths"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        problems.append(f"{metadata} cannot be read ({type(error).__name__}); the files beside it are taken")
        return []


class BagWriter:
    """Writes an MCAP rosbag2.

    A path that ends in ``.mcap`` becomes that one file; any other becomes a directory with the file and its
    ``metadata.yaml``. Leaving the context, for whatever reason, leaves a whole file. Room is kept back on the disk for
    its end: when the disk is full, ``write`` raises and everything before is readable.

    Args:
        path: Where to.
        distribution: ROS 2 distribution whose types are written.
        overwrite: Whether to replace a recording that is there.

    Raises:
        BagError: The path exists, or cannot be written.
    """

    def __init__(self, path: Path | str, *, distribution: str = "jazzy", overwrite: bool = False) -> None:
        self.path = Path(path)
        self.distribution = distribution
        self.store = typestore(distribution)
        self._topics: dict[str, _Written] = {}
        self._schemas: dict[str, int] = {}
        self._single = self.path.suffix == ".mcap"
        self._file = self.path if self._single else self.path / f"{self.path.name}_0.mcap"
        self._closed = False
        if self.path.exists():
            if not overwrite:
                raise BagError(f"{self.path} exists; choose another path or remove it")
            _remove_recording(self.path)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._spool = _Spool(self._file)
            self._writer = Writer(self._spool, compression=CompressionType.NONE)  # type: ignore[arg-type]
            self._writer.start(profile="ros2", library="flowodom")
        except OSError as error:
            raise BagError(f"cannot write {self.path}: {error.strerror or error}") from error

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        """Writes one message.

        Args:
            topic: Its topic, made on first use.
            message: A typestore message.
            time_ns: When, nanoseconds.

        Raises:
            MessageError: The message does not fit its definition.
            BagError: The disk is full, or the recording is closed.
        """
        self.write_raw(topic, message.__msgtype__, serialize(message, self.store), time_ns)

    def write_raw(
        self, topic: str, msgtype: str, data: bytes | memoryview, time_ns: int, *, store: Typestore | None = None
    ) -> None:
        """Writes one message that is CDR already.

        Args:
            topic: Its topic, made on first use.
            msgtype: Its type.
            data: CDR with its 4-byte header.
            time_ns: When, nanoseconds.
            store: The types that describe it; those of the distribution when None.

        Raises:
            MessageError: The type is unknown, or the topic has another.
            BagError: The disk is full, or the recording is closed.
        """
        if self._closed:
            raise BagError(f"{self.path} is closed")
        with _interrupts_deferred():
            try:
                entry = self._topics.get(topic) or self._add_topic(topic, msgtype, store or self.store)
                if entry.msgtype != msgtype:
                    raise MessageError(f"topic {topic} holds {entry.msgtype}, so {msgtype} cannot be written to it")
                self._writer.add_message(entry.channel, time_ns, data, time_ns)  # type: ignore[arg-type]
                entry.count += 1
                entry.first, entry.last = min(entry.first, time_ns), max(entry.last, time_ns)
            except OSError as error:
                self._spool.full = self._spool.full or error
            if self._spool.full:
                raise BagError(
                    f"cannot go on writing {self.path}: {self._spool.full.strerror or self._spool.full}; "
                    "what was written before stays readable; free some room or choose another disk"
                )

    def copy(self, message: RawMessage) -> None:
        """Writes a message of another recording as it is."""
        self.write_raw(message.topic, message.msgtype, message.data, message.time, store=message.store)

    def _add_topic(self, topic: str, msgtype: str, store: Typestore) -> _Written:
        try:
            definition, _ = store.generate_msgdef(msgtype, ros_version=2)
            digest = store.hash_rihs01(msgtype)
        except (KeyError, TypesysError) as error:
            raise MessageError(f"message type {msgtype} is unknown, so {topic} cannot be written") from error
        if msgtype not in self._schemas:
            self._schemas[msgtype] = self._writer.register_schema(msgtype, "ros2msg", definition.encode())
        qos = [_qos(topic, named=self._version >= 9)]
        channel = self._writer.register_channel(
            topic,
            "cdr",
            self._schemas[msgtype],
            {"offered_qos_profiles": _yaml(qos), "topic_type_hash": digest},
        )
        self._topics[topic] = _Written(channel, msgtype, digest)
        return self._topics[topic]

    @property
    def _version(self) -> int:
        """Version of the metadata: from 9 on (Jazzy) policies go by name, before by number."""
        return 8 if self.distribution in ("humble", "iron", "galactic", "foxy") else 9

    def close(self) -> None:
        """Ends the recording; doing so again does nothing."""
        if self._closed:
            return
        self._closed = True
        with _interrupts_deferred():
            try:
                self._spool.release()
                if not self._spool.broken:
                    self._writer.add_metadata("rosbag2", {"serialized_metadata": self._metadata()})
                    self._writer.finish()  # type: ignore[no-untyped-call]
            except OSError as error:
                log.warning("%s could not be ended (%s); flowodom still reads it", self.path, error)
            finally:
                self._spool.close()
            if not self._single:
                try:
                    (self.path / "metadata.yaml").write_text(self._metadata(wrapped=True))
                except OSError as error:
                    log.warning("metadata.yaml of %s could not be written: %s", self.path, error)

    def _metadata(self, *, wrapped: bool = False) -> str:
        """Returns the rosbag2 metadata as YAML."""
        written = [t for t in self._topics.values() if t.count]
        first = min((t.first for t in written), default=0)
        span = {"nanoseconds": max((t.last for t in written), default=0) - first}
        start = {"nanoseconds_since_epoch": first}
        count = sum(t.count for t in written)
        information = {
            "version": self._version,
            "storage_identifier": "mcap",
            "duration": span,
            "starting_time": start,
            "message_count": count,
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": name,
                        "type": topic.msgtype,
                        "serialization_format": "cdr",
                        "offered_qos_profiles": _offered(name, self._version),
                        "type_description_hash": topic.digest,
                    },
                    "message_count": topic.count,
                }
                for name, topic in self._topics.items()
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [self._file.name],
            "files": [{"path": self._file.name, "starting_time": start, "duration": span, "message_count": count}],
            "custom_data": None,
            "ros_distro": self.distribution,
        }
        return _yaml({_INFORMATION: information} if wrapped else information)


_INFORMATION = "rosbag2_bagfile_information"


@dataclass
class _Written:
    """What was written on one topic."""

    channel: int
    msgtype: str
    digest: str
    count: int = 0
    first: int = 2**63 - 1
    last: int = 0


def _offered(topic: str, version: int) -> list[dict[str, Any]] | str:
    profiles = [_qos(topic, named=version >= 9)]
    return profiles if version >= 9 else _yaml(profiles)


def _qos(topic: str, *, named: bool) -> dict[str, Any]:
    """Returns the quality of service that a topic was offered with: reliable, and kept for late joiners if latched."""
    forever = {"sec": 9223372036, "nsec": 854775807}
    latched = topic in _LATCHED
    durability = ("transient_local", 1) if latched else ("volatile", 2)
    return {
        "history": "keep_last" if named else 1,
        "depth": 1 if latched else 10,
        "reliability": "reliable" if named else 1,
        "durability": durability[0] if named else durability[1],
        "deadline": dict(forever),
        "lifespan": dict(forever),
        "liveliness": "automatic" if named else 1,
        "liveliness_lease_duration": dict(forever),
        "avoid_ros_namespace_conventions": False,
    }


class _PlainDumper(yaml.SafeDumper):
    """Writes equal parts out twice instead of by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_PlainDumper, sort_keys=False)


def _remove_recording(path: Path) -> None:
    """Removes a recording, and nothing that is none.

    Raises:
        BagError: The path is something else.
    """
    if path.is_file() and path.suffix == ".mcap":
        path.unlink()
        return
    names = {p.name for p in path.iterdir()} if path.is_dir() else {"?"}
    if any(not (n == "metadata.yaml" or n.endswith((".mcap", ".reserve"))) for n in names):
        raise BagError(f"{path} exists and is not just a recording, so it is not replaced; remove it by hand")
    shutil.rmtree(path)


class _Spool:
    """A file to write that keeps some room back, and gives it up when the disk is full so that the end still fits.

    Attributes:
        full: Why the disk took no more; None while it does.
        broken: Whether the file could not be written even with the room kept back.
    """

    ROOM = 8 << 20
    """Bytes kept back: more than a chunk, the index of 50 GB, and the metadata."""

    def __init__(self, path: Path) -> None:
        self._reserve = path.with_name(f".{path.name}.reserve")
        self._file = path.open("xb", buffering=0)
        self._at = 0
        self.full: OSError | None = None
        self.broken = False
        try:
            with self._reserve.open("wb") as reserve:
                _allocate(reserve.fileno(), self.ROOM)
        except OSError:
            self.close()
            path.unlink()
            raise

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Writes all of ``data``; when the disk is full, into the room kept back."""
        view = memoryview(data)
        start = self._at
        while view:
            try:
                done = self._file.write(view)
            except OSError as error:
                if self.full is None:
                    self.full = error
                    self.release()
                    continue
                self.broken = True
                self._file.seek(start)
                self._file.truncate()
                self._at = start
                raise
            self._at += done
            view = view[done:]
        return len(data)

    def tell(self) -> int:
        """Returns the place of the next byte."""
        return self._at

    def flush(self) -> None:
        """Does nothing: nothing is held back."""

    def release(self) -> None:
        """Gives up the room kept back."""
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the file."""
        self.release()
        self._file.close()


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.write(descriptor, bytes(size))


@contextlib.contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Holds Ctrl-C back until the block is done, so that no record is left half written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)
        if held and callable(previous):
            previous(*held[0])
