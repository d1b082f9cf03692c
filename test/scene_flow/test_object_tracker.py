"""Moving objects found in worlds whose bodies' motions are exact, and followed through occlusion."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from flowodom.depth import InverseDepth
from flowodom.flow import DenseFlow
from flowodom.flow.consistency import FLOW_NOISE
from flowodom.geometry import se3
from flowodom.scene_flow import claims, recognition
from flowodom.scene_flow.decompose import find_moving
from flowodom.scene_flow.kinematics import CONFIRMED
from flowodom.scene_flow.object_tracker import COASTING, REMEMBERED, ObjectTracker
from flowodom.scene_flow.objects import label
from flowodom.scene_flow.surfaces import cell_of
from flowodom.worlds import pinhole, room, straight

CAMERA = pinhole(240, 180)
CELL = cell_of(CAMERA)
RATE = 30
FRAMES = 9


@pytest.fixture(scope="module")
def clip():
    """A room with two movers: renderings, what moves in each, and the camera's motions ``T_previous_camera``."""
    path = straight(position=(-0.8, 0.0, 1.2), speed=0.3)
    world = room(7, movers=2, texels=128)
    seen, moving, motions, found = [], [], [], None
    for k in range(FRAMES):
        now = world.render(path(k / RATE), k / RATE, CAMERA)
        if seen:
            truth = world.flow_between(seen[-1], now)
            variance = torch.full(truth.forward.shape[:2], FLOW_NOISE**2)
            flow = DenseFlow(
                truth.forward.nan_to_num().float(), truth.backward.nan_to_num().float(), variance, variance
            )
            found = find_moving(CAMERA, look(seen[-1]), look(now), flow, truth.motions[0], found)
            motions.append(se3.inverse(truth.motions[0]))
        seen.append(now)
        moving.append(found)
    return seen, moving, motions


def look(view):
    rho = (1 / view.depth).float()
    return view.image.float().mean(-1).to(torch.uint8), InverseDepth(CAMERA, rho, torch.full(rho.shape, 1e-6))


