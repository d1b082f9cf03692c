"""ROS messages to arrays and back, without ROS.

Messages are the dataclasses of a ``rosbags`` typestore, or anything with the same fields. ``decode_image`` and
``decode_depth`` take raw and compressed messages alike; ``MessageFactory`` makes the messages that flowodom publishes.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from rosbags.image import ImageError, image_to_cvimage
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from flowodom.errors import ConfigError, MessageError
from flowodom.geometry import PinholeCamera, se3
from flowodom.rvl import decode_rvl

NANOSECONDS = 1_000_000_000
"""Nanoseconds in a second; stamps are integers of them."""

Converter = Callable[[Any, str], NDArray[Any]]
"""Takes a raw Image message and a wanted encoding, returns the (H, W) or (H, W, 3) array: cv_bridge's signature."""

_COLOUR = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "rgba8": ("u1", 4),
    "bgra8": ("u1", 4),
    "rgb16": ("u2", 3),
    "bgr16": ("u2", 3),
    "rgba16": ("u2", 4),
    "bgra16": ("u2", 4),
    **{f"bayer_{order}8": ("u1", 1) for order in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{order}16": ("u2", 1) for order in ("rggb", "bggr", "gbrg", "grbg")},
    "yuv422": ("u1", 2),
    "uyvy": ("u1", 2),
    "yuv422_yuy2": ("u1", 2),
    "yuyv": ("u1", 2),
}
"""Encodings that come out as RGB, with their dtype and channels."""

_GREY = {"mono8": ("u1", 1), "mono16": ("u2", 1)}
"""Encodings that come out as grey."""

_SYNONYMS = {"8UC1": "mono8", "16UC1": "mono16", "8UC3": "bgr8", "8UC4": "bgra8", "16UC3": "bgr16", "16UC4": "bgra16"}
"""OpenCV's type names, which say nothing about colours, and the order that OpenCV itself keeps."""

_DEPTH = {"16UC1": ("u2", 1), "mono16": ("u2", 1), "32FC1": ("f4", 1)}
"""Encodings of depth images: millimetres twice, then metres."""

MARKERS = {"arrow": 0, "cube": 1, "line_strip": 4, "text_view_facing": 9}
"""Kinds of visualization_msgs/Marker that are used, with their numbers."""

_PNG = b"\x89PNG\r\n\x1a\n"
_COMPRESSED_DEPTH_HEADER = 12


@functools.cache
def typestore(distribution: str = "jazzy") -> Typestore:
    """Returns the message types of a ROS 2 distribution.

    Args:
        distribution: ``humble``, ``jazzy``, ``kilted``, ``lyrical`` or any other that rosbags ships.

    Raises:
        ConfigError: There is no such distribution.
    """
    known = {s.name.removeprefix("ROS2_").lower(): s for s in Stores if s.name.startswith("ROS2_")}
    if distribution not in known:
        raise ConfigError(f"unknown ROS 2 distribution {distribution!r}; there are: {', '.join(known)}")
    return get_typestore(known[distribution])


def serialize(message: Any, store: Typestore | None = None) -> memoryview:
    """Returns the CDR bytes (XCDR1, little endian, with their 4-byte header) of a message.

    Args:
        message: A typestore message.
        store: The message types; those of ``typestore()`` when None.

    Raises:
        MessageError: The message does not fit its own definition.
    """
    try:
        return (store or typestore()).serialize_cdr(message, message.__msgtype__)
    except (SerdeError, KeyError, AttributeError, ValueError) as error:
        raise MessageError(f"cannot serialize {type(message).__name__}: {error!r}") from error


def deserialize(data: bytes | memoryview, msgtype: str, store: Typestore | None = None) -> Any:
    """Returns the message in CDR bytes; its arrays are read-only views of ``data``.

    Args:
        data: CDR with its 4-byte header.
        msgtype: Type name such as ``sensor_msgs/msg/Image``.
        store: The message types; those of ``typestore()`` when None.

    Raises:
        MessageError: The type is unknown or the bytes do not hold one such message.
    """
    try:
        return (store or typestore()).deserialize_cdr(memoryview(data), msgtype)
    except KeyError as error:
        raise MessageError(f"message type {msgtype} is unknown: no definition of {error}") from error
    except SerdeError as error:
        raise MessageError(f"{len(data)} bytes do not hold one {msgtype}: {error}") from error


