from __future__ import annotations

import dataclasses
import sys

import cv2
import numpy as np
import pytest
from conftest import texture

from flowodom.errors import ConfigError, MessageError
from flowodom.geometry import PinholeCamera
from flowodom.messages import (
    DiagnosticStatus,
    MessageFactory,
    decode_depth,
    decode_image,
    deserialize,
    serialize,
    stamp,
    typestore,
)
from flowodom.rvl import decode_rvl

NOW = 1_700_000_000_123_456_789


@pytest.fixture
def picture():
    return texture(48, 64)


@pytest.fixture
def grey(picture):
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)


def through_wire(message):
    return deserialize(bytes(serialize(message)), message.__msgtype__)


@pytest.mark.parametrize("distribution", ["humble", "jazzy", "kilted", "lyrical"])
def test_every_distribution_has_the_types(distribution):
    make = MessageFactory(typestore(distribution))
    message = make.odometry(NOW, "odom", "base_link", np.eye(4))
    assert make.deserialize(make.serialize(message), message.__msgtype__).child_frame_id == "base_link"


def test_unknown_distribution_is_named():
    with pytest.raises(ConfigError, match=r"melodic.*jazzy"):
        typestore("melodic")


def test_stamp_is_exact(factory):
    assert stamp(factory.image(NOW, "camera", np.zeros((2, 2), np.uint8))) == NOW


@pytest.mark.parametrize(
    ("encoding", "convert"),
    [
        ("rgb8", lambda rgb: rgb),
        ("bgr8", lambda rgb: rgb[..., ::-1]),
        ("8UC3", lambda rgb: rgb[..., ::-1]),
        ("rgba8", lambda rgb: np.dstack((rgb, np.full(rgb.shape[:2], 9, np.uint8)))),
        ("bgra8", lambda rgb: np.dstack((rgb[..., ::-1], np.full(rgb.shape[:2], 9, np.uint8)))),
        ("8UC4", lambda rgb: np.dstack((rgb[..., ::-1], np.full(rgb.shape[:2], 9, np.uint8)))),
        ("rgb16", lambda rgb: rgb.astype(np.uint16) * 257),
        ("bgr16", lambda rgb: rgb[..., ::-1].astype(np.uint16) * 257),
    ],
)
def test_colours_come_out_as_rgb(factory, picture, encoding, convert):
    decoded = decode_image(through_wire(factory.image(NOW, "camera", convert(picture), encoding)))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_stays_grey(factory, grey, encoding):
    message = through_wire(factory.image(NOW, "camera", grey, encoding))
    decoded = decode_image(message)
    np.testing.assert_array_equal(decoded, grey)
    decoded[0, 0] += 1  # an array of its own


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
def test_deep_grey_keeps_its_picture_whatever_its_range(factory, grey, bits, encoding):
    deep = (grey.astype(np.uint16) << (bits - 8)).astype(np.uint16)
    decoded = decode_image(through_wire(factory.image(NOW, "camera", deep, encoding)))
    assert decoded.shape == grey.shape
    assert decoded.std() > 30
    assert np.corrcoef(decoded.ravel(), grey.ravel())[0, 1] > 0.99


def test_constant_deep_grey_is_constant(factory):
    decoded = decode_image(factory.image(NOW, "camera", np.full((8, 8), 0x8000, np.uint16), "mono16"))
    assert (decoded == 0x80).all()


BAYER = {"rggb": ((0, 1), (1, 2)), "bggr": ((2, 1), (1, 0)), "gbrg": ((1, 2), (0, 1)), "grbg": ((1, 0), (2, 1))}


def mosaic(rgb, order):
    raw = np.empty(rgb.shape[:2], dtype=rgb.dtype)
    for row in (0, 1):
        for column in (0, 1):
            raw[row::2, column::2] = rgb[row::2, column::2, BAYER[order][row][column]]
    return raw