def coarse(view):
    return view.object_id[CELL // 2 :: CELL, CELL // 2 :: CELL]


def run(clip, count=FRAMES, hide=()):
    seen, moving, motions = clip
    tracker, all_objects = ObjectTracker(), []
    for k in range(1, count):
        what = None if k in hide else moving[k]
        tracker.update(what, seen[k].pose, motions[k - 1], round(k / RATE * 1e9), 1 / RATE)
        all_objects.append(tracker.objects)
    return all_objects


def body_of(known, view):
    """The true body that an object's mask lies on, and their intersection over union."""
    truth = coarse(view).numpy()
    body = int(np.bincount(truth[known.mask]).argmax())
    return body, float((known.mask & (truth == body)).sum() / (known.mask | (truth == body)).sum())


def test_objects_are_confirmed_with_masks_and_velocities_of_the_bodies(clip):
    seen, _, _ = clip
    found = run(clip)
    assert not any(found[: CONFIRMED - 1])
    last, view, before = found[-1], seen[-1], seen[-2]
    assert len(last) == 2
    for known in last:
        body, overlap = body_of(known, view)
        assert overlap > 0.75
        back = before.bodies[body] @ se3.inverse(view.bodies[body])
        true = (known.centre - se3.act(back, known.centre)) * RATE
        assert (known.velocity - true).norm() < 0.1 * true.norm() + 0.05
        assert ((known.extent > 0.1) & (known.extent < 1.5)).all()
        assert len(known.trail) >= FRAMES - 2


def test_numbers_stay(clip):
    numbers = [tuple(sorted(o.id for o in some)) for some in run(clip) if len(some) == 2]
    assert len(set(numbers)) == 1


def test_an_object_is_known_again_after_it_was_hidden(clip):
    found = run(clip, hide=(6, 7))
    before, hidden, after = found[4], found[6], found[7]
    assert [o.id for o in hidden] == [o.id for o in before]
    assert all(o.mask is None for o in hidden)
    assert {o.id for o in after} == {o.id for o in before}
    assert all(o.mask is not None for o in after)
    for was, coasted in zip(before, hidden, strict=True):
        torch.testing.assert_close(coasted.pose, was.pose @ se3.exp(was.twist * 2 / RATE))
        assert torch.linalg.eigvalsh(coasted.twist_covariance - was.twist_covariance).min() > 0


def test_a_thing_that_shows_in_two_parts_is_one_object(clip, monkeypatch):
    monkeypatch.setattr(claims, "REACH", 1)
    seen, moving, motions = clip
    body = int(coarse(seen[-1])[coarse(seen[-1]) > 0].mode().values)
    tracker = ObjectTracker()
    for k in range(1, 6):
        on = coarse(seen[k]) == body
        columns = on.any(0).nonzero()[:, 0].double()
        first, second = columns.quantile(0.4).round(), columns.quantile(0.6).round()
        place = torch.arange(on.shape[1])
        # At first its left part alone is seen to move, at last its right part too; never what is between them.
        shown = on & ((place < first) | ((place > second) & (k > 4)))
        hidden = {n: np.where(shown, getattr(moving[k], n), np.float32(-5)) for n in ("logit", "doubt")}
        tracker.update(replace(moving[k], **hidden), seen[k].pose, motions[k - 1], round(k / RATE * 1e9), 1 / RATE)
    (known,) = tracker.objects
    assert known.mask[:, : int(first)].any()
    assert known.mask[:, int(second) :].any()


def test_an_object_that_stays_away_is_dropped(clip):
    seen, moving, motions = clip
    tracker = ObjectTracker()
    for k in range(1, FRAMES):
        tracker.update(moving[k], seen[k].pose, motions[k - 1], round(k / RATE * 1e9), 1 / RATE)
    stamp = round((FRAMES - 1) / RATE * 1e9)
    for k in range(round(COASTING * RATE) + 2):
        tracker.update(None, seen[-1].pose, se3.identity(), stamp + round((k + 1) / RATE * 1e9), 1 / RATE)
    assert tracker.objects == []


@pytest.fixture
def painted(clip):
    """Pictures by frame in which each body has one colour, by its number: {body: (red, green, blue)} by frame."""
    seen, _, _ = clip

    def paint(k, colours):
        picture = np.full((*seen[k].object_id.shape, 3), 120, dtype=np.uint8)
        for body, colour in colours.items():
            picture[(seen[k].object_id == body).numpy()] = colour
        return picture

    return paint


RED, BLUE, YELLOW, GREEN = (200, 40, 40), (40, 40, 200), (200, 200, 40), (40, 200, 40)


def after_seconds_out_of_sight(clip, painted, before, after, away=1.5):
    """Numbers of the bodies, painted so before and after they are all out of sight for so many seconds."""
    seen, moving, motions = clip
    tracker, stamp, numbers = ObjectTracker(), 0, []
    bodies = [int(b) for b in seen[-1].object_id.unique() if b > 0]
    for colours in (before, after):
        picture = dict(zip(bodies, colours, strict=True))
        for k in range(1, FRAMES):
            stamp += round(1e9 / RATE)
            view = painted(k, picture)
            tracker.update(moving[k], seen[k].pose, motions[k - 1], stamp, 1 / RATE, view)
        numbers.append({body_of(known, seen[-1])[0]: known.id for known in tracker.objects if known.mask is not None})
        for _ in range(round(away * RATE)):
            stamp += round(1e9 / RATE)
            tracker.update(None, seen[-1].pose, se3.identity(), stamp, 1 / RATE)
        assert not tracker.objects
    return numbers


def test_objects_that_come_back_are_known_by_their_colours(clip, painted):
    before, after = after_seconds_out_of_sight(clip, painted, (RED, BLUE), (RED, BLUE))
    assert len(before) == 2
    assert after == before


def test_another_object_does_not_inherit_a_number(clip, painted):
    before, after = after_seconds_out_of_sight(clip, painted, (RED, BLUE), (YELLOW, GREEN))
    assert len(after) == 2
    assert not set(after.values()) & set(before.values())


@pytest.mark.parametrize(("colours", "known"), [((RED, RED), 0), ((RED, YELLOW), 1)])
def test_what_looks_like_two_is_neither_where_place_tells_nothing(clip, painted, monkeypatch, colours, known):
    monkeypatch.setattr(recognition, "SPACE", 0.0)
    monkeypatch.setattr(recognition, "UNRELATED", 0.0)
    before, after = after_seconds_out_of_sight(clip, painted, colours, (RED, BLUE))
    assert len(after) == 2
    assert len(set(after.values()) & set(before.values())) == known


def test_what_looks_like_an_object_elsewhere_is_another(clip, painted, monkeypatch):
    monkeypatch.setattr(recognition, "WAYWARD", 0.02)
    monkeypatch.setattr(recognition, "IN_PART", 0.02)
    before, after = after_seconds_out_of_sight(clip, painted, (RED, BLUE), (RED, BLUE))
    assert not set(after.values()) & set(before.values())


def test_after_too_long_nobody_is_known(clip, painted):
    before, after = after_seconds_out_of_sight(clip, painted, (RED, BLUE), (RED, BLUE), away=REMEMBERED + 0.2)
    assert not set(after.values()) & set(before.values())


def test_shading_changes_no_colour_but_its_brightness():
    colours = np.array([[150, 110, 50], [60, 120, 100], [100, 100, 100]], dtype=np.uint8)
    bright, dark = (recognition.shades((light * colours).astype(np.uint8)) for light in (1.4, 0.7))
    assert (bright // recognition.SHADES == dark // recognition.SHADES).all()
    assert (bright % recognition.SHADES != dark % recognition.SHADES).all()
    assert len(set(bright // recognition.SHADES)) == 3


def test_what_was_seen_a_moment_ago_still_goes_as_it_did(clip):
    (known, *_) = run(clip)[-1]
    turned = replace(known, twist=-known.twist, trail=known.trail[-1:])
    assert recognition.nearness(known, known, 0.1) > 1
    assert recognition.nearness(known, turned, 0.1) < recognition.nearness(known, known, 0.1) - 1
    # After a while its velocity tells little.
    later = [recognition.nearness(known, new, 2.0) for new in (known, turned)]
    assert abs(later[0] - later[1]) < 1


def test_nothing_moving_gives_no_objects(clip):
    seen, _, motions = clip
    tracker = ObjectTracker()
    tracker.update(None, seen[1].pose, motions[0], 1, 1 / RATE)
    assert tracker.objects == []
    _, moving, _ = clip
    tracker.update(replace(moving[-1], stories=None), seen[1].pose, motions[0], 2, 1 / RATE)
    assert tracker.objects == []


def test_label_is_at_the_images_size(clip):
    objects = run(clip)[-1]
    numbers = label(objects, clip[1][-1].camera, (180, 240))
    assert numbers.shape == (180, 240)
    assert set(np.unique(numbers)) == {0, *(o.id for o in objects)}
    truth = clip[0][-1].object_id.numpy() > 0
    assert ((numbers > 0) & truth).sum() / ((numbers > 0) | truth).sum() > 0.75
