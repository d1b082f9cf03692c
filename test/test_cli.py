import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flowodom import cli
from flowodom.bags import BagReader
from flowodom.config import OdometryConfig, SessionConfig, to_yaml

MakeBag = Callable[..., Path]
ROOT = Path(__file__).parents[1]


def test_replay_writes_the_results_and_prints_the_drift(
    make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["replay", str(make_bag(count=4)), "--out", str(out), "--no-report", "--no-points"]) == 0
    printed = capsys.readouterr().out
    assert "ATE SE(3) rmse" in printed
    assert str(out / "odometry.mcap") in printed


def test_evaluate_compares_files(make_bag: MakeBag, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag, out = make_bag(count=4), tmp_path / "out"
    cli.main(["replay", str(bag), "--out", str(out), "--no-report", "--no-points"])
    figures = tmp_path / "figures.json"
    assert cli.main(["evaluate", str(out / "trajectory.tum"), str(bag), "--json", str(figures)]) == 0
    assert "recovered scale" in capsys.readouterr().out
    assert "ate_sim3_rmse" in figures.read_text()


def test_render_writes_a_bag_that_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bag = tmp_path / "room.mcap"
    assert cli.main(["render", str(bag), "--frames", "2", "--size", "64x48", "--movers", "0"]) == 0
    assert bag.exists()
    assert "2 frames" in capsys.readouterr().out
    assert cli.main(["render", str(bag), "--frames", "2"]) == 2
    wide = ["render", str(tmp_path / "wide.mcap"), "--frames", "2", "--size", "64x48", "--field-of-view"]
    assert cli.main([*wide, "180"]) == 2
    assert cli.main([*wide, "90"]) == 0
    with BagReader(tmp_path / "wide.mcap") as reader:
        _, _, info = next(reader.messages(["/camera/color/camera_info"]))
    assert info.k[0] == pytest.approx(32)
    pair = ["render", str(bag), "--frames", "2", "--size", "64x48", "--movers", "0", "--stereo", "0.1", "--overwrite"]
    assert cli.main(pair) == 0
    capsys.readouterr()
    assert cli.main(["info", str(bag)]) == 0
    assert "100.0 mm from the left one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay", "nowhere"], "there is no recording nowhere"),
        (["replay", "nowhere", "--set", "registration.points"], "name=value"),
        (["replay", "nowhere", "--set", "registration.pints=3"], "unknown parameter 'registration.pints'"),
        (["replay", "nowhere", "--set", "registration.points=many"], "must be int"),
        (["replay", "nowhere", "--config", "nowhere.yaml"], "cannot read parameters"),
        (["evaluate", "nowhere.tum", "nowhere.tum"], "nowhere.tum"),
    ],
)
def test_errors_are_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("flowodom: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flowodom.evaluation.evaluate", stop)
    assert cli.main(["evaluate", "a", "b"]) == 130


def test_flags_win_over_settings_and_settings_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "odometry.yaml"
    file.write_text("registration:\n  points: 300\n  window: 5\ncamera_height: 1.0\n")
    options = cli._parser().parse_args(
        ["replay", "bag", "--config", str(file), "--set", "registration.points=400", "--camera-height", "1.65"]
    )
    config = cli.make_config(options)
    assert (config.registration.points, config.registration.window, config.camera_height) == (400, 5, 1.65)


def test_topic_flags_are_passed_on() -> None:
    options = cli._parser().parse_args(["info", "bag", "--image", "/a", "--depth", "none", "--right-info", "/b"])
    assert cli.topic_overrides(options) == {"image": "/a", "depth": "none", "right_info": "/b"}


def test_help_is_there_without_loading_torch() -> None:
    code = "import sys, flowodom.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_subcommand_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    names = re.findall(r"^    (\w+) ", capsys.readouterr().out, flags=re.MULTILINE)
    assert {"replay", "info", "evaluate", "doctor", "render"} <= set(names)


def test_the_shipped_parameter_file_lists_every_parameter_and_its_default() -> None:
    assert (ROOT / "config" / "odometry.yaml").read_text() == to_yaml(SessionConfig())
    assert set(OdometryConfig.__dataclass_fields__) <= set(SessionConfig.__dataclass_fields__)
