from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import START, plane_messages
from mcap.reader import make_reader
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Reader as Reader2
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from flowodom import bags
from flowodom.bags import BagReader, BagWriter
from flowodom.errors import BagError, MessageError
from flowodom.messages import MessageFactory, decode_image, serialize, stamp, typestore

COUNT = 12


@pytest.fixture(scope="module")
def messages():
    return list(plane_messages(COUNT))


def write_ours(path, messages):
    with BagWriter(path) as writer:
        for topic, message, time in messages:
            writer.write(topic, message, time)
    return path


def write_rosbag2(path, messages, plugin=StoragePlugin.MCAP, mode=CompressionMode.NONE):
    writer = Writer2(path, version=9, storage_plugin=plugin)
    if mode != CompressionMode.NONE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        known = {}
        for topic, message, time in messages:
            if topic not in known:
                known[topic] = writer.add_connection(topic, message.__msgtype__, typestore=typestore())
            writer.write(known[topic], time, serialize(message))
    return path


def write_ros1(path, messages, compression=None):
    """A ROS 1 bag with ROS 1 definitions: headers with seq, tf as tf/tfMessage, CameraInfo with capital letters."""
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg("geometry_msgs/TransformStamped[] transforms", "tf/msg/tfMessage"))
    plain = typestore()
    writer = Writer1(path)
    if compression:
        writer.set_compression(compression)
    with writer:
        known = {}
        for topic, message, time in messages:
            msgtype = message.__msgtype__.replace("tf2_msgs/msg/TFMessage", "tf/msg/tfMessage")
            if topic not in known:
                known[topic] = writer.add_connection(topic, msgtype, typestore=store)
            writer.write(known[topic], time, plain.cdr_to_ros1(serialize(message), message.__msgtype__))
    return path


