"""A participant on the ROS 2 wire that needs no ROS: topics, types and the node's place in the graph over Cyclone DDS.

ROS topic ``/x`` is DDS topic ``rt/x``; ``pkg/msg/Name`` is ``pkg::msg::dds_::Name_``; the bytes are XCDR1. They come
from the typestore and are passed through as they are: Cyclone's own Python (de)serialisers, which take 50 ms for an
image, are overridden. What Cyclone does check is the declared layout of the type, which is therefore built from the
typestore as well.

This is the only module that imports ``cyclonedds``.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from operator import itemgetter
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from flowodom.endpoints import Endpoint, Quality
from flowodom.errors import ConfigError, FlowodomError, MessageError
from flowodom.messages import deserialize, serialize, typestore
from flowodom.names import Names

try:
    from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
    from cyclonedds.core import DDSException, InstanceState, ReadCondition, SampleState, ViewState, WaitSet
    from cyclonedds.domain import Domain, DomainParticipant
    from cyclonedds.idl import make_idl_struct
    from cyclonedds.idl import types as idl_types
    from cyclonedds.pub import DataWriter
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.sub import DataReader
    from cyclonedds.topic import Topic
    from cyclonedds.util import duration
except ImportError as _error:
    raise FlowodomError(
        f"Cyclone DDS for Python is missing ({_error}): pip install 'flowodom[dds]' (or cyclonedds)"
    ) from _error

_log = logging.getLogger(__name__)

_LOOPBACK_NAME = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
_LOOPBACK = f'<NetworkInterface name="{_LOOPBACK_NAME}" multicast="true"/>'
_INTERFACES = f'<NetworkInterface autodetermine="true"/>{_LOOPBACK}'
_CONFIG = """<CycloneDDS><Domain>
<General><Interfaces>{interfaces}</Interfaces></General>
<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>
<Peers><Peer Address="localhost"/></Peers></Discovery>
</Domain></CycloneDDS>"""
"""The discovery that was found to work with every middleware: on the machine's network and on its loopback."""

_ANYTHING = SampleState.Any | ViewState.Any | InstanceState.Any
_WAKE = 100_000_000
"""Nanoseconds after which the receiving thread looks whether it is to end."""
_WITHOUT_TYPE_HASH = ("humble", "galactic", "foxy")

_DOMAINS: weakref.WeakValueDictionary[int, Domain] = weakref.WeakValueDictionary()
"""Domains in use by this process; Cyclone allows one configuration of each."""

