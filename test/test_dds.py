import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cyclonedds", reason="Cyclone DDS for Python is not installed (pip install cyclonedds)")

from flowodom.dds import Participant, _to_qos
from flowodom.endpoints import Endpoint, Quality
from flowodom.errors import ConfigError, MessageError
from flowodom.messages import MessageFactory, typestore
from flowodom.names import Names

make = MessageFactory()
_domains = itertools.count(os.getpid() % 40)


@pytest.fixture
def domain() -> int:
    """A domain that no other test uses."""
    return 1 + next(_domains) % 45


Join = Callable[..., Participant]


@pytest.fixture
def join(domain: int) -> Iterator[Join]:
    """Returns a function that makes participants of one domain; they leave at the end."""
    made: list[Participant] = []

    def make_one(name: str, **options: Any) -> Participant:
        remappings = options.pop("remappings", ())
        made.append(Participant(Names(name, remappings=remappings), domain=domain, loopback=True, **options))
        return made[-1]

    yield make_one
    for participant in made:
        participant.close()


def until(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Waits for a condition, generously: tests must not depend on the machine's speed."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


MESSAGES = [
    make.image(5, "camera", np.arange(60, dtype=np.uint8).reshape(4, 5, 3)),
    make.compressed_image(5, "camera", np.zeros((16, 16), dtype=np.uint8)),
    make.odometry(7, "odom", "base_link", np.eye(4)),
    make.tf_message([make.transform(1, "a", "b", np.eye(4)), make.transform(2, "b", "c", np.eye(4))]),
    make.point_cloud(3, "camera", {"x": np.arange(5, dtype=np.float32)}),
    make.path(3, "odom", [make.pose_stamped(1, "odom", np.eye(4))]),
    make.store.types["std_msgs/msg/Empty"](structure_needs_at_least_one_member=0),
    make.store.types["std_msgs/msg/String"](data="ö"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__msgtype__.rsplit("/", 1)[-1])
def test_messages_arrive_as_they_were_sent(join: Join, message: Any) -> None:
    got: list[bytes] = []
    sender, receiver = join("sender"), join("receiver")
    receiver.subscribe("topic", message.__msgtype__, got.append)
    publisher = sender.publisher("topic", message.__msgtype__)
    assert until(lambda: publisher.subscribers)
    publisher.publish(message)
    assert until(lambda: got)
    assert make.serialize(receiver.deserialize(got[0], message.__msgtype__)) == make.serialize(message)


def test_a_late_subscriber_gets_what_is_latched_and_nothing_else(join: Join) -> None:
    sender = join("sender")
    string = make.store.types["std_msgs/msg/String"]
    for name, quality in (("latched", Quality(latched=True)), ("passing", Quality())):
        sender.publisher(name, "std_msgs/msg/String", quality).publish(string(data=name))
    got: list[str] = []
    receiver = join("receiver")
    for name, quality in (("passing", Quality()), ("latched", Quality(latched=True))):
        receiver.subscribe(name, "std_msgs/msg/String", lambda data, name=name: got.append(name), quality)
    assert until(lambda: got)
    assert got == ["latched"]


def test_endpoints_of_others_are_seen_and_seen_to_go(join: Join) -> None:
    one, other = join("one"), join("other", remappings=["image:=/camera/image"])
    other.publisher("image", "sensor_msgs/msg/Image", Quality(reliable=False, depth=3))
    other.subscribe("odom", "nav_msgs/msg/Odometry", lambda _: None, Quality(latched=True))
    assert until(lambda: one.publications() and one.subscriptions())
    assert [(e.topic, e.msgtype, e.quality.reliable) for e in one.publications()] == [
        ("/camera/image", "sensor_msgs/msg/Image", False)
    ]
    (asked,) = one.subscriptions()
    assert isinstance(asked, Endpoint)
    assert (asked.topic, asked.quality.reliable, asked.quality.latched) == ("/odom", True, True)


def test_a_participant_does_not_hear_itself(join: Join) -> None:
    got: list[bytes] = []
    one, other = join("one"), join("other")
    for participant in (one, other):
        participant.subscribe("/tf", "tf2_msgs/msg/TFMessage", lambda data, p=participant: got.append(p is other))
    publisher = one.publisher("/tf", "tf2_msgs/msg/TFMessage")
    assert until(lambda: publisher.subscribers)
    publisher.publish(MESSAGES[3])
    assert until(lambda: got)
    time.sleep(0.05)
    assert got == [True]


@pytest.mark.parametrize("distribution", ["humble", "jazzy", "kilted"])
def test_the_node_is_announced_to_the_graph(join: Join, distribution: str) -> None:
    got: list[Any] = []
    store = typestore(distribution)
    listener = join("listener", distribution=distribution)
    msgtype = "rmw_dds_common/msg/ParticipantEntitiesInfo"
    # The announcement's topic is not one of ROS's and so has no prefix.
    topic = listener._topic("ros_discovery_info", msgtype, store)
    from cyclonedds.sub import DataReader

    reader: Any = DataReader(listener._participant, topic, qos=_to_qos(Quality(latched=True, depth=1), b""))
    node = join("flowodom", distribution=distribution, remappings=["__ns:=/robot"])
    writer = node.publisher("odom", "nav_msgs/msg/Odometry")
    node.subscribe("image", "sensor_msgs/msg/Image", lambda _: None)

    def announced() -> bool:
        got.extend(store.deserialize_cdr(sample.data, msgtype) for sample in reader.take(10))
        return any(len(message.node_entities_info_seq[0].reader_gid_seq) == 1 for message in got)

    assert until(announced)
    (info,) = got[-1].node_entities_info_seq
    assert (info.node_namespace, info.node_name) == ("/robot", "flowodom")
    gid = np.asarray(info.writer_gid_seq[0].data).astype(np.uint8).tobytes()
    assert len(gid) == (24 if distribution == "humble" else 16)
    assert gid.startswith(writer._writer.guid.bytes)


def test_type_hashes_are_announced_where_the_distribution_has_them(join: Join) -> None:
    from cyclonedds.qos import Policy

    for distribution, expected in (("humble", b""), ("jazzy", b"typehash=RIHS01_")):
        publisher = join(f"in_{distribution}", distribution=distribution).publisher("x", "std_msgs/msg/String")
        announced = publisher._writer.get_qos()[Policy.Userdata]
        assert (announced.data if announced else b"").startswith(expected)
        assert bool(announced) == bool(expected)


def test_messages_that_come_while_another_thread_publishes_are_all_taken(join: Join) -> None:
    got: list[bytes] = []
    sender, receiver = join("sender"), join("receiver")
    receiver.subscribe("image", "sensor_msgs/msg/Image", got.append, Quality(depth=100))
    publisher = sender.publisher("image", "sensor_msgs/msg/Image", Quality(depth=100))
    assert until(lambda: publisher.subscribers)
    image = make.image(0, "camera", np.zeros((480, 640), dtype=np.uint8))

    def send() -> None:
        for _ in range(50):
            publisher.publish(image)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert until(lambda: len(got) == 50)


def test_unknown_types_and_bad_domains_are_refused(join: Join) -> None:
    with pytest.raises(MessageError, match="nowhere_msgs/msg/Nothing"):
        join("one").publisher("x", "nowhere_msgs/msg/Nothing")
    with pytest.raises(ConfigError, match="0 to 232"):
        Participant(Names("x"), domain=233)


def test_a_domain_from_the_environment_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_DOMAIN_ID", "mine")
    with pytest.raises(ConfigError, match="ROS_DOMAIN_ID"):
        Participant(Names("x"))