KINDS = {
    "ours": lambda path, m: write_ours(path, m),
    "ours_file": lambda path, m: write_ours(path.with_suffix(".mcap"), m),
    "mcap": lambda path, m: write_rosbag2(path, m),
    "mcap_chunks": lambda path, m: write_rosbag2(path, m, mode=CompressionMode.STORAGE),
    "mcap_messages": lambda path, m: write_rosbag2(path, m, mode=CompressionMode.MESSAGE),
    "mcap_file": lambda path, m: write_rosbag2(path, m, mode=CompressionMode.FILE),
    "sqlite3": lambda path, m: write_rosbag2(path, m, StoragePlugin.SQLITE3),
    "sqlite3_messages": lambda path, m: write_rosbag2(path, m, StoragePlugin.SQLITE3, CompressionMode.MESSAGE),
    "sqlite3_file": lambda path, m: write_rosbag2(path, m, StoragePlugin.SQLITE3, CompressionMode.FILE),
    "ros1": lambda path, m: write_ros1(path.with_suffix(".bag"), m),
    "ros1_bz2": lambda path, m: write_ros1(path.with_suffix(".bag"), m, Writer1.CompressionFormat.BZ2),
    "ros1_lz4": lambda path, m: write_ros1(path.with_suffix(".bag"), m, Writer1.CompressionFormat.LZ4),
}


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def made(tmp_path_factory, messages):
    """One recording of each kind, not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    return {kind: make(folder / kind / "bag", messages) for kind, make in KINDS.items() if not (folder / kind).mkdir()}


@pytest.fixture
def recording(kind, made, tmp_path):
    target = tmp_path / made[kind].name
    (shutil.copytree if made[kind].is_dir() else shutil.copy)(made[kind], target)
    return target


def storage_of(path):
    return path if path.is_file() else next(p for p in path.iterdir() if p.name != "metadata.yaml")


def same(got, expected):
    """Whether two lists of (topic, message, time) hold the same, in the same order of time."""
    key = [(time, topic) for topic, _, time in expected]
    assert sorted(key) == sorted((time, topic) for topic, time, _ in got)
    bytes_of = {(time, topic): bytes(serialize(m)) for topic, m, time in expected}
    return all(bytes(serialize(m)) == bytes_of[time, topic] for topic, time, m in got)


def read(path):
    with BagReader(path) as bag:
        return list(bag.messages())


def test_every_kind_gives_the_same_messages(recording, messages):
    with BagReader(recording) as bag:
        got = list(bag.messages())
        assert {t.name: t.count for t in bag.topics.values()} == {
            "/tf_static": 1,
            "/camera/image_raw": COUNT,
            "/camera/camera_info": COUNT,
            "/camera/depth_registered/image_raw": COUNT,
            "/ground_truth/odom": COUNT,
        }
        assert bag.topics["/tf_static"].msgtype == "tf2_msgs/msg/TFMessage"
        assert bag.start == START
        assert bag.end == messages[-1][2]
        assert bag.duration == pytest.approx((messages[-1][2] - START) / 1e9)
    assert same(got, messages)
    assert [t for _, t, _ in got] == sorted(t for _, t, _ in got)


def test_every_kind_can_be_copied_as_it_is(recording, messages, tmp_path):
    with BagReader(recording) as bag, BagWriter(tmp_path / "copy.mcap") as writer:
        for message in bag.raw_messages(["/camera/image_raw", "/camera/camera_info", "/tf_static"]):
            writer.copy(message)
    assert same(
        read(tmp_path / "copy.mcap"),
        [m for m in messages if m[0] in ("/camera/image_raw", "/camera/camera_info", "/tf_static")],
    )


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith(("ros1", "ours_file"))])
def test_a_bare_file_or_lost_metadata_do_as_well(recording, messages):
    (recording / "metadata.yaml").unlink()
    assert same(read(recording), messages)
    assert same(read(storage_of(recording)), messages)


def test_damaged_metadata_is_not_needed(tmp_path, messages, caplog):
    path = write_rosbag2(tmp_path / "bag", messages)
    (path / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    assert same(read(path), messages)
    assert "metadata.yaml cannot be read" in caplog.text


def test_metadata_may_be_named(tmp_path, messages):
    assert same(read(write_ours(tmp_path / "bag", messages) / "metadata.yaml"), messages)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97, 0.9999])
def test_a_cut_recording_gives_what_is_there(recording, kind, messages, share, caplog):
    file = storage_of(recording)
    size = file.stat().st_size
    os.truncate(file, int(size * share))
    if kind == "ros1_bz2" and share < 0.5:  # less than one block of bz2 is nothing
        with pytest.raises(BagError, match="damaged"):
            read(recording)
        return
    with caplog.at_level(logging.WARNING):
        got = read(recording)
    times = {time for _, time, _ in got}
    bytes_of = {(time, topic): bytes(serialize(m)) for topic, m, time in messages}
    assert all(bytes(serialize(m)) == bytes_of[time, topic] for topic, time, m in got)
    assert len({(time, topic) for topic, time, _ in got}) == len(got)
    assert times == {m[2] for m in messages[: len(messages)] if m[2] <= max(times)}  # no hole
    # Packed bags lose up to one block; plain ones little more than was cut off.
    packed = kind in ("mcap_chunks", "mcap_file", "sqlite3_file", "ros1_bz2", "ros1_lz4")
    if not packed:
        assert len(got) > (share - 0.12) * len(messages)
    if share < 0.99:
        assert len(got) < len(messages)
        assert "damaged" in caplog.text or "cannot be read" in caplog.text


@pytest.mark.parametrize("name", ["mcap", "sqlite3", "ros1"])
def test_a_recording_cut_to_almost_nothing_is_a_typed_error(name, tmp_path, messages):
    path = KINDS[name](tmp_path / "bag", messages)
    for size in (0, 4, 40, 700):
        os.truncate(storage_of(path), size)
        with pytest.raises(BagError):
            read(path)


def test_a_ros1_bag_that_was_never_closed(tmp_path, messages):
    path = write_ros1(tmp_path / "bag.bag", messages)
    data = bytearray(path.read_bytes())
    at = data.index(b"index_pos=") + len(b"index_pos=")
    data[at : at + 8] = bytes(8)
    active = tmp_path / "other.bag.active"
    active.write_bytes(data)
    assert same(read(active), messages)


def test_a_broken_chunk_costs_only_itself(tmp_path, messages, caplog):
    many = [(topic, message, time + k * 10**9) for k in range(6) for topic, message, time in messages]
    file = write_ours(tmp_path / "bag.mcap", many)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    got = read(file)
    assert 0.7 * len(many) < len(got) < len(many)
    assert max(t for _, t, _ in got) == many[-1][2]
    assert len({(t, n) for n, t, _ in got}) == len(got)
    assert "checksum" in caplog.text


@pytest.mark.parametrize("name", ["mcap", "sqlite3", "ros1"])
def test_a_damaged_recording_can_be_read_from_another_thread(name, made, tmp_path):
    target = tmp_path / "cut"
    data = storage_of(made[name]).read_bytes()
    target.write_bytes(data[: len(data) // 2])
    with BagReader(target) as bag, ThreadPoolExecutor(1) as pool:
        assert "damaged" in bag.problems[0]
        assert len(pool.submit(list, bag.messages()).result()) > 20


def test_zeros_at_the_end_as_after_a_power_cut(tmp_path, messages):
    path = write_ours(tmp_path / "bag.mcap", messages)
    os.truncate(path, int(path.stat().st_size * 0.7))
    os.truncate(path, path.stat().st_size + 100_000)
    assert len(read(path)) > 0.5 * len(messages)


def split(tmp_path, messages):
    """A rosbag2 of two files."""
    path = tmp_path / "bag"
    first = write_rosbag2(tmp_path / "one", messages[:30])
    second = write_rosbag2(tmp_path / "two", messages[30:])
    path.mkdir()
    shutil.copy(storage_of(first), path / "bag_0.mcap")
    shutil.copy(storage_of(second), path / "bag_1.mcap")
    text = (first / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(text.replace("- one.mcap", "- bag_0.mcap\n  - bag_1.mcap"))
    return path


def test_split_recordings(tmp_path, messages, caplog):
    path = split(tmp_path, messages)
    assert same(read(path), messages)
    (path / "metadata.yaml").unlink()
    assert same(read(path), messages)


def test_a_lost_part_of_a_split_recording_is_a_warning(tmp_path, messages, caplog):
    path = split(tmp_path, messages)
    (path / "bag_0.mcap").unlink()
    assert same(read(path), messages[30:])
    assert "bag_0.mcap" in caplog.text
    (path / "bag_0.mcap").write_bytes(b"")
    assert same(read(path), messages[30:])


def test_missing_recordings_and_things_that_are_none(tmp_path):
    with pytest.raises(BagError, match=r"no recording .*nowhere"):
        read(tmp_path / "nowhere")
    with pytest.raises(BagError, match="directory but no recording"):
        read(tmp_path)
    for name, content in (
        ("a.mcap", b""),
        ("b.mcap", b"not an mcap at all"),
        ("c.db3", b"x" * 5000),
        ("d.txt", b"hello"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BagError, match=name):
            read(tmp_path / name)
    with pytest.raises(BagError, match=r"several recordings.*a\.mcap"):
        read(tmp_path)


def test_an_sqlite3_file_that_is_no_bag(tmp_path):
    with sqlite3.connect(tmp_path / "x.db3") as database:
        database.execute("CREATE TABLE recipes(id INTEGER)")
    with pytest.raises(BagError, match="sqlite3 bag"):
        read(tmp_path / "x.db3")


@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_empty_recordings(tmp_path, plugin):
    path = tmp_path / "bag"
    with Writer2(path, version=9, storage_plugin=plugin) as writer:
        writer.add_connection("/camera/image_raw", "sensor_msgs/msg/Image", typestore=typestore())
    with pytest.raises(BagError, match="holds no messages"):
        read(path)


def test_an_empty_recording_of_ours(tmp_path):
    with BagWriter(tmp_path / "bag"):
        pass
    with pytest.raises(BagError, match="holds no messages"):
        read(tmp_path / "bag")


def test_start_and_duration_keep_what_holds_for_ever(recording, messages):
    with BagReader(recording) as bag:
        got = [(topic, time) for topic, time, _ in bag.messages(start=0.1, duration=0.2)]
    assert got[0] == ("/tf_static", START)
    times = [time for _, time in got[1:]]
    assert min(times) >= START + 10**8
    assert max(times) < START + 3 * 10**8
    assert len(times) == 4 * len({t for *_, t in messages if START + 10**8 <= t < START + 3 * 10**8})


def test_some_topics_only(recording):
    with BagReader(recording) as bag:
        assert {topic for topic, _, _ in bag.messages(["/camera/camera_info"])} == {"/camera/camera_info"}
        assert not list(bag.messages(["/nothing"]))


def test_a_message_that_cannot_be_decoded_is_skipped_with_a_warning(tmp_path, factory, caplog):
    good = factory.image(START, "camera", np.zeros((4, 4), np.uint8))
    with BagWriter(tmp_path / "bag") as writer:
        writer.write("/image", good, START)
        writer.write_raw("/image", "sensor_msgs/msg/Image", b"\x00\x01\x00\x00\x07", START + 1)
        writer.write_raw("/image", "sensor_msgs/msg/Image", b"", START + 2)
        writer.write("/image", good, START + 3)
    assert [time for _, time, _ in read(tmp_path / "bag")] == [START, START + 3]
    assert caplog.text.count("skipping messages of /image") == 1


def test_types_that_only_the_bag_knows(tmp_path, factory):
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("int32 answer\nstd_msgs/Header header", "own_msgs/msg/Thing"))
    thing = store.types["own_msgs/msg/Thing"](answer=42, header=factory.header(START, "x"))
    data = store.serialize_cdr(thing, "own_msgs/msg/Thing")
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_raw("/thing", "own_msgs/msg/Thing", data, START, store=store)
        with pytest.raises(MessageError, match=r"own_msgs/msg/Other.*unknown"):
            writer.write_raw("/other", "own_msgs/msg/Other", data, START)
        with pytest.raises(MessageError, match=r"/thing holds own_msgs/msg/Thing"):
            writer.write("/thing", factory.image(START, "c", np.zeros((2, 2), np.uint8)), START)
    with BagReader(tmp_path / "bag") as bag, BagWriter(tmp_path / "copy") as writer:
        for message in bag.raw_messages():
            writer.copy(message)
    assert read(tmp_path / "copy")[0][2].answer == 42


def test_ros1_types_that_ros2_lacks(tmp_path, factory):
    store = get_typestore(Stores.ROS1_NOETIC)
    store.register(get_types_from_msg("Header header\nfloat64[] Values", "own_msgs/msg/Thing"))
    header = store.types["std_msgs/msg/Header"](seq=3, stamp=factory.time(START), frame_id="x")
    thing = store.types["own_msgs/msg/Thing"](header=header, Values=np.arange(3.0))
    with Writer1(tmp_path / "a.bag") as writer:
        writer.write(
            writer.add_connection("/thing", "own_msgs/msg/Thing", typestore=store),
            START,
            store.serialize_ros1(thing, "own_msgs/msg/Thing"),
        )
    ((_, _, message),) = read(tmp_path / "a.bag")
    assert message.Values.tolist() == [0, 1, 2]
    assert stamp(message) == START


def test_ros1_images_and_calibrations_have_ros2_fields(tmp_path, messages):
    path = write_ros1(tmp_path / "a.bag", messages)
    with BagReader(path) as bag:
        chosen = bag.select()
        info = next(m for _, _, m in bag.messages([chosen.camera_info]))
        image = next(m for _, _, m in bag.messages([chosen.image]))
    assert info.k[0] == 80
    np.testing.assert_array_equal(decode_image(image), decode_image(messages[1][1]))


def test_selection_of_a_bag_looks_into_its_images(tmp_path, factory):
    depth = factory.image(START, "camera", np.ones((4, 4), np.float32))
    colour = factory.image(START, "camera", np.zeros((4, 4, 3), np.uint8))
    with BagWriter(tmp_path / "bag") as writer:
        writer.write("/kinect/range", depth, START)
        writer.write("/kinect/picture", colour, START)
    with BagReader(tmp_path / "bag") as bag:
        chosen = bag.select()
    assert (chosen.image, chosen.depth) == ("/kinect/picture", "/kinect/range")


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bag", "bag.mcap"])
def test_other_readers_take_what_we_write(tmp_path, messages, name):
    path = write_ours(tmp_path / name, messages)
    file = storage_of(path)
    with file.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert reader.get_header().profile == "ros2"
        assert summary.statistics.message_count == len(messages)
        assert {s.encoding for s in summary.schemas.values()} == {"ros2msg"}
        assert [m.log_time for _, _, m in reader.iter_messages()] == sorted(t for *_, t in messages)
    with Reader2(path) as reader:
        assert reader.message_count == len(messages)
        qos = {c.topic: c.ext.offered_qos_profiles[0] for c in reader.connections}
        assert qos["/tf_static"].durability.name == "TRANSIENT_LOCAL"
        assert qos["/camera/image_raw"].durability.name == "VOLATILE"
        hashes = {c.digest for c in reader.connections}
        if path.is_dir():
            assert all(h.startswith("RIHS01_") for h in hashes)


@pytest.mark.parametrize("distribution", ["humble", "jazzy"])
def test_metadata_speaks_the_language_of_its_distribution(tmp_path, distribution):
    import yaml

    make = MessageFactory(typestore(distribution))
    with BagWriter(tmp_path / "bag", distribution=distribution) as writer:
        writer.write("/tf_static", make.tf_message([]), START)
    about = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["ros_distro"] == distribution
    profiles = about["topics_with_message_count"][0]["topic_metadata"]["offered_qos_profiles"]
    if distribution == "humble":
        assert about["version"] == 8
        assert yaml.safe_load(profiles)[0]["durability"] == 1
    else:
        assert about["version"] == 9
        assert profiles[0]["durability"] == "transient_local"


def test_nothing_is_overwritten_unasked(tmp_path, messages):
    for name in ("bag", "bag.mcap"):
        path = write_ours(tmp_path / name, messages)
        with pytest.raises(BagError, match="exists"):
            BagWriter(path)
        with BagWriter(path, overwrite=True) as writer:
            writer.write(*messages[0])
        assert len(read(path)) == 1
    (tmp_path / "bag" / "thesis.tex").write_text("all my work")
    with pytest.raises(BagError, match="not just a recording"):
        BagWriter(tmp_path / "bag", overwrite=True)
    (tmp_path / "notes").write_text("more work")
    with pytest.raises(BagError, match="not just a recording"):
        BagWriter(tmp_path / "notes", overwrite=True)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot write"):
        BagWriter(tmp_path / "file" / "bag")


def test_an_exception_leaves_a_whole_file(tmp_path, messages):
    def work():
        with writer:
            for item in messages[:20]:
                writer.write(*item)
            raise ZeroDivisionError

    writer = BagWriter(tmp_path / "bag.mcap")
    with pytest.raises(ZeroDivisionError):
        work()
    with (tmp_path / "bag.mcap").open("rb") as stream:
        assert make_reader(stream).get_summary().statistics.message_count == 20
    writer.close()  # again does nothing
    with pytest.raises(BagError, match="closed"):
        writer.write(*messages[0])


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {folder!r})
from conftest import START, plane_messages
from flowodom.bags import BagWriter
messages = list(plane_messages(4))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
try:
    with BagWriter({path!r}) as writer:
        print("ready", flush=True)
        for k in range(2000):
            for topic, message, time in messages:
                writer.write(topic, message, time + k * 10**9)
            if k == 20:
                print("go", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_writer_that_is_stopped(tmp_path, number):
    path = tmp_path / "bag.mcap"
    script = SCRIPT.format(folder=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "go\n"
        process.send_signal(number)
        rest = process.communicate(timeout=60)[0]
    if number == signal.SIGINT:
        assert "interrupted" in rest
        with path.open("rb") as stream:
            reader = make_reader(stream, validate_crcs=True)
            assert reader.get_summary().statistics.message_count == sum(1 for _ in reader.iter_messages())
    assert len(read(path)) > 200


def fill(writer, messages, rounds=100):
    """Writes until the disk is full; returns how many messages were written."""
    done = 0
    for k in range(rounds):
        for topic, message, time in messages:
            try:
                writer.write(topic, message, time + k * 10**9)
            except BagError as error:
                return done, error
            done += 1
    raise AssertionError("the disk was never full")


class SmallDisk:
    """A raw file on a disk with ``room`` bytes, of which the reserve takes its share while it is there."""

    def __init__(self, file, spool, room):
        self.file, self.spool, self.room = file, spool, room

    def write(self, data):
        taken = self.file.tell() + (bags._Spool.ROOM if self.spool._reserve.exists() else 0)
        free = self.room - taken
        if free <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data[:free])

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_leaves_a_whole_recording(tmp_path, messages):
    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        writer._spool._file = SmallDisk(writer._spool._file, writer._spool, bags._Spool.ROOM + 3_000_000)
        done, error = fill(writer, messages)
        assert "No space left" in str(error)
        assert "stays readable" in str(error)
        with pytest.raises(BagError, match="No space left"):
            writer.write(*messages[0])
    with storage_of(path).open("rb") as stream:  # whole: with index, statistics and all that was written
        reader = make_reader(stream, validate_crcs=True)
        assert reader.get_summary().statistics.message_count >= done
    assert len(read(path)) >= done
    assert not list(path.glob(".*"))


def test_a_disk_that_takes_nothing_more_leaves_a_readable_one(tmp_path, messages):
    """Not even the room kept back can be had: here a limit on the file's size."""
    path = tmp_path / "bag"
    script = f"""
        import resource, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from conftest import plane_messages
        from test_bags import fill
        from flowodom.bags import BagWriter
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with BagWriter({str(path)!r}) as writer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))
            done, error = fill(writer, list(plane_messages(4)))
        print(done)
        print(error)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=True
    )
    done, error = result.stdout.splitlines()
    assert "File too large" in error
    got = read(path)
    assert len(got) > 0.7 * int(done)


def test_no_room_at_all_is_said_at_once(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bags, "_allocate", no_room)
    with pytest.raises(BagError, match="No space left"):
        BagWriter(tmp_path / "bag.mcap")
    assert not list(tmp_path.iterdir())


def test_real_recordings(recordings):
    expected = {"kitchen_rgbd": (240, True), "street_mono": (51, False), "desk_rgbd_10": (10, True)}
    for name, (frames, depth) in expected.items():
        with BagReader(recordings / name) as bag:
            chosen = bag.select()
            assert bag.topics[chosen.image].count == frames
            assert chosen.ground_truth == "/ground_truth/odom"
            assert chosen.camera_info is not None
            assert (chosen.depth is not None) == depth
            assert sum(1 for _ in bag.messages([chosen.image])) == frames
