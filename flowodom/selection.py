"""Which topics of a recording are the camera, its calibration, its depth, the other eye of its rig, and the truth.

Topics are told apart by type first, then by the words in their names, then by how well names fit together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flowodom.errors import BagError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
POSE_TYPES = (
    "nav_msgs/msg/Odometry",
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped",
)
"""Message types that can hold a ground truth, the richest first."""

ROLES = {
    "image": (IMAGE, COMPRESSED_IMAGE),
    "camera_info": (CAMERA_INFO,),
    "depth": (IMAGE, COMPRESSED_IMAGE),
    "depth_info": (CAMERA_INFO,),
    "right": (IMAGE, COMPRESSED_IMAGE),
    "right_info": (CAMERA_INFO,),
    "ground_truth": POSE_TYPES,
}
"""What each part of a selection may be."""

_TRANSPORTS = ("compressed", "compresseddepth", "ffmpeg", "theora", "zstd")
_DEPTH_ENCODINGS = ("16uc1", "32fc1")

_DEPTH = re.compile(r"depth|disparity|range_image")
_COLOUR = re.compile(r"colou?r|rgb|bgr")
_LEFT = re.compile(r"left|cam_?0|image_?0|camera_?0|infra_?1|fisheye_?1|front")
_OTHER_EYE = re.compile(
    r"right|cam_?[1-9]|image_?[1-9](?!\d)|camera_?[1-9](?!\d)|infra_?2|fisheye_?2|rear|back|side|bottom|down"
)
_EYES = tuple(
    (re.compile(left), right)
    for left, right in (
        (r"left", "right"),
        (r"(?<![a-z])l(?![a-z])", "r"),
        (r"_lf(?![a-z])", "_rf"),
        (r"((?:cam|image|camera|gr[ae]y|colou?r|rgb|mono|eye)_?0*)0(?!\d)", r"\g<1>1"),
        (r"((?:infra|fisheye|cam|camera|image|eye|ir)_?0*)1(?!\d)", r"\g<1>2"),
        (r"((?:cam|camera|image)_?0*)2(?!\d)", r"\g<1>3"),
    )
)
"""How names of the left camera of a rig become those of the right one."""
_INFRARED = re.compile(r"(^|[/_])ir([/_]|$)|infra|thermal|lwir|nir")
_DRAWN = re.compile(
    r"debug|overlay|mask|segment|label|annotat|detect|result|feature|match|visual|viz|preview|flow|confidence|semantic|"
    r"heatmap|costmap|thumbnail|map_image|normals?"
)
_ALIGNED = re.compile(r"aligned|registered|to_colou?r|to_rgb")
_TRUTH = re.compile(r"ground_?truth|(^|[/_])gt([/_]|$)|truth|vicon|mocap|optitrack|qualisys|vrpn|leica")


@dataclass(frozen=True)
class Topic:
    """One topic of a recording.

    Attributes:
        name: Its name, with the leading slash.
        msgtype: Its type, such as ``sensor_msgs/msg/Image``.
        count: How many messages there are.
    """

    name: str
    msgtype: str
    count: int


@dataclass(frozen=True)
class Selection:
    """The topics that odometry would use.

    Attributes:
        image: Pictures.
        camera_info: Their calibration; None where there is none.
        depth: Depth images; None for a single camera.
        depth_info: Calibration of the depth camera; None where there is none.
        right: Pictures of the right camera of a stereo pair; None where there is none, or depth is there to be used.
        right_info: Their calibration; None where there is none.
        ground_truth: Poses to compare with; None where there are none.
    """

    image: str
    camera_info: str | None = None
    depth: str | None = None
    depth_info: str | None = None
    right: str | None = None
    right_info: str | None = None
    ground_truth: str | None = None

    @property
    def rectified(self) -> bool:
        """Whether ``image`` is already undistorted, as ROS names it: its calibration's P holds and its D does not."""
        return is_rectified(self.image)


def base_name(topic: str) -> str:
    """Returns the topic without its transport: ``/camera/image_raw`` of ``/camera/image_raw/compressed``."""
    head, _, last = topic.rpartition("/")
    return head if head and last.lower() in _TRANSPORTS else topic


def is_rectified(topic: str) -> bool:
    """Whether images of a topic are already rectified, as image_proc names them: ``image_rect``, ``image_rect_color``.

    ``image_rect_raw`` is how librealsense names images of a camera that has no distortion; they count as well.
    """
    return "rect" in base_name(topic).rpartition("/")[2].lower().split("_")