def stamp(message: Any) -> int:
    """Returns the time of a stamped message in integer nanoseconds, from its header."""
    time = message.header.stamp
    return int(time.sec) * NANOSECONDS + int(time.nanosec)


def decode_image(message: Any, *, convert: Converter | None = None) -> NDArray[np.uint8]:
    """Returns the picture in an Image or CompressedImage message.

    Raw images: mono8/16, rgb, bgr, rgba, bgra of 8 or 16 bits, all Bayer orders, YUV 4:2:2 as UYVY and YUYV, rows
    padded or not, either byte order; 8UC1, 16UC1, 8UC3 and so on count as mono or in OpenCV's order (BGR). Compressed
    images: jpeg and png, of 8 or 16 bits. Colours of 16 bits keep their upper 8. Grey of 16 bits rarely fills its range
    (10, 12 and 14-bit sensors, thermal cameras), so each image is stretched on its own: its 1st to 99th percentile
    becomes 16 to 239 and what lies beyond is clipped.

    Args:
        message: sensor_msgs/Image or sensor_msgs/CompressedImage.
        convert: Converts raw colour images in place of rosbags-image: ``cv_bridge.CvBridge().imgmsg_to_cv2`` fits.

    Returns:
        (H, W) grey or (H, W, 3) RGB, an array of its own.

    Raises:
        MessageError: The encoding is unknown, or the data are truncated or damaged.
    """
    if not hasattr(message, "encoding"):
        return _decompress_image(message)
    encoding = _SYNONYMS.get(message.encoding, message.encoding.lower())
    if encoding in _GREY:
        grey = _rows(message, *_GREY[encoding])
        return _stretch(grey) if grey.dtype.itemsize == 2 else np.array(grey)
    if encoding in _COLOUR:
        return _to_rgb(message, encoding, convert or image_to_cvimage)
    raise MessageError(
        f"image encoding {message.encoding!r} is not supported; use one of {', '.join((*_GREY, *_COLOUR, *_SYNONYMS))}"
    )


def _to_rgb(message: Any, encoding: str, convert: Converter) -> NDArray[np.uint8]:
    rows = _rows(message, *_COLOUR[encoding])
    packed = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
    plain = dataclasses.replace(
        message, encoding=encoding, is_bigendian=0, step=packed.size // message.height, data=packed
    )
    try:
        image = convert(plain, "rgb8")
    except (ImageError, cv2.error) as error:
        raise MessageError(f"cannot convert {encoding} of {message.width}x{message.height} to RGB: {error}") from error
    return np.array(image, dtype=np.uint8) if np.shares_memory(image, packed) else np.asarray(image, dtype=np.uint8)


def _rows(message: Any, dtype: str, channels: int) -> NDArray[Any]:
    """Returns a view of an Image's data: (H, W) or (H, W, channels), native byte order, without row padding."""
    width, height = int(message.width), int(message.height)
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    row = width * channels * kind.itemsize
    data = np.frombuffer(message.data, dtype=np.uint8)
    if not row or not height:
        raise MessageError(f"image is empty: its size is {width}x{height}")
    step = int(message.step) or row
    if step < row:
        raise MessageError(
            f"image step must be at least {row} bytes for {width} pixels of {message.encoding}, got {step}"
        )
    if data.size < step * (height - 1) + row:
        raise MessageError(
            f"image data are truncated: {width}x{height} of {message.encoding} with a step of {step} takes "
            f"{step * height} bytes, got {data.size}"
        )
    if step == row:
        table = data[: row * height].reshape(height, row)
    else:
        table = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    table = (table if table.flags.c_contiguous else np.ascontiguousarray(table)).view(kind)
    if not kind.isnative:
        table = table.astype(kind.newbyteorder("="))
    return table if channels == 1 else table.reshape(height, width, channels)