@pytest.mark.parametrize("order", BAYER)
@pytest.mark.parametrize("depth", [8, 16])
def test_every_bayer_order(factory, order, depth):
    colour = np.broadcast_to(np.array([200, 90, 20], np.uint8), (32, 32, 3))
    raw = mosaic(colour, order).astype(np.uint16 if depth == 16 else np.uint8) * (257 if depth == 16 else 1)
    decoded = decode_image(factory.image(NOW, "camera", raw.astype(f"u{depth // 8}"), f"bayer_{order}{depth}"))
    assert decoded.shape == (32, 32, 3)
    np.testing.assert_allclose(decoded[4:-4, 4:-4], colour[4:-4, 4:-4], atol=1)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_both_yuv422(factory, encoding):
    red = np.array([180.0, 60, 40])
    # ITU-R BT.601, studio range.
    luma = 0.299 * red[0] + 0.587 * red[1] + 0.114 * red[2]
    y = round(16 + luma * 219 / 255)
    u = round(128 + (red[2] - luma) * 0.564 * 224 / 255)
    v = round(128 + (red[0] - luma) * 0.713 * 224 / 255)
    pair = [u, y, v, y] if encoding in ("yuv422", "uyvy") else [y, u, y, v]
    raw = np.tile(np.array(pair, np.uint8), (8, 8)).reshape(8, 16, 2)
    decoded = decode_image(factory.image(NOW, "camera", raw, encoding))
    assert decoded.shape == (8, 16, 3)
    np.testing.assert_allclose(decoded, np.broadcast_to(red, decoded.shape), atol=3)


@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "mono16", "bgra8"])
def test_row_padding_is_dropped(factory, picture, grey, encoding):
    plain = {
        "rgb8": picture,
        "mono8": grey,
        "mono16": grey.astype(np.uint16) * 257,
        "bgra8": cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA),
    }[encoding]
    message = factory.image(NOW, "camera", plain, encoding)
    rows = message.data.reshape(message.height, -1)
    padded = np.hstack((rows, np.full((message.height, 13), 255, np.uint8)))
    other = dataclasses.replace(message, step=padded.shape[1], data=padded.reshape(-1))
    np.testing.assert_array_equal(decode_image(other), decode_image(message))
    short_end = dataclasses.replace(other, data=other.data[:-13])  # the last row may lack its padding
    np.testing.assert_array_equal(decode_image(short_end), decode_image(message))


@pytest.mark.parametrize("encoding", ["mono16", "rgb16", "bayer_rggb16"])
def test_big_endian(factory, picture, grey, encoding):
    deep = (picture if encoding == "rgb16" else grey).astype(np.uint16) * 257
    little = factory.image(NOW, "camera", deep, encoding)
    big = dataclasses.replace(little, is_bigendian=1, data=deep.astype(">u2").reshape(-1).view(np.uint8))
    assert sys.byteorder == "little"
    np.testing.assert_array_equal(decode_image(big), decode_image(little))


def test_a_converter_can_stand_in_for_raw_colours(factory, picture):
    asked = []

    def convert(message, encoding):
        asked.append((message.encoding, encoding))
        return cv2.cvtColor(message.data.reshape(message.height, message.width, 3), cv2.COLOR_BGR2RGB)

    message = factory.image(NOW, "camera", picture[..., ::-1], "bgr8")
    np.testing.assert_array_equal(decode_image(message, convert=convert), picture)
    assert asked == [("bgr8", "rgb8")]


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_compressed_colour_and_grey(factory, kind):
    smooth = cv2.GaussianBlur(texture(64, 96), (0, 0), 4)
    for image in (smooth, np.ascontiguousarray(smooth[..., 1])):
        decoded = decode_image(through_wire(factory.compressed_image(NOW, "camera", image, kind)))
        assert decoded.shape == image.shape
        np.testing.assert_allclose(decoded.astype(int), image, atol=12 if kind == "jpeg" else 0)


def test_compressed_bayer_is_demosaiced(factory):
    colour = np.broadcast_to(np.array([200, 90, 20], np.uint8), (32, 32, 3))
    message = factory.compressed_image(NOW, "camera", mosaic(colour, "grbg"), "png")
    decoded = decode_image(dataclasses.replace(message, format="bayer_grbg8; png compressed bayer_grbg8"))
    np.testing.assert_allclose(decoded[4:-4, 4:-4], colour[4:-4, 4:-4], atol=1)


