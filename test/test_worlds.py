import math

import cv2
import numpy as np
import pytest
import torch

from flowodom.bags import BagReader
from flowodom.errors import BagError, ConfigError, ShapeError
from flowodom.geometry import PinholeCamera, se3
from flowodom.messages import decode_depth, decode_image
from flowodom.threads import one_thread
from flowodom.worlds import (
    CameraPath,
    Material,
    Primitive,
    Sensor,
    Shape,
    Wander,
    World,
    hand_held,
    pinhole,
    room,
    rotation,
    sequence,
    straight,
    street,
    wheeled,
)
from flowodom.worlds.motion import level_pose
from flowodom.worlds.recording import LINK_FROM_OPTICAL, render_bag
from flowodom.worlds.relief import height
from flowodom.worlds.textures import PATTERNS, Atlas

TEXELS = 128
SMALL = pinhole(64, 48)
QVGA = pinhole()
DT = 1 / 30
START = 2.0


@pytest.fixture(scope="module")
def furnished():
    """A room with two movers, its path, and two renderings a thirtieth of a second apart, both movers in view."""
    world, path = room(3, movers=2, texels=256), hand_held(3)
    views = [world.render(path(t), t, QVGA) for t in (START, START + DT)]
    return world, path, views


@pytest.fixture(scope="module")
def lane():
    return street(1, movers=2, texels=256)


def first_hit(world, view, rays):
    """Depth and primitive along (R, 3) rays by brute force in NumPy: every plane and quadric, candidates kept when
    they lie on the solid; a scheme unlike the one under test."""
    pose = view.pose.numpy()
    best, which = np.full(len(rays), np.inf), np.full(len(rays), -1)
    for k, p in enumerate(world.primitives):
        frame = view.bodies[p.body].numpy() @ p.pose.numpy()
        local = np.linalg.inv(frame) @ pose
        o, d, h = local[:3, 3], rays @ local[:3, :3].T, np.array(p.half)
        roots, fits = [], []
        if p.shape is Shape.BOX:
            planes = [(a, s) for a in range(3) for s in (-1, 1)]
        else:
            planes = [(2, -1), (2, 1)] if p.shape is Shape.CYLINDER else []
            n = 2 if p.shape is Shape.CYLINDER else 3
            a, b = (d[:, :n] ** 2).sum(1), 2 * (d[:, :n] * o[:n]).sum(1)
            c = (o[:n] ** 2).sum() - h[0] ** 2
            with np.errstate(invalid="ignore", divide="ignore"):
                spread = np.sqrt(b * b - 4 * a * c)
                for root in ((-b - spread) / (2 * a), (-b + spread) / (2 * a)):
                    roots.append(root)
                    fits.append(np.abs(o[2] + root * d[:, 2]) <= h[2] + 1e-9)
        for a, s in planes:
            with np.errstate(divide="ignore", invalid="ignore"):
                root = (s * h[a] - o[a]) / d[:, a]
                x = o + root[:, None] * d
            if p.shape is Shape.BOX:
                others = [i for i in range(3) if i != a]
                fits.append((np.abs(x[:, others]) <= h[others] + 1e-9).all(1))
            else:
                fits.append(np.hypot(x[:, 0], x[:, 1]) <= h[0] + 1e-9)
            roots.append(root)
        for root, fit in zip(roots, fits, strict=True):
            better = fit & (root > 0.02) & (root < best)
            best[better], which[better] = root[better], k
    return best, which


def rays_of(camera, pixels=None):
    pixels = camera.pixels(dtype=torch.float64) if pixels is None else pixels
    return camera.rays(pixels).reshape(-1, 3).numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_depth_is_exact(seed, lane):
    for world, path in (
        (room(seed, texels=TEXELS), hand_held(seed)),
        (lane, straight(position=(0, 0, 1.65), speed=9.0)),
    ):
        view = world.render(path(1.3 + seed), 1.3 + seed, SMALL, colour=False)
        depth, which = first_hit(world, view, rays_of(SMALL))
        np.testing.assert_allclose(view.depth.flatten().numpy(), depth, rtol=1e-9)
        assert (view.primitive.flatten().numpy() == which).mean() > 0.999