def _stretch(grey: NDArray[np.uint16]) -> NDArray[np.uint8]:
    sample = grey[:: max(1, grey.shape[0] // 240), :: max(1, grey.shape[1] // 320)]
    low, high = np.percentile(sample, (1, 99))
    if high <= low:
        return np.full(grey.shape, int(low) >> 8, dtype=np.uint8)
    gain = 223 / (high - low)
    return np.clip(grey.astype(np.float32) * gain + (16 - low * gain), 0, 255).astype(np.uint8)


def _decompress_image(message: Any) -> NDArray[np.uint8]:
    image = _imdecode(message, message.data)
    if image.ndim == 2:
        order = re.match(r"bayer_(rggb|bggr|gbrg|grbg)", message.format.lower())
        if order:
            return _demosaic(image, order.group(0))
        return _stretch(image) if image.dtype == np.uint16 else image
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _demosaic(image: NDArray[Any], order: str) -> NDArray[np.uint8]:
    raw = typestore().types["sensor_msgs/msg/Image"](
        header=None,  # type: ignore[arg-type]
        height=image.shape[0],
        width=image.shape[1],
        encoding=f"{order}{8 * image.dtype.itemsize}",
        is_bigendian=0,
        step=image.strides[0],
        data=image.reshape(-1).view(np.uint8),
    )
    return decode_image(raw)


def _imdecode(message: Any, data: Any) -> NDArray[Any]:
    """Returns the jpeg or png in ``data`` as OpenCV has it: grey or BGR, 8 or 16 bits."""
    blob = np.frombuffer(data, dtype=np.uint8)
    head, tail = blob[:8].tobytes(), blob[-4096:].tobytes()
    whole = True
    if head.startswith(b"\xff\xd8"):
        whole = b"\xff\xd9" in tail
    elif head == _PNG:
        whole = b"IEND" in tail
    if not whole:
        raise MessageError(
            f"compressed image ({message.format!r}) is truncated: {blob.size} bytes without their end mark"
        )
    try:
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imdecode(blob, flags) if blob.size else None
    except cv2.error:
        image = None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise MessageError(
            f"compressed image of format {message.format!r} and {blob.size} bytes (starting {head.hex(' ')}) "
            "is not a sound jpeg or png"
        )
    return np.asarray(image)


def decode_depth(message: Any) -> NDArray[np.float32]:
    """Returns the depth image in an Image or CompressedImage message.

    Raw: 16UC1 and mono16 (millimetres, 0 invalid), 32FC1 (metres). Compressed: ``compressedDepth`` of both kinds (16UC1
    as it is, 32FC1 as quantised inverse depth), each as png or rvl, and plain 16-bit png (millimetres).

    Args:
        message: sensor_msgs/Image or sensor_msgs/CompressedImage.

    Returns:
        (H, W) metres along the optical axis; NaN where the depth is unknown: not finite, zero or negative (REP-118).

    Raises:
        MessageError: The encoding is unknown, or the data are truncated or damaged.
    """
    if not hasattr(message, "encoding"):
        return _decompress_depth(message)
    if message.encoding not in _DEPTH:
        raise MessageError(
            f"depth encoding {message.encoding!r} is not supported; use one of {', '.join(_DEPTH)} or compressedDepth"
        )
    return _metres(_rows(message, *_DEPTH[message.encoding]))


def _metres(raw: NDArray[Any]) -> NDArray[np.float32]:
    """Returns metres of millimetres in uint16 or of metres in float32, NaN where invalid; a new array."""
    if raw.dtype == np.uint16:
        depth = np.multiply(raw, np.float32(0.001), dtype=np.float32)
        depth[raw == 0] = np.nan
        return depth
    depth = np.array(raw, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def _decompress_depth(message: Any) -> NDArray[np.float32]:
    """Reads compressedDepth: a 12-byte header (its kind, and the two quantisation parameters), then png or rvl."""
    blob = np.frombuffer(message.data, dtype=np.uint8)
    if blob[:8].tobytes() == _PNG:
        raw, parameters = _imdecode(message, blob), None
    else:
        if blob.size <= _COMPRESSED_DEPTH_HEADER:
            raise MessageError(f"compressed depth ({message.format!r}) is truncated: {blob.size} bytes")
        parameters = blob[4:_COMPRESSED_DEPTH_HEADER].view("<f4")
        body = blob[_COMPRESSED_DEPTH_HEADER:]
        if body[:8].tobytes() == _PNG:
            raw = _imdecode(message, body)
        elif "rvl" in message.format.lower():
            raw = decode_rvl(body)
        else:
            raise MessageError(
                f"compressed depth of format {message.format!r} is neither png nor rvl: "
                f"its {body.size} bytes after the header start {body[:8].tobytes().hex(' ')}"
            )
    if raw.ndim != 2 or raw.dtype != np.uint16:
        raise MessageError(f"compressed depth must hold 16-bit single-channel pixels, got {raw.dtype} {raw.shape}")
    if parameters is None or not message.format.upper().startswith("32FC1"):
        return _metres(raw)
    scale, offset = float(parameters[0]), float(parameters[1])
    inverse = (raw.astype(np.float32) - np.float32(offset)) * np.float32(1 / scale if scale else np.nan)
    with np.errstate(divide="ignore"):
        depth = np.divide(1, inverse, dtype=np.float32)
    depth[raw == 0] = np.nan
    return _metres(depth)


@dataclasses.dataclass(frozen=True)
class DiagnosticStatus:
    """The state of one part, as diagnostics show it.

    Attributes:
        name: Which part.
        level: 0 ok, 1 warning, 2 error, 3 stale.
        message: One line for people.
        values: Figures beside it.
        hardware_id: Which device, empty for none.
    """

    name: str
    level: int
    message: str
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)
    hardware_id: str = ""


class MessageFactory:
    """Makes ROS messages of one distribution.

    Poses and motions are (4, 4), torch or NumPy; stamps are integer nanoseconds.
    """

    def __init__(self, store: Typestore | None = None) -> None:
        self.store = store or typestore()

    def _new(self, msgtype: str, /, **fields: Any) -> Any:
        return self.store.types[msgtype](**fields)

    def serialize(self, message: Any) -> memoryview:
        """Returns the CDR bytes of ``message``."""
        return serialize(message, self.store)

    def deserialize(self, data: bytes | memoryview, msgtype: str) -> Any:
        """Returns the message of type ``msgtype`` in CDR bytes."""
        return deserialize(data, msgtype, self.store)

    def time(self, stamp: int) -> Any:
        """Returns a builtin_interfaces/Time."""
        return self._new("builtin_interfaces/msg/Time", sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)

    def header(self, stamp: int, frame_id: str) -> Any:
        """Returns a std_msgs/Header."""
        return self._new("std_msgs/msg/Header", stamp=self.time(stamp), frame_id=frame_id)

    def _vector(self, kind: str, values: ArrayLike) -> Any:
        x, y, z = (float(v) for v in np.asarray(values, dtype=np.float64))
        return self._new(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)

    def _rotation(self, motion: Any) -> Any:
        x, y, z, w = _quaternion(np.asarray(motion, dtype=np.float64)[:3, :3].tobytes())
        return self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)

    def pose(self, pose: Any) -> Any:
        """Returns the geometry_msgs/Pose of a (4, 4) ``T_frame_child``."""
        return self._new(
            "geometry_msgs/msg/Pose",
            position=self._vector("Point", np.asarray(pose)[:3, 3]),
            orientation=self._rotation(pose),
        )

    def pose_stamped(self, stamp: int, frame_id: str, pose: Any) -> Any:
        """Returns the geometry_msgs/PoseStamped of a (4, 4) ``T_frame_child``."""
        return self._new("geometry_msgs/msg/PoseStamped", header=self.header(stamp, frame_id), pose=self.pose(pose))

    def odometry(
        self,
        stamp: int,
        frame_id: str,
        child_frame_id: str,
        pose: Any,
        pose_covariance: Any = None,
        twist: Any = None,
        twist_covariance: Any = None,
    ) -> Any:
        """Returns a nav_msgs/Odometry.

        Args:
            stamp: Nanoseconds.
            frame_id: Frame of the pose.
            child_frame_id: Frame that the pose is of, and of the twist.
            pose: (4, 4) ``T_frame_child``.
            pose_covariance: (6, 6) of x y z rotX rotY rotZ in ``frame_id``; zeros (unknown) when None.
            twist: (6,) linear m/s then angular rad/s, in ``child_frame_id``; zeros when None.
            twist_covariance: (6, 6) likewise, in ``child_frame_id``; zeros when None.
        """
        speed = np.zeros(6) if twist is None else np.asarray(twist, dtype=np.float64)
        return self._new(
            "nav_msgs/msg/Odometry",
            header=self.header(stamp, frame_id),
            child_frame_id=child_frame_id,
            pose=self._new(
                "geometry_msgs/msg/PoseWithCovariance", pose=self.pose(pose), covariance=_covariance(pose_covariance)
            ),
            twist=self._new(
                "geometry_msgs/msg/TwistWithCovariance",
                twist=self._new(
                    "geometry_msgs/msg/Twist",
                    linear=self._vector("Vector3", speed[:3]),
                    angular=self._vector("Vector3", speed[3:]),
                ),
                covariance=_covariance(twist_covariance),
            ),
        )

    def transform(self, stamp: int, frame_id: str, child_frame_id: str, motion: Any) -> Any:
        """Returns the geometry_msgs/TransformStamped of a (4, 4) ``T_frame_child``."""
        return self._new(
            "geometry_msgs/msg/TransformStamped",
            header=self.header(stamp, frame_id),
            child_frame_id=child_frame_id,
            transform=self._new(
                "geometry_msgs/msg/Transform",
                translation=self._vector("Vector3", np.asarray(motion)[:3, 3]),
                rotation=self._rotation(motion),
            ),
        )

    def tf_message(self, transforms: Iterable[Any]) -> Any:
        """Returns the tf2_msgs/TFMessage of TransformStamped messages."""
        return self._new("tf2_msgs/msg/TFMessage", transforms=list(transforms))

    def path(self, stamp: int, frame_id: str, poses: Iterable[Any]) -> Any:
        """Returns the nav_msgs/Path of PoseStamped messages (keep those of earlier frames, do not make them anew)."""
        return self._new("nav_msgs/msg/Path", header=self.header(stamp, frame_id), poses=list(poses))

    def point_cloud(self, stamp: int, frame_id: str, fields: Mapping[str, Any]) -> Any:
        """Returns an unorganised sensor_msgs/PointCloud2.

        Args:
            stamp: Nanoseconds.
            frame_id: Frame of the points.
            fields: Name to (N,) array, in order, float32 unless the array is of another NumPy type that PointField
                has; ``rgb`` is (N, 3) uint8 and is packed into one float32 as RViz and Foxglove expect it.

        Raises:
            MessageError: The fields differ in length, or one has a type that PointField lacks.
        """
        arrays = {name: _field(name, value) for name, value in fields.items()}
        sizes = {name: array.shape for name, array in arrays.items()}
        if len(set(sizes.values())) > 1 or any(len(size) != 1 for size in sizes.values()):
            raise MessageError(f"fields of a point cloud must be (N,) of one N, got {sizes}")
        count = next(iter(sizes.values()))[0] if sizes else 0
        layout = np.dtype([(name, array.dtype) for name, array in arrays.items()])
        points = np.empty(count, dtype=layout)
        for name, array in arrays.items():
            points[name] = array
        return self._new(
            "sensor_msgs/msg/PointCloud2",
            header=self.header(stamp, frame_id),
            height=1,
            width=count,
            fields=[
                self._new(
                    "sensor_msgs/msg/PointField",
                    name=name,
                    offset=layout.fields[name][1],  # type: ignore[index]
                    datatype=_POINT_FIELD[array.dtype.str[1:]],
                    count=1,
                )
                for name, array in arrays.items()
            ],
            is_bigendian=False,
            point_step=layout.itemsize,
            row_step=layout.itemsize * count,
            data=points.view(np.uint8) if count else np.empty(0, dtype=np.uint8),
            is_dense=True,
        )

    def marker(
        self,
        stamp: int,
        frame_id: str,
        namespace: str,
        number: int,
        kind: str,
        *,
        colour: Sequence[float],
        size: Sequence[float],
        lifetime: float,
        pose: Any = None,
        points: Any = (),
        text: str = "",
    ) -> Any:
        """Returns a visualization_msgs/Marker.

        Args:
            stamp: Nanoseconds.
            frame_id: Frame of pose and points.
            namespace: With ``number`` it names the marker; a newer one of that name replaces it.
            number: See ``namespace``.
            kind: One of ``MARKERS``.
            colour: Red, green, blue and opacity, 0 to 1.
            size: Its scale along x, y and z, metres, as its kind takes it.
            lifetime: Seconds after which it vanishes.
            pose: (4, 4) ``T_frame_marker``; identity when None.
            points: (N, 3) points of arrows and lines.
            text: What it says.
        """
        red, green, blue, opacity = colour
        duration = self._new(
            "builtin_interfaces/msg/Duration", sec=int(lifetime), nanosec=int(lifetime % 1 * NANOSECONDS)
        )
        fields = {
            "header": self.header(stamp, frame_id),
            "ns": namespace,
            "id": number,
            "type": MARKERS[kind],
            "action": 0,
            "pose": self.pose(np.eye(4) if pose is None else pose),
            "scale": self._vector("Vector3", size),
            "color": self._new("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=opacity),
            "lifetime": duration,
            "frame_locked": False,
            "points": [self._vector("Point", point) for point in np.asarray(points, dtype=np.float64)],
            "colors": [],
            "texture_resource": "",
            "texture": self._new(
                "sensor_msgs/msg/CompressedImage", header=self.header(0, ""), format="", data=np.empty(0, np.uint8)
            ),
            "uv_coordinates": [],
            "text": text,
            "mesh_resource": "",
            "mesh_use_embedded_materials": False,
        }
        msgtype = "visualization_msgs/msg/Marker"
        names = {name for name, _ in self.store.fielddefs[msgtype][1]}
        if "mesh_file" in names:
            fields["mesh_file"] = self._new("visualization_msgs/msg/MeshFile", filename="", data=np.empty(0, np.uint8))
        # Distributions before Humble know no textures.
        return self._new(msgtype, **{name: value for name, value in fields.items() if name in names})

    def marker_array(self, markers: Iterable[Any]) -> Any:
        """Returns the visualization_msgs/MarkerArray of Marker messages."""
        return self._new("visualization_msgs/msg/MarkerArray", markers=list(markers))

    def diagnostics(self, stamp: int, statuses: Iterable[DiagnosticStatus]) -> Any:
        """Returns a diagnostic_msgs/DiagnosticArray."""
        return self._new(
            "diagnostic_msgs/msg/DiagnosticArray",
            header=self.header(stamp, ""),
            status=[
                self._new(
                    "diagnostic_msgs/msg/DiagnosticStatus",
                    level=s.level,
                    name=s.name,
                    message=s.message,
                    hardware_id=s.hardware_id,
                    values=[
                        self._new("diagnostic_msgs/msg/KeyValue", key=key, value=str(value))
                        for key, value in s.values.items()
                    ],
                )
                for s in statuses
            ],
        )

    def image(self, stamp: int, frame_id: str, image: Any, encoding: str | None = None) -> Any:
        """Returns a sensor_msgs/Image.

        Args:
            stamp: Nanoseconds.
            frame_id: Optical frame of the camera.
            image: (H, W) or (H, W, channels) array; not copied where it is contiguous.
            encoding: Its encoding; by default mono8, 16UC1 or 32FC1 by dtype, rgb8 for three channels of uint8.

        Raises:
            MessageError: No encoding was given and none goes without saying.
        """
        array = np.ascontiguousarray(image)
        if encoding is None:
            key = (array.dtype.str[1:], array.shape[2] if array.ndim == 3 else 1)
            encodings = {("u1", 1): "mono8", ("u1", 3): "rgb8", ("u2", 1): "16UC1", ("f4", 1): "32FC1"}
            if key not in encodings:
                raise MessageError(f"say the encoding of an image of {array.dtype} {array.shape}")
            encoding = encodings[key]
        return self._new(
            "sensor_msgs/msg/Image",
            header=self.header(stamp, frame_id),
            height=array.shape[0],
            width=array.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=array.strides[0],
            data=array.reshape(-1).view(np.uint8),
        )

    def compressed_image(self, stamp: int, frame_id: str, image: NDArray[np.uint8], kind: str = "jpeg") -> Any:
        """Returns a sensor_msgs/CompressedImage of an (H, W) grey or (H, W, 3) RGB image as ``jpeg`` or ``png``."""
        bgr = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, blob = cv2.imencode(f".{kind}", bgr)
        name = "mono8" if image.ndim == 2 else "bgr8"
        return self._new(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(stamp, frame_id),
            format=f"{name}; {kind} compressed {name}",
            data=blob.reshape(-1),
        )

    def compressed_depth(self, stamp: int, frame_id: str, depth: NDArray[np.float32]) -> Any:
        """Returns a CompressedImage as compressedDepth has it: (H, W) metres as 16UC1 millimetres in a png."""
        millimetres = np.nan_to_num(depth * 1000, nan=0, posinf=0, neginf=0).round().clip(0, 65535).astype(np.uint16)
        _, blob = cv2.imencode(".png", millimetres, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        return self._new(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(stamp, frame_id),
            format="16UC1; compressedDepth png",
            data=np.concatenate((np.zeros(_COMPRESSED_DEPTH_HEADER, dtype=np.uint8), blob.reshape(-1))),
        )

    def camera_info(
        self,
        stamp: int,
        frame_id: str,
        camera: PinholeCamera,
        *,
        distortion: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0),
        model: str = "plumb_bob",
        baseline: float = 0.0,
    ) -> Any:
        """Returns a sensor_msgs/CameraInfo.

        Args:
            stamp: Nanoseconds.
            frame_id: Optical frame of the camera.
            camera: Its pinhole part, for K and P.
            distortion: Coefficients D.
            model: plumb_bob, rational_polynomial or equidistant.
            baseline: Metres by which it is to the right of the camera from which P counts.
        """
        fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
        return self._new(
            "sensor_msgs/msg/CameraInfo",
            header=self.header(stamp, frame_id),
            height=camera.height,
            width=camera.width,
            distortion_model=model,
            d=np.asarray(distortion, dtype=np.float64),
            k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1], dtype=np.float64),
            r=np.eye(3).reshape(-1),
            p=np.array([fx, 0, cx, -fx * baseline, 0, fy, cy, 0, 0, 0, 1, 0], dtype=np.float64),
            binning_x=0,
            binning_y=0,
            roi=self._new(
                "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )


@functools.lru_cache(maxsize=16)
def _quaternion(rotation: bytes) -> tuple[float, ...]:
    """Returns x, y, z, w of nine float64; one pose goes out in several messages, so the last few are kept."""
    matrix = torch.from_numpy(np.frombuffer(rotation, dtype=np.float64).reshape(3, 3).copy())
    return tuple(se3.quaternion(matrix).tolist())


_POINT_FIELD = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 8}


def _field(name: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if name == "rgb" and array.ndim == 2:
        packed = (array[:, 0].astype(np.uint32) << 16) | (array[:, 1].astype(np.uint32) << 8) | array[:, 2]
        return packed.view(np.float32)
    if array.dtype.str[1:] not in _POINT_FIELD:
        raise MessageError(f"field {name} of a point cloud cannot be of type {array.dtype}; make it float32")
    return array


def _covariance(matrix: Any) -> NDArray[np.float64]:
    return np.zeros(36) if matrix is None else np.ascontiguousarray(matrix, dtype=np.float64).reshape(36)