def test_deep_png(factory, picture):
    _, blob = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)
    message = dataclasses.replace(factory.compressed_image(NOW, "camera", picture, "png"), data=blob.reshape(-1))
    np.testing.assert_array_equal(decode_image(message), picture)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_cut_compressed_image_is_an_error(factory, kind):
    message = factory.compressed_image(NOW, "camera", texture(64, 64), kind)
    for size in (0, 5, message.data.size // 2, message.data.size - 20):
        with pytest.raises(MessageError):
            decode_image(dataclasses.replace(message, data=message.data[:size]))


def test_noise_is_no_compressed_image(factory, rng):
    message = factory.compressed_image(NOW, "camera", texture(64, 64))
    with pytest.raises(MessageError, match="jpeg or png"):
        decode_image(dataclasses.replace(message, data=rng.integers(0, 255, 999, dtype=np.uint8)))


@pytest.mark.parametrize("encoding", ["nv21", "", "64FC1", "32FC1"])
def test_unknown_image_encoding_names_itself_and_the_known(factory, encoding):
    message = factory.image(NOW, "camera", np.zeros((4, 4), np.float32), encoding)
    with pytest.raises(MessageError, match=rf"'{encoding}'.*mono8.*rgb8"):
        decode_image(message)


def test_truncated_and_empty_images_say_their_sizes(factory, picture):
    message = factory.image(NOW, "camera", picture)
    with pytest.raises(MessageError, match=r"64x48 of rgb8.*9216 bytes, got 9000"):
        decode_image(dataclasses.replace(message, data=message.data[:9000]))
    with pytest.raises(MessageError, match="step must be at least 192"):
        decode_image(dataclasses.replace(message, step=100))
    with pytest.raises(MessageError, match="0x0"):
        decode_image(dataclasses.replace(message, width=0, height=0))


def depth_image():
    depth = np.linspace(0.3, 9.0, 48 * 64, dtype=np.float32).reshape(48, 64)
    depth[:3] = np.nan
    return depth


def test_metres_and_millimetres(factory):
    depth = depth_image()
    odd = depth.copy()
    odd[0, :4] = 0, -1, np.inf, -np.inf
    np.testing.assert_array_equal(decode_depth(through_wire(factory.image(NOW, "camera", odd))), depth)
    millimetres = np.nan_to_num(depth * 1000).astype(np.uint16)
    for encoding in ("16UC1", "mono16"):
        decoded = decode_depth(through_wire(factory.image(NOW, "camera", millimetres, encoding)))
        assert decoded.dtype == np.float32
        np.testing.assert_allclose(decoded, depth, atol=1.1e-3)


def test_big_endian_padded_depth(factory):
    depth = depth_image()
    message = factory.image(NOW, "camera", depth)
    rows = depth.astype(">f4").view(np.uint8).reshape(48, -1)
    padded = np.hstack((rows, np.ones((48, 5), np.uint8)))
    other = dataclasses.replace(message, is_bigendian=1, step=padded.shape[1], data=padded.reshape(-1))
    np.testing.assert_array_equal(decode_depth(other), depth)


def test_unknown_depth_encoding(factory, picture):
    with pytest.raises(MessageError, match=r"'rgb8'.*16UC1, mono16, 32FC1"):
        decode_depth(factory.image(NOW, "camera", picture))
    message = factory.image(NOW, "camera", depth_image())
    with pytest.raises(MessageError, match="truncated"):
        decode_depth(dataclasses.replace(message, data=message.data[:-8]))


def test_compressed_depth_of_millimetres(factory):
    depth = depth_image()
    message = through_wire(factory.compressed_depth(NOW, "camera", depth))
    np.testing.assert_allclose(decode_depth(message), depth, atol=5.1e-4)
    bare = dataclasses.replace(message, format="16UC1; png compressed", data=message.data[12:])
    np.testing.assert_allclose(decode_depth(bare), depth, atol=5.1e-4)


def quantise(depth, maximum=10.0, resolution=100.0):
    """Inverse depth as compressed_depth_image_transport stores 32FC1."""
    a = resolution * (resolution + 1)
    b = 1 - a / maximum
    with np.errstate(invalid="ignore"):
        raw = np.where(np.isfinite(depth) & (depth < maximum), a / depth + b, 0)
    header = np.concatenate((np.array([0], "<i4").view(np.uint8), np.array([a, b], "<f4").view(np.uint8)))
    return header, raw.astype(np.uint16)


def encode_rvl(image):
    """RVL as compressed_depth_image_transport stores it, one nibble after the other."""
    nibbles = []

    def put(number):
        while True:
            nibble, number = number & 7, number >> 3
            nibbles.append(nibble | (8 if number else 0))
            if not number:
                return

    flat, at, previous = image.ravel().astype(int), 0, 0
    while at < flat.size:
        start = at
        while at < flat.size and flat[at] == 0:
            at += 1
        put(at - start)
        start = at
        while at < flat.size and flat[at] != 0:
            at += 1
        put(at - start)
        for value in flat[start:at]:
            delta = value - previous
            put(2 * delta if delta >= 0 else -2 * delta - 1)
            previous = value
    nibbles += [0] * (-len(nibbles) % 8)
    words = [sum(n << (28 - 4 * i) for i, n in enumerate(nibbles[k : k + 8])) for k in range(0, len(nibbles), 8)]
    height, width = image.shape
    return np.concatenate((np.array([width, height], "<u4"), np.array(words, "<u4"))).view(np.uint8)


def compressed(factory, form, header, body):
    message = factory.compressed_image(NOW, "camera", np.zeros((4, 4), np.uint8))
    return dataclasses.replace(message, format=form, data=np.concatenate((header, body)))


@pytest.mark.parametrize("packing", ["png", "rvl"])
def test_compressed_depth_of_metres(factory, packing):
    depth = depth_image()
    header, raw = quantise(depth)
    body = cv2.imencode(".png", raw)[1].reshape(-1) if packing == "png" else encode_rvl(raw)
    decoded = decode_depth(compressed(factory, f"32FC1; compressedDepth {packing}", header, body))
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(depth))
    np.testing.assert_allclose(decoded, depth, rtol=2e-3)