def select(
    topics: Iterable[Topic],
    overrides: Mapping[str, str | None] | None = None,
    *,
    encodings: Mapping[str, str] | None = None,
) -> Selection:
    """Finds the topics to use.

    Colour is preferred over grey and infrared, the left or first camera of a rig over the others, rectified images over
    raw ones, raw over compressed; depth registered to the image over any other; the camera info in the image's own
    namespace over any other. Without depth, a camera with a right one beside it is preferred over one without; that
    is calibrated, and called like it but for the words for its side.

    Args:
        topics: What there is.
        overrides: Part of the selection (one of ``ROLES``) to topic name; an empty string or ``none`` switches it off.
        encodings: Topic to the encoding (or compressed format) of its images where known; depth is then also found
            where its name does not say so.

    Returns:
        The topics. There is depth or a right camera, unless both are named.

    Raises:
        BagError: There is no image topic, or a named topic is missing or of another type.
    """
    known = [t for t in topics if t.count != 0]
    wanted = _check(known, overrides or {})
    images = [t for t in known if t.msgtype in ROLES["image"]]
    infos = [t for t in known if t.msgtype == CAMERA_INFO]
    codes = {name: code.lower() for name, code in (encodings or {}).items()}
    depths = [t for t in images if _is_depth(t.name, codes.get(t.name, ""))]
    pictures = [t for t in images if t not in depths]

    if wanted.get("right"):
        depths = []
    eyes = [] if wanted.get("depth", depths) or not wanted.get("right", True) else pictures
    image = _best(pictures, lambda t: _picture_score(t, infos, pictures, eyes))
    image = wanted.get("image", image)
    if image is None:
        raise BagError(f"there is no camera image among the topics; name one of these as the image:\n{listing(known)}")
    depths = [t for t in depths if t.name != image]
    depth = wanted["depth"] if "depth" in wanted else _best(depths, lambda t: _depth_score(t, image, codes))
    right = wanted["right"] if "right" in wanted else (None if depth else _partner(image, pictures, infos))
    return Selection(
        image=image,
        camera_info=wanted["camera_info"] if "camera_info" in wanted else _camera_info(image, infos),
        depth=depth,
        depth_info=(
            wanted["depth_info"] if "depth_info" in wanted else (_camera_info(depth, infos) if depth else None)
        ),
        right=right,
        right_info=(
            wanted["right_info"] if "right_info" in wanted else (_camera_info(right, infos) if right else None)
        ),
        ground_truth=(
            wanted["ground_truth"]
            if "ground_truth" in wanted
            else _best([t for t in known if t.msgtype in POSE_TYPES and _TRUTH.search(t.name.lower())], _truth_score)
        ),
    )


def listing(topics: Iterable[Topic]) -> str:
    """Returns one line a topic, for error messages."""
    lines = [f"  {t.name}  {t.msgtype}  {t.count} messages" for t in sorted(topics, key=lambda t: t.name)]
    return "\n".join(lines) or "  (none)"


def _check(topics: list[Topic], overrides: Mapping[str, str | None]) -> dict[str, str | None]:
    names = {t.name: t for t in topics}
    result: dict[str, str | None] = {}
    for role, name in overrides.items():
        if role not in ROLES:
            raise BagError(f"there is no {role!r} to select; there are: {', '.join(ROLES)}")
        if not name or name == "none":
            result[role] = None
            continue
        full = name if name.startswith("/") else f"/{name}"
        if full not in names:
            raise BagError(f"{role} topic {full} is not there or has no messages; there are:\n{listing(topics)}")
        if names[full].msgtype not in ROLES[role]:
            raise BagError(
                f"{role} topic {full} is {names[full].msgtype}, but must be one of {', '.join(ROLES[role])}; "
                f"there are:\n{listing(topics)}"
            )
        result[role] = full
    return result


def _best(topics: list[Topic], score: object) -> str | None:
    assert callable(score)
    best = max(topics, key=lambda t: (score(t), -len(t.name), t.name), default=None)
    return best.name if best else None


def _is_depth(name: str, encoding: str) -> bool:
    lower = name.lower()
    if lower.endswith("compresseddepth") or "compresseddepth" in encoding:
        return True
    if encoding.startswith(_DEPTH_ENCODINGS) and not _INFRARED.search(lower):
        return True
    return bool(_DEPTH.search(lower)) and not _COLOUR.search(lower.rpartition("/")[2])