types: Any = idl_types
_SCALARS: dict[str, Any] = {
    "bool": bool,
    "byte": types.uint8,
    "char": types.uint8,
    "float32": types.float32,
    "float64": types.float64,
    "string": str,
    **{f"{sign}int{bits}": getattr(types, f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class _Types:
    """Makes the classes that declare ROS types to Cyclone; their instances are nothing but serialised bytes."""

    def __init__(self, store: Typestore) -> None:
        self._store = store
        self._made: dict[str, Any] = {}

    def topic_type(self, msgtype: str) -> Any:
        """Returns the class for a topic of ``msgtype``.

        Raises:
            MessageError: The type is unknown, or has a field that cannot be declared.
        """
        try:
            made = self._struct(msgtype)
        except KeyError as error:
            raise MessageError(f"message type {msgtype} cannot be put on the wire: unknown {error}") from error
        if made.serialize is not _serialize:
            made.__init__, made.serialize = _init, _serialize
            made.deserialize, made.deserialize_key = classmethod(_deserialize), classmethod(_deserialize_key)
        return made

    def _struct(self, msgtype: str) -> Any:
        if msgtype not in self._made:
            fields = {f"{name}_": self._field(kind) for name, kind in self._store.fielddefs[msgtype][1]}
            fields = fields or {"structure_needs_at_least_one_member_": types.uint8}
            package, name = msgtype.split("/")[0], msgtype.split("/")[-1]
            self._made[msgtype] = make_idl_struct(f"{name}_", f"{package}.msg.dds_.{name}_", fields, dataclassify=False)
        return self._made[msgtype]

    def _field(self, description: Any) -> Any:
        kind, rest = description
        if kind == Nodetype.NAME:
            return self._struct(rest)
        if kind == Nodetype.BASE:
            name, bound = rest
            return types.bounded_str[bound] if name == "string" and bound else _SCALARS[name]
        inner, count = self._field(rest[0]), rest[1]
        if kind == Nodetype.ARRAY:
            return types.array[inner, count]
        return types.sequence[inner, count] if count else types.sequence[inner]


def _init(self: Any, data: bytes) -> None:
    self.data = data


def _serialize(self: Any, *_: Any, **__: Any) -> bytes:
    data: bytes = self.data
    return data


def _deserialize(cls: Any, data: bytes, *_: Any, **__: Any) -> Any:
    return cls(data)


def _deserialize_key(_: Any, *__: Any, **___: Any) -> None:
    """Topics have no keys; called when a publisher leaves."""


def _to_qos(quality: Quality, user_data: bytes) -> Qos:
    """Returns a quality of service as Cyclone has it, as ROS 2 endpoints announce it."""
    policies: list[Any] = [
        Policy.Reliability.Reliable(duration(milliseconds=100)) if quality.reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if quality.latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(quality.depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.IgnoreLocal.Participant,
    ]
    if quality.latched:
        history = Policy.History.KeepLast(quality.depth)
        policies.append(Policy.DurabilityService(duration(seconds=0), history, -1, -1, -1))
    if user_data:
        policies.append(Policy.Userdata(user_data))
    return Qos(*policies)


class Publisher:
    """Publishes on one topic; made by ``Participant.publisher``."""

    def __init__(self, writer: DataWriter[Any], store: Typestore) -> None:
        self._writer = writer
        self._store = store

    def publish(self, message: Any) -> None:
        """Serialises a typestore message and publishes it.

        Raises:
            MessageError: The message does not fit its definition.
        """
        self.publish_bytes(bytes(serialize(message, self._store)))

    def publish_bytes(self, data: bytes) -> None:
        """Publishes CDR bytes, header included."""
        try:
            self._writer.write(self._writer.data_type(data))
        except DDSException as error:
            raise MessageError(f"cannot publish {len(data)} bytes on {self._writer.topic.name}: {error}") from error

    @property
    def subscribers(self) -> int:
        """How many subscriptions there are at present."""
        status: Any = self._writer.get_publication_matched_status()  # type: ignore[no-untyped-call]
        return int(status.current_count)

    def wait_for_acks(self, seconds: float) -> bool:
        """Waits until all reliable subscribers have everything; whether they had within ``seconds``."""
        try:
            return bool(self._writer.wait_for_acks(round(seconds * 1e9)))
        except (DDSException, AttributeError):
            return False


class Participant:
    """A node on the ROS 2 graph.

    Args:
        names: The node's name and remappings; topics are given by their names before remapping.
        domain: ROS domain; that of ``ROS_DOMAIN_ID``, or 0, when None.
        distribution: ROS 2 distribution of the peers, which says what types and announcements look like.
        loopback: Whether to keep to this machine.

    The environment variable ``CYCLONEDDS_URI`` replaces the built-in network configuration.

    Raises:
        ConfigError: The domain is not allowed, or the network cannot be used.
    """

    def __init__(
        self,
        names: Names,
        *,
        domain: int | None = None,
        distribution: str = "jazzy",
        loopback: bool = False,
    ) -> None:
        self.names = names
        self.distribution = distribution
        self.store = typestore(distribution)
        self._hashes = distribution not in _WITHOUT_TYPE_HASH
        number = _domain_number(domain)
        try:
            self._domain = _DOMAINS.get(number)
            if self._domain is None and "CYCLONEDDS_URI" not in os.environ:
                config = _CONFIG.format(interfaces=_LOOPBACK if loopback else _INTERFACES)
                self._domain = _DOMAINS[number] = Domain(number, " ".join(config.split()))
            self._participant = DomainParticipant(number, qos=Qos(Policy.Userdata(b"enclave=/;")))
        except DDSException as error:
            raise ConfigError(f"cannot join ROS domain {number}: {error}") from error
        self._stores: dict[int, _Types] = {}
        self._topics: dict[tuple[str, str], Topic[Any]] = {}
        self._writers: list[DataWriter[Any]] = []
        self._readers: dict[DataReader[Any], tuple[ReadCondition, int, Callable[[bytes], None]]] = {}
        self._endpoints: dict[bool, list[bytes]] = {True: [], False: []}
        self._lock = threading.RLock()
        self._waitset = WaitSet(self._participant)
        self._publications = BuiltinDataReader(self._participant, BuiltinTopicDcpsPublication)
        self._subscriptions = BuiltinDataReader(self._participant, BuiltinTopicDcpsSubscription)
        self._known: dict[bool, dict[Any, Endpoint]] = {True: {}, False: {}}
        self._graph = self._make_writer(
            "ros_discovery_info",
            "rmw_dds_common/msg/ParticipantEntitiesInfo",
            self.store,
            Quality(latched=True, depth=1),
        )
        self._announce()
        self._closing = False
        self._thread = threading.Thread(target=self._receive, name="dds", daemon=True)
        self._thread.start()

    def __enter__(self) -> Participant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the graph."""
        self._closing = True
        self._thread.join()
        with self._lock:
            self._readers.clear()
            self._writers.clear()
            self._topics.clear()
        del self._graph, self._waitset, self._publications, self._subscriptions, self._participant, self._domain

    def publisher(
        self, name: str, msgtype: str, quality: Quality | None = None, *, store: Typestore | None = None
    ) -> Publisher:
        """Offers a topic.

        Args:
            name: Its name before remapping.
            msgtype: Its type.
            quality: Reliable, not latched, 10 messages when None.
            store: The types that describe it; those of the distribution when None.

        Raises:
            MessageError: The type is unknown.
            ConfigError: The name is malformed.
        """
        store = store or self.store
        writer = self._make_writer(f"rt{self.names.resolve(name)}", msgtype, store, quality or Quality())
        self._writers.append(writer)
        self._add_endpoint(True, writer)
        return Publisher(writer, store)

    def subscribe(
        self,
        name: str,
        msgtype: str,
        callback: Callable[[bytes], None],
        quality: Quality | None = None,
        *,
        store: Typestore | None = None,
    ) -> None:
        """Has a function called with the CDR bytes of every message, in the participant's thread.

        Args:
            name: Topic before remapping.
            msgtype: Its type.
            callback: Must not block for long.
            quality: Reliable, not latched, 10 messages when None.
            store: The types that describe it; those of the distribution when None.

        Raises:
            MessageError: The type is unknown.
            ConfigError: The name is malformed.
        """
        quality = quality or Quality()
        store = store or self.store
        topic = self._topic(f"rt{self.names.resolve(name)}", msgtype, store)
        reader: DataReader[Any] = DataReader(
            self._participant, topic, qos=_to_qos(quality, self._user_data(msgtype, store))
        )
        condition = ReadCondition(reader, _ANYTHING)
        with self._lock:
            self._readers[reader] = (condition, quality.depth, callback)
        self._waitset.attach(condition)
        self._add_endpoint(False, reader)

    def publications(self) -> list[Endpoint]:
        """Returns what others offer at present."""
        return self._discover(True)

    def subscriptions(self) -> list[Endpoint]:
        """Returns what others ask for at present."""
        return self._discover(False)

    def deserialize(self, data: bytes, msgtype: str) -> Any:
        """Returns the message in CDR bytes; see ``messages.deserialize``."""
        return deserialize(data, msgtype, self.store)

    def _make_writer(self, topic: str, msgtype: str, store: Typestore, quality: Quality) -> DataWriter[Any]:
        joined = self._topic(topic, msgtype, store)
        return DataWriter(self._participant, joined, qos=_to_qos(quality, self._user_data(msgtype, store)))

    def _topic(self, name: str, msgtype: str, store: Typestore) -> Topic[Any]:
        with self._lock:
            if (name, msgtype) not in self._topics:
                types_of_store = self._stores.setdefault(id(store), _Types(store))
                try:
                    self._topics[name, msgtype] = Topic(self._participant, name, types_of_store.topic_type(msgtype))
                except DDSException as error:
                    raise MessageError(f"cannot join the topic {name} as {msgtype}: {error}") from error
            return self._topics[name, msgtype]

    def _user_data(self, msgtype: str, store: Typestore) -> bytes:
        return f"typehash={store.hash_rihs01(msgtype)};".encode() if self._hashes else b""

    def _add_endpoint(self, writes: bool, entity: DataWriter[Any] | DataReader[Any]) -> None:
        with self._lock:
            self._endpoints[writes].append(entity.guid.bytes)
            self._announce()

    def _announce(self) -> None:
        """Tells the graph which node the endpoints belong to, as ``ros2 node list`` and ``topic info -v`` show it."""
        new = self.store.types
        layout: Any = self.store.fielddefs["rmw_dds_common/msg/Gid"][1][0][1]
        size: int = layout[1][1]

        def gid(guid: bytes) -> Any:
            return new["rmw_dds_common/msg/Gid"](data=np.frombuffer(guid.ljust(size, b"\0"), dtype=np.uint8))

        node = new["rmw_dds_common/msg/NodeEntitiesInfo"](
            node_namespace=self.names.namespace,
            node_name=self.names.node,
            reader_gid_seq=[gid(guid) for guid in self._endpoints[False]],
            writer_gid_seq=[gid(guid) for guid in self._endpoints[True]],
        )
        message = new["rmw_dds_common/msg/ParticipantEntitiesInfo"](
            gid=gid(self._participant.guid.bytes), node_entities_info_seq=[node]
        )
        self._graph.write(self._graph.data_type(bytes(serialize(message, self.store))))

    def _discover(self, writes: bool) -> list[Endpoint]:
        reader = self._publications if writes else self._subscriptions
        with self._lock:
            known = self._known[writes]
            for sample in reader.take(N=1000):
                if sample.sample_info.instance_state != InstanceState.Alive:
                    known.pop(sample.key, None)
                elif sample.participant_key != self._participant.guid:
                    endpoint = _endpoint(sample)
                    if endpoint is not None:
                        known[sample.key] = endpoint
            return list(known.values())

    def _receive(self) -> None:
        while not self._closing:
            try:
                self._waitset.wait(_WAKE)
            except DDSException as error:
                _log.error("waiting for messages failed: %s", error)
                time.sleep(0.1)
            with self._lock:
                readers = list(self._readers.items())
            taken: list[tuple[int, Callable[[bytes], None], bytes]] = []
            for reader, (condition, depth, callback) in readers:
                if condition.triggered:
                    taken += self._take(reader, depth, callback)
            # In the order in which they were sent, whatever topics they are on.
            for _, callback, data in sorted(taken, key=itemgetter(0)):
                callback(data)

    def _take(
        self, reader: DataReader[Any], depth: int, callback: Callable[[bytes], None]
    ) -> list[tuple[int, Callable[[bytes], None], bytes]]:
        try:
            samples = reader.take(N=max(depth, 16))
        except DDSException as error:
            _log.warning("messages of %s cannot be taken: %s", reader.topic.name, error)
            return []
        whole = [sample for sample in samples if isinstance(sample, reader.topic.data_type)]
        return [(sample.sample_info.source_timestamp, callback, sample.data) for sample in whole]


def _endpoint(sample: Any) -> Endpoint | None:
    """Returns a discovered endpoint in ROS's terms; None where it is not one of ROS."""
    parts = sample.type_name.split("::")
    if not sample.topic_name.startswith("rt/") or len(parts) != 4 or parts[2] != "dds_":
        return None
    qos = sample.qos
    reliability, durability, history = qos[Policy.Reliability], qos[Policy.Durability], qos[Policy.History]
    quality = Quality(
        reliable=reliability is not None and reliability != Policy.Reliability.BestEffort,
        latched=durability is not None and durability != Policy.Durability.Volatile,
        depth=getattr(history, "depth", 1) or 1,
    )
    return Endpoint(sample.topic_name[2:], f"{parts[0]}/{parts[1]}/{parts[3].removesuffix('_')}", quality)


def _domain_number(domain: int | None) -> int:
    if domain is None:
        text = os.environ.get("ROS_DOMAIN_ID", "") or "0"
        if not text.isdigit():
            raise ConfigError(f"ROS_DOMAIN_ID must be a number, got {text!r}")
        domain = int(text)
    if not 0 <= domain <= 232:
        raise ConfigError(f"a ROS domain is a number from 0 to 232, got {domain}")
    return domain