def test_rvl_of_millimetres(factory, rng):
    image = rng.integers(0, 65535, (30, 40)).astype(np.uint16)
    image[rng.random(image.shape) < 0.4] = 0
    image[0] = 0
    image[-1] = 0
    np.testing.assert_array_equal(decode_rvl(encode_rvl(image)), image)
    decoded = decode_depth(compressed(factory, "16UC1; compressedDepth rvl", np.zeros(12, np.uint8), encode_rvl(image)))
    np.testing.assert_allclose(np.nan_to_num(decoded), image / 1000, rtol=1e-6)


def test_damaged_compressed_depth(factory, rng):
    good = factory.compressed_depth(NOW, "camera", depth_image())
    for size in (0, 8, 12, 40, good.data.size - 30):
        with pytest.raises(MessageError):
            decode_depth(dataclasses.replace(good, data=good.data[:size]))
    packed = encode_rvl(rng.integers(1, 60000, (30, 40)).astype(np.uint16))
    for body in (packed[:6], packed[:8], packed[: packed.size // 2], rng.integers(0, 255, 400, dtype=np.uint8)):
        with pytest.raises(MessageError):
            decode_rvl(body)
    with pytest.raises(MessageError, match="neither png nor rvl"):
        decode_depth(compressed(factory, "16UC1; compressedDepth zip", np.zeros(12, np.uint8), packed))
    with pytest.raises(MessageError, match="16-bit"):
        decode_depth(factory.compressed_image(NOW, "camera", np.zeros((4, 4), np.uint8), "png"))


def pose():
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.array([0.3, -0.2, 0.9]))[0]
    matrix[:3, 3] = 1, 2, 3
    return matrix


def test_odometry_carries_pose_twist_and_covariances(factory, rng):
    first, second = rng.normal(size=(6, 6)), rng.normal(size=(6, 6))
    message = through_wire(factory.odometry(NOW, "odom", "base_link", pose(), first, np.arange(6), second))
    assert (message.header.frame_id, message.child_frame_id, stamp(message)) == ("odom", "base_link", NOW)
    place, turn = message.pose.pose.position, message.pose.pose.orientation
    assert (place.x, place.y, place.z) == (1, 2, 3)
    rotation = cv2.Rodrigues(np.array([0.3, -0.2, 0.9]))[0]
    axis = np.array([0.3, -0.2, 0.9])
    half = np.linalg.norm(axis) / 2
    expected = [*(axis / (2 * half) * np.sin(half)), np.cos(half)]
    np.testing.assert_allclose([turn.x, turn.y, turn.z, turn.w], expected, atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(message.pose.covariance.reshape(6, 6), first)
    np.testing.assert_array_equal(message.twist.covariance.reshape(6, 6), second)
    twist = message.twist.twist
    assert (twist.linear.x, twist.linear.z, twist.angular.x, twist.angular.z) == (0, 2, 3, 5)


def test_transforms_and_path(factory):
    tree = through_wire(factory.tf_message([factory.transform(NOW, "odom", "base_link", pose())]))
    assert tree.transforms[0].transform.translation.z == 3
    assert tree.transforms[0].child_frame_id == "base_link"
    poses = [factory.pose_stamped(NOW + i, "odom", pose()) for i in range(3)]
    path = through_wire(factory.path(NOW, "odom", poses))
    assert [stamp(p) for p in path.poses] == [NOW, NOW + 1, NOW + 2]


def test_point_cloud_layout(factory, rng):
    xyz = rng.normal(size=(100, 3)).astype(np.float32)
    colours = rng.integers(0, 256, (100, 3)).astype(np.uint8)
    fields = {"x": xyz[:, 0], "y": xyz[:, 1], "z": xyz[:, 2], "rgb": colours, "weight": np.ones(100, np.float32)}
    cloud = through_wire(factory.point_cloud(NOW, "camera", fields))
    assert [(f.name, f.offset, f.datatype, f.count) for f in cloud.fields] == [
        (name, 4 * i, 7, 1) for i, name in enumerate(fields)
    ]
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (1, 100, 20, 2000)
    table = cloud.data.view("<f4").reshape(100, 5)
    np.testing.assert_array_equal(table[:, :3], xyz)
    # RViz and Foxglove take the bits of the float as 0x00RRGGBB.
    packed = np.ascontiguousarray(table[:, 3]).view("<u4")
    np.testing.assert_array_equal(np.stack((packed >> 16, packed >> 8 & 255, packed & 255), axis=1), colours)


def test_point_cloud_of_nothing_and_of_wrong_shapes(factory):
    empty = through_wire(factory.point_cloud(NOW, "camera", {"x": np.empty(0, np.float32)}))
    assert (empty.width, empty.data.size) == (0, 0)
    with pytest.raises(MessageError, match=r"one N.*\(2,\).*\(3,\)"):
        factory.point_cloud(NOW, "camera", {"x": np.zeros(2, np.float32), "y": np.zeros(3, np.float32)})
    with pytest.raises(MessageError, match="int64"):
        factory.point_cloud(NOW, "camera", {"x": np.zeros(2, np.int64)})


def test_diagnostics(factory):
    status = DiagnosticStatus("odometry", 1, "low parallax", {"inliers": 12, "ratio": 0.5})
    message = through_wire(factory.diagnostics(NOW, [status]))
    got = message.status[0]
    assert (got.name, got.level, got.message) == ("odometry", 1, "low parallax")
    assert [(v.key, v.value) for v in got.values] == [("inliers", "12"), ("ratio", "0.5")]


def test_image_needs_an_encoding_where_none_goes_without_saying(factory):
    with pytest.raises(MessageError, match="say the encoding"):
        factory.image(NOW, "camera", np.zeros((4, 4, 2), np.uint8))


def test_camera_info(factory):
    camera = PinholeCamera(fx=500, fy=501, cx=320, cy=240, width=640, height=480)
    info = through_wire(factory.camera_info(NOW, "camera", camera, distortion=[0.1, 0, 0, 0, 0]))
    assert info.k.tolist() == [500, 0, 320, 0, 501, 240, 0, 0, 1]
    assert (info.width, info.height, info.d[0]) == (640, 480, 0.1)


def test_bytes_that_are_no_message():
    with pytest.raises(MessageError, match="sensor_msgs/msg/Image"):
        deserialize(b"\x00\x01\x00\x00\x01", "sensor_msgs/msg/Image")
    with pytest.raises(MessageError, match="unknown"):
        deserialize(b"\x00\x01\x00\x00\x01", "other_msgs/msg/Thing")