def _picture_score(topic: Topic, infos: list[Topic], pictures: list[Topic], eyes: list[Topic]) -> float:
    name = base_name(topic.name).lower()
    most = max(t.count for t in pictures)
    score = 8.0 * min(1.0, topic.count / most)
    score += 8 * bool(_COLOUR.search(name)) + 3 * bool(_LEFT.search(name))
    score -= 12 * bool(_OTHER_EYE.search(name) and not _LEFT.search(name))
    score -= 4 * bool(_INFRARED.search(name)) + 30 * bool(_DRAWN.search(name))
    score += 6 * (_camera_info(topic.name, infos, strict=True) is not None)
    score += 10 * (_partner(topic.name, eyes, infos) is not None)
    score += 1 * is_rectified(name) + 0.5 * (topic.msgtype == IMAGE)
    if topic.name != base_name(topic.name) and not topic.name.endswith("/compressed"):
        score -= 40
    return score


def _partner(image: str, pictures: list[Topic], infos: list[Topic]) -> str | None:
    """Returns the picture of the right camera beside that of a left one; None where there is no calibrated one."""
    base = base_name(image)
    names = {other for left, right in _EYES for other in _renamed(base.lower(), left, right)}
    beside = [t for t in pictures if base_name(t.name).lower() in names and _camera_info(t.name, infos, strict=True)]
    transport = image.removeprefix(base)
    return _best(beside, lambda t: (t.name.removeprefix(base_name(t.name)) == transport, t.msgtype == IMAGE))


def _renamed(name: str, left: re.Pattern[str], right: str) -> Iterator[str]:
    """Yields the name with the words for the left side changed into those for the right: all of them, or only one."""
    found = list(left.finditer(name))
    if found:
        yield left.sub(right, name)
    for match in found:
        yield name[: match.start()] + match.expand(right) + name[match.end() :]


def _depth_score(topic: Topic, image: str, encodings: Mapping[str, str]) -> float:
    name, picture = base_name(topic.name).lower(), base_name(image).lower()
    aligned = bool(_ALIGNED.search(name))
    infrared_picture = bool(_INFRARED.search(picture)) or (
        bool(_LEFT.search(picture)) and not _COLOUR.search(picture) and "depth" in name
    )
    score = 8.0 * (aligned != infrared_picture)
    score += 2 * _shared(name, picture)
    score -= 30 * bool(_DRAWN.search(name) or "disparity" in name)
    score += 1.0 * (topic.msgtype == IMAGE)
    if topic.msgtype == COMPRESSED_IMAGE and not (
        topic.name.lower().endswith("compresseddepth") or "16uc1" in encodings.get(topic.name, "")
    ):
        score -= 20  # a jpeg of a depth image is a picture for people
    return score


def _truth_score(topic: Topic) -> float:
    return -POSE_TYPES.index(topic.msgtype) + 0.5 * bool(re.search(r"ground_?truth|[/_]gt", topic.name.lower()))


def _camera_info(image: str, infos: list[Topic], *, strict: bool = False) -> str | None:
    """Returns the camera info that belongs to an image topic; ``strict`` allows only those of its own namespace."""
    names = [t.name for t in infos]
    base = base_name(image)
    parent = base.rpartition("/")[0]
    for candidate in (
        f"{parent}/camera_info",
        f"{base}/camera_info",
        f"{base}_info",
        f"{parent}_info",
        f"{parent}/info",
    ):
        if candidate in names:
            return candidate
    inside = [n for n in names if n.rpartition("/")[0] == parent]
    if len(inside) == 1:
        return inside[0]
    if strict or not names:
        return None
    depth_wanted, other_wanted = bool(_DEPTH.search(base.lower())), _is_other_eye(base)
    fitting = [n for n in names if bool(_DEPTH.search(n.lower())) == depth_wanted and _is_other_eye(n) == other_wanted]
    best = max(fitting, key=lambda n: (_shared(n, base), -len(n)), default=None)
    if best is not None and (_shared(best, base) > 0 or len(fitting) == 1):
        return best
    return None


def _is_other_eye(name: str) -> bool:
    return bool(_OTHER_EYE.search(name.lower())) and not _LEFT.search(name.lower())


def _shared(one: str, other: str) -> int:
    """Returns how many leading path components two topic names share."""
    count = 0
    for a, b in zip(one.split("/")[1:], other.split("/")[1:], strict=False):
        if a != b:
            break
        count += 1
    return count