def test_flow_is_reprojected_depth(furnished):
    world, path, (previous, current) = furnished
    truth = world.flow_between(previous, current)
    points = np.concatenate((previous.points.reshape(-1, 3).numpy(), np.ones((QVGA.width * QVGA.height, 1))), axis=1)
    owner = previous.object_id.flatten().numpy()
    assert set(owner) == {0, 1, 2}
    k = np.array([[QVGA.fx, 0, QVGA.cx], [0, QVGA.fy, QVGA.cy], [0, 0, 1]])
    u, v = np.meshgrid(np.arange(QVGA.width), np.arange(QVGA.height))
    flow = truth.forward.reshape(-1, 2).numpy()
    for body in range(3):
        mine = owner == body
        placed = np.linalg.inv(previous.bodies[body].numpy()) @ previous.pose.numpy() @ points[mine].T
        now = np.linalg.inv(current.pose.numpy()) @ current.bodies[body].numpy() @ placed
        pixel = (k @ now[:3]) / now[2]
        np.testing.assert_allclose(u.flatten()[mine] + flow[mine, 0], pixel[0], atol=1e-8)
        np.testing.assert_allclose(v.flatten()[mine] + flow[mine, 1], pixel[1], atol=1e-8)
        moved = previous.points.reshape(-1, 3).numpy() + truth.scene_flow.reshape(-1, 3).numpy()
        np.testing.assert_allclose(moved[mine], now[:3].T, atol=1e-9)
        motion = truth.motions[body].numpy()
        np.testing.assert_allclose((motion @ points[mine].T)[:3], now[:3], atol=1e-9)
    relative = se3.inverse(path(START + DT)) @ path(START)
    torch.testing.assert_close(truth.motions[0], relative, rtol=0, atol=1e-12)


def test_backward_is_forward_of_the_swapped_pair(furnished):
    world, _, (previous, current) = furnished
    there, back = world.flow_between(previous, current), world.flow_between(current, previous)
    torch.testing.assert_close(there.backward, back.forward, rtol=0, atol=0)
    assert torch.equal(there.backward_hidden, back.forward_hidden)
    assert torch.equal(there.forward_hidden, back.backward_hidden)


def test_occlusion_is_exact(furnished):
    world, path, _ = furnished
    # Far apart, so that much is hidden.
    previous, current = (world.render(path(t), t, SMALL, colour=False) for t in (START, START + 0.6))
    truth = world.flow_between(previous, current)
    target = SMALL.pixels(dtype=torch.float64) + truth.forward
    moved = (previous.points + truth.scene_flow).reshape(-1, 3).numpy()
    inside = SMALL.contains(target).flatten().numpy() & (moved[:, 2] > 0)
    seen, _ = first_hit(world, current, rays_of(SMALL, target))
    hidden = truth.forward_hidden.flatten().numpy()
    assert hidden[~inside].all()
    expected = seen[inside] < moved[inside, 2] * (1 - 1e-5)
    assert (hidden[inside] == expected).all()
    assert 0.005 < expected.mean() < 0.5
    # What is not hidden is the very point that is seen there.
    np.testing.assert_allclose(seen[inside & ~hidden], moved[inside & ~hidden, 2], rtol=2e-5)


def test_pose_follows_from_flow_and_depth(furnished):
    world, path, (previous, current) = furnished
    truth = world.flow_between(previous, current)
    static = previous.object_id == 0
    before, after = previous.points[static], (previous.points + truth.scene_flow)[static]
    a, b = before - before.mean(0), after - after.mean(0)
    left, _, right = torch.linalg.svd(b.T @ a)
    turn = left @ right
    fit = se3.matrix(turn, after.mean(0) - turn @ before.mean(0))
    torch.testing.assert_close(fit, se3.inverse(path(START + DT)) @ path(START), rtol=0, atol=1e-10)


def test_rendering_shapes_and_types(furnished):
    _, _, (view, _) = furnished
    size = (240, 320)
    assert view.image.shape == (*size, 3)
    assert view.image.dtype == torch.uint8
    assert view.depth.shape == view.primitive.shape == view.object_id.shape == size
    assert view.depth.dtype == torch.float64
    assert view.normal.dtype == torch.float32
    torch.testing.assert_close(view.normal.norm(dim=-1), torch.ones(size), rtol=0, atol=1e-5)
    # Every surface faces the camera.
    assert ((view.normal * view.points.float()).sum(-1) < 1e-4).all()


def test_normals_are_of_the_surface(furnished):
    _, _, (view, _) = furnished
    points = view.points
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    normal = torch.linalg.cross(down, across, dim=-1)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    same = (normal * view.normal[1:-1, 1:-1]).sum(-1)
    assert (same > 0.999).double().mean() > 0.9


def test_same_seed_same_world():
    pictures = [room(seed, texels=TEXELS).render(hand_held(5)(0.7), 0.7, SMALL).image for seed in (1, 1, 2)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert torch.equal(hand_held(4)(0.3), hand_held(4)(0.3))
    assert not torch.equal(hand_held(4)(0.3), hand_held(5)(0.3))


def test_pictures_agree_with_flow(furnished, lane):
    world, path, _ = furnished
    driver = straight(position=(0, 0, 1.65), speed=9.0)
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for scene, way, start in ((world, path, 0.5), (lane, driver, 1.0)):
        previous, current = (scene.render(way(t), t, QVGA) for t in (start, start + DT))
        truth = scene.flow_between(previous, current)
        seen = ~truth.forward_hidden.numpy()
        grey = [cv2.cvtColor(view.image.numpy(), cv2.COLOR_RGB2GRAY) for view in (previous, current)]
        target = (QVGA.pixels(dtype=torch.float64) + truth.forward).float().numpy()
        warped = cv2.remap(grey[1].astype(np.float32), target[..., 0], target[..., 1], cv2.INTER_CUBIC)
        assert np.median(np.abs(warped - grey[0])[seen]) < 3
        error = np.linalg.norm(finder.calc(grey[0], grey[1], None) - truth.forward.numpy(), axis=-1)[seen]
        assert np.median(error) < 0.2
        assert grey[0].std() > 15
        assert 60 < grey[0].mean() < 190


@pytest.mark.parametrize("pattern", ["bricks", "checker", "speckle", "marks"])
def test_pictures_are_not_aliased(pattern):
    """A floor seen at a slant looks the same rendered at once or four times finer and averaged."""
    tile = PATTERNS[pattern](256, torch.Generator().manual_seed(0))
    atlas, plain = Atlas.build([tile]), Atlas.build([torch.full((1, 256, 256), 0.5)])
    ground = Primitive(Shape.BOX, (50.0, 50.0, 1.0), level_pose(torch.tensor([0.0, 0.0, -1.0]).double(),
                       torch.zeros(3).double()), (Material(0, 1.5),))  # fmt: skip
    world = World("floor", (ground,), (), atlas, plain, ambient=1.0)
    pose = CameraPath(Wander((0.0, 0.0, 1.2), (0.3, 0.6, 0.1)))(0.0)
    camera = pinhole(160, 120)
    coarse = world.render(pose, 0.0, camera).image.float()
    fine = world.render(pose, 0.0, camera.scaled(4)).image.float()
    averaged = fine.reshape(120, 4, 160, 4, 3).mean((1, 3))
    # Blur, which a picture may have, is taken out; false patterns, which it may not, stay.
    difference = cv2.GaussianBlur((coarse - averaged).numpy(), (0, 0), 1.5)
    assert np.abs(difference).mean() < 0.04 * averaged.std()


def test_patterns_are_seamless_and_in_range():
    for name, make in PATTERNS.items():
        tile = make(128, torch.Generator().manual_seed(2))
        assert tile.shape == (3, 128, 128), name
        assert torch.isfinite(tile).all(), name
        assert tile.clamp(0, 1).mean() > 0.02, name
        for axis in (1, 2):
            steps = (tile - tile.roll(1, axis)).abs().mean((0, 3 - axis))
            assert steps[0] <= 1.5 * steps.max(), name


def test_atlas_levels_average_and_wrap():
    tile = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    atlas = Atlas.build([torch.zeros(3, 64, 64), tile])
    at = (torch.arange(64) + 0.5) / 64
    one = torch.ones(64)
    found = atlas.sample(one, at + 3, 0 * at + 5.5 / 64 - 2, one / 64)
    torch.testing.assert_close(found, tile[:, 5], rtol=0, atol=2e-3)
    half = atlas.sample(one[:1], torch.tensor([0.0]), torch.tensor([0.0]), one[:1] / 64)
    torch.testing.assert_close(half[:, 0], tile[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(1), rtol=0, atol=2e-3)
    coarse = atlas.sample(one[:1], torch.tensor([4.0 / 64]), torch.tensor([4.0 / 64]), one[:1] * 8 / 64)
    torch.testing.assert_close(coarse[:, 0], tile[:, :8, :8].mean((1, 2)), rtol=0, atol=2e-3)


def test_mover_covers_what_is_asked():
    path = hand_held(2)
    world = room(2, coverage=0.25, path=path, texels=TEXELS)
    views = [world.render(path(t), t, SMALL, colour=False) for t in np.arange(0, 10, 0.25).tolist()]
    share = np.mean([(view.object_id == 1).double().mean().item() for view in views])
    assert 0.2 < share < 0.3
    assert min(view.depth.min().item() for view in views) > 0.5


def test_movers_move_rigidly_in_the_world(furnished):
    _, _, (previous, current) = furnished
    assert torch.equal(previous.bodies[0], se3.identity())
    for before, after in zip(previous.bodies[1:], current.bodies[1:], strict=True):
        step = se3.log(se3.inverse(before) @ after)
        assert 0.001 < step[:3].norm() < 0.1
        torch.testing.assert_close(after[:3, :3] @ after[:3, :3].T, torch.eye(3).double(), rtol=0, atol=1e-12)
    assert torch.equal(room(3, movers=0, texels=TEXELS).bodies(1.0), se3.identity()[None])


def test_paths_move_as_their_names_say():
    time = torch.arange(0, 20, 0.01, dtype=torch.float64)

    def twist(path):
        poses = path(time)
        return se3.log(se3.inverse(poses[:-1]) @ poses[1:]) / 0.01

    held = twist(hand_held(1, speed=0.4, turn=25.0))
    assert 0.25 < held[:, :3].square().sum(-1).mean().sqrt() < 0.6
    assert 15 < math.degrees(held[:, 3:].square().sum(-1).mean().sqrt()) < 40

    turning = twist(rotation(1))
    assert turning[:, :3].abs().max() < 1e-9
    assert 15 < math.degrees(turning[:, 3:].square().sum(-1).mean().sqrt()) < 45

    driven = twist(wheeled(1, speed=0.4))
    assert 0.25 < driven[:, 2].mean() < 0.55
    assert driven[:, :2].abs().max() < 5e-3  # straight ahead, on the plane
    assert driven[:, [3, 5]].abs().max() < 1e-9  # turns about the vertical alone

    ahead = twist(straight(speed=2.0))
    torch.testing.assert_close(ahead, torch.tensor([0, 0, 2.0, 0, 0, 0]).double().expand_as(ahead), rtol=0, atol=1e-9)


def test_cameras_stay_out_of_things():
    for seed in range(3):
        world = room(seed, texels=TEXELS)
        for path in (hand_held(seed), wheeled(seed), rotation(seed)):
            near = min(world.render(path(t), t, pinhole(32, 24), colour=False).depth.min() for t in range(0, 12, 1))
            assert near > 0.4


def test_sequence_yields_frames_with_truth():
    world, path = room(1, texels=TEXELS), hand_held(1)
    sensor = Sensor(image_noise=3.0, depth_noise=0.002, depth_range=(0.3, 3.0), seed=4)
    steps = list(sequence(world, path, SMALL, frames=3, rate=20.0, sensor=sensor, flow=True))
    assert [step.frame.stamp for step in steps] == [1_000_000_000, 1_050_000_000, 1_100_000_000]
    assert steps[0].flow is None
    torch.testing.assert_close(steps[2].pose, path(0.1))
    expected = world.flow_between(steps[0].rendering, steps[1].rendering)
    torch.testing.assert_close(steps[1].flow.forward, expected.forward)
    again = list(sequence(world, path, SMALL, frames=2, rate=20.0, sensor=sensor))
    assert (again[1].frame.image == steps[1].frame.image).all()
    assert again[1].flow is None

    frame, rendering = steps[1].frame, steps[1].rendering
    noise = frame.image.astype(float) - rendering.image.numpy()
    assert 2 < noise.std() < 4
    depth, exact = frame.depth, rendering.depth.numpy()
    assert np.isnan(depth[exact > 3.05]).all()
    known = np.isfinite(depth)
    assert 0.0015 < ((depth - exact)[known] / exact[known] ** 2).std() < 0.0025


def test_a_sensor_may_lack_depth():
    step = next(sequence(room(1, texels=TEXELS), hand_held(1), SMALL, frames=1, sensor=Sensor(depth=False)))
    assert step.frame.depth is None


def test_rows_of_a_rolling_shutter_are_exposed_one_after_another():
    world, path, camera = room(1, movers=0, texels=TEXELS), hand_held(1, turn=90.0), pinhole(64, 49)
    step = next(sequence(world, path, camera, frames=1, sensor=Sensor(readout=0.02)))
    strips = {"first": (slice(0, 3), 1), "middle": (slice(24, 27), 25), "last": (slice(48, 49), 48)}
    for rows, middle in strips.values():
        whole = world.render(path(0.02 * (middle / 48 - 0.5)), 0.0, camera)
        assert np.abs(step.frame.image[rows].astype(int) - whole.image[rows].numpy()).mean() < 0.5
        np.testing.assert_allclose(step.frame.depth[rows], whole.depth[rows].numpy(), atol=1e-5)
    at_once = world.render(path(0.0), 0.0, camera)
    assert np.abs(step.frame.image[:3].astype(int) - at_once.image[:3].numpy()).mean() > 2
    np.testing.assert_array_equal(step.rendering.depth, at_once.depth)
    np.testing.assert_array_equal(step.pose, path(0.0))


def test_the_other_eye_of_a_pair_sees_from_beside():
    world, path = room(1, movers=0, texels=TEXELS), hand_held(1)
    sensor = Sensor(depth=False, baseline=0.1)
    step = next(sequence(world, path, SMALL, frames=1, sensor=sensor))
    eye = step.frame.other
    np.testing.assert_allclose(eye.place.numpy(), [0.1, 0, 0], atol=1e-12)
    beside = path(0.0) @ se3.exp(torch.tensor([0.1, 0, 0, 0, 0, 0], dtype=torch.float64))
    np.testing.assert_array_equal(eye.image, world.render(beside, 0.0, SMALL).image.numpy())
    assert next(sequence(world, path, SMALL, frames=1)).frame.other is None


@pytest.mark.parametrize("compressed", [False, True])
def test_a_pair_is_written_as_a_rig_publishes_it(tmp_path, compressed):
    render_bag(tmp_path / "bag", seed=7, frames=2, size=(64, 48), baseline=0.12, compressed=compressed)
    with BagReader(tmp_path / "bag") as bag:
        chosen = bag.select()
        infos = {name: message for name, _, message in bag.messages([chosen.camera_info, chosen.right_info])}
        pictures = [decode_image(message) for _, _, message in bag.messages([chosen.image, chosen.right])]
    assert (chosen.image.split("/")[2], chosen.right.split("/")[2], chosen.depth) == ("left", "right", None)
    left, right = infos[chosen.camera_info], infos[chosen.right_info]
    assert (left.p[3], right.p[3] / right.p[0]) == (0, pytest.approx(-0.12))
    assert len(pictures) == 4
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize("compressed", [False, True])
def test_bag_can_be_read(tmp_path, compressed):
    count = render_bag(
        tmp_path / "bag", seed=7, frames=3, size=(64, 48), noise=0.0, compressed=compressed, motion="wheeled"
    )
    assert count == 3
    world, path, camera = room(7), wheeled(7), pinhole(64, 48)
    with BagReader(tmp_path / "bag") as bag:
        chosen = bag.select()
        messages = {}
        for message in bag.messages():
            messages.setdefault(message[0], []).append(message[2])
    picture = decode_image(messages[chosen.image][2])
    exact = world.render(path(2 * DT), 2 * DT, camera)
    difference = np.abs(picture.astype(float) - exact.image.numpy())
    assert difference.max() == 0 if not compressed else difference.mean() < 8
    np.testing.assert_allclose(decode_depth(messages[chosen.depth][2]), exact.depth.numpy(), atol=5.1e-4)
    np.testing.assert_allclose(messages[chosen.camera_info][0].k[[0, 2]], [camera.fx, camera.cx])
    fixed = messages["/tf_static"][0].transforms[0]
    assert (fixed.header.frame_id, fixed.child_frame_id) == ("camera_link", "camera_color_optical_frame")
    truth = messages[chosen.ground_truth][2]
    assert (truth.header.frame_id, truth.child_frame_id) == ("world", "camera_link")
    link = path(2 * DT) @ se3.inverse(LINK_FROM_OPTICAL)
    position = truth.pose.pose.position
    np.testing.assert_allclose([position.x, position.y, position.z], link[:3, 3].numpy(), atol=1e-12)
    # The link looks forward: a wheeled robot's speed is along its x.
    assert truth.twist.twist.linear.x > 0.1
    assert abs(truth.twist.twist.linear.z) < 1e-9


def test_what_cannot_be_is_refused(tmp_path):
    world = room(1, movers=0, texels=TEXELS)
    with pytest.raises(ShapeError, match=r"\(4, 4\)"):
        world.render(torch.eye(3), 0.0, SMALL)
    with pytest.raises(ValueError, match="camera path"):
        room(1, coverage=0.25)
    for wrong in (
        {"world": "moon"},
        {"motion": "fly"},
        {"world": "street", "motion": "wheeled"},
        {"frames": 0},
        {"baseline": -1},
    ):
        with pytest.raises(ConfigError):
            render_bag(tmp_path / "bag", **wrong)
    (tmp_path / "taken").mkdir()
    with pytest.raises(BagError, match="exists"):
        render_bag(tmp_path / "taken", frames=1, size=(32, 24))


def test_a_ray_along_an_axis_meets_things():
    camera = PinholeCamera(10.0, 10.0, 0.0, 0.0, 1, 1)
    tile = Atlas.build([torch.full((3, 16, 16), 0.5)])
    for shape in set(Shape) - {Shape.TERRAIN}:
        thing = Primitive(shape, (0.5, 0.5, 0.5), torch.eye(4).double(), (Material(0, 1.0),))
        world = World("thing", (thing,), (), tile, tile)
        for yaw, pitch in ((0.0, 0.0), (math.pi / 2, 0.0), (0.0, math.pi / 2)):
            away = level_pose(torch.zeros(3).double(), torch.tensor([yaw, pitch, 0.0]).double())
            pose = away @ CameraPath(Wander((-2.0, 0.0, 0.0)))(0.0)
            assert world.render(pose, 0.0, camera).depth.item() == pytest.approx(1.5, abs=1e-12)
        miss = world.render(CameraPath(Wander((2.0, 0.0, 0.0)))(0.0), 0.0, camera)
        assert miss.depth.item() == math.inf
        assert miss.primitive.item() == -1
        assert miss.image.sum() == 0


def test_rendering_leaves_the_threads_alone():
    count = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
        with one_thread(), pytest.raises(ShapeError):
            room(1, movers=0, texels=16).render(torch.eye(3), 0.0, SMALL)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == count
    with one_thread(False):
        assert torch.get_num_threads() == count


def test_blobs_and_hills_are_met_on_their_surface():
    tile = Atlas.build([torch.full((3, 16, 16), 0.5)])
    blob = Primitive(
        Shape.BLOB,
        (0.5, 0.3, 0.4),
        level_pose(torch.tensor([0.0, 0.0, 1.6]).double(), torch.zeros(3).double()),
        (Material(0, 1.0),),
    )
    hills = Primitive(Shape.TERRAIN, (40.0, 40.0, 1.0), torch.eye(4).double(), (Material(0, 1.0),))
    world = World("hills", (blob, hills), (), tile, tile)
    pose = CameraPath(Wander((-2.0, 0.0, 2.0), (0.0, 0.25, 0.0)))(0.0)
    view = world.render(pose, 0.0, SMALL)
    points = se3.act(pose, view.points)
    on_blob, on_hills = view.primitive == 0, view.primitive == 1
    assert on_blob.sum() > 50
    assert on_hills.sum() > 500
    reach = ((points - torch.tensor([0.0, 0.0, 1.6])) / torch.tensor([0.5, 0.3, 0.4])) ** 4
    assert (reach.sum(-1) - 1)[on_blob].abs().max() < 1e-4
    place = points[on_hills].t()
    assert (place[2] - height(place[:2], torch.tensor([40.0, 40.0, 1.0]).double()[:, None])).abs().max() < 1e-3
    across = torch.linalg.cross(view.points[:, 1:-1, :].diff(dim=0)[:, :-1], view.points.diff(dim=1)[:-1, 1:-1])
    inside = on_hills[:-1, 1:-2] & on_hills[1:, 1:-2] & (view.depth[:-1, 1:-2] < 4)
    normal = torch.nn.functional.normalize(across, dim=-1)
    assert ((normal * view.normal[:-1, 1:-2]).sum(-1).abs()[inside] > 0.95).float().mean() > 0.95


def test_distances_are_from_the_nearest_surface_of_a_body():
    world = room(3, movers=1, texels=16)
    seen = world.render(hand_held(3)(0.2), 0.2, pinhole(64, 48), colour=False)
    for body in (0, 1):
        place = se3.inverse(seen.bodies[body]) @ seen.pose
        on = se3.act(place, seen.points[seen.object_id == body])
        assert len(on) > 50
        assert world.distance(on, body).max() < 1e-9
        nearer = se3.act(place, 0.97 * seen.points[seen.object_id == body])
        apart = (nearer - on).norm(dim=-1)
        assert (world.distance(nearer, body) <= apart + 1e-9).all()
        assert world.distance(nearer, body).mean() > 0.2 * apart.mean()
    with pytest.raises(ValueError, match="no body 2"):
        world.distance(on, 2)
