"""`swav report`: what the page says of one run and of several, and what it does when touched."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from swav_trainer import checkpoint, cli, data
from swav_trainer.config import Config
from swav_trainer.loader import Loader
from swav_trainer.report import Sight, curves, gallery, images, map, tables
from swav_trainer.report.command import look
from swav_trainer.settings import load_preset

OPTIONS = ("--preset", "digits", "--epochs", "2", "--width", "4", "--log-every", "1")
HOSTILE = "</script><script>alert(1)<"
# what a visitor does to each map: zooms in on the sixth point, points at it, drags it, taps it
VISIT = """<script>
addEventListener("load", () => setTimeout(() => {
  const seen = [...document.querySelectorAll(".map")].map((map) => {
    const canvas = map.querySelector("canvas"), box = canvas.getBoundingClientRect();
    const data = JSON.parse(map.querySelector("script").textContent);
    const scale = (Math.min(box.width, box.height) - 24) / data.side, i = 5;
    const at = {
      clientX: box.left + box.width / 2 + (data.points[2 * i] - data.side / 2) * scale,
      clientY: box.top + box.height / 2 + (data.points[2 * i + 1] - data.side / 2) * scale,
      cancelable: true, pointerId: 1,
    };
    const painted = () => canvas.toDataURL().length;
    const before = painted(), tip = map.querySelector(".tip"), result = {};
    const zoom = new WheelEvent("wheel", {...at, deltaY: -500});
    canvas.dispatchEvent(zoom);
    result.zoomed = zoom.defaultPrevented && painted() !== before;
    result.hidden = tip.hidden;
    canvas.dispatchEvent(new PointerEvent("pointermove", {...at, pointerType: "mouse"}));
    result.shown = !tip.hidden;
    result.words = map.querySelector(".words").textContent;
    result.picture = map.querySelector(".picture").style.backgroundPosition;
    const touch = {...at, pointerType: "touch"};
    canvas.dispatchEvent(new PointerEvent("pointerdown", touch));
    canvas.dispatchEvent(new PointerEvent("pointermove", {...touch, clientX: at.clientX + 90}));
    canvas.dispatchEvent(new PointerEvent("pointerup", {...touch, clientX: at.clientX + 90}));
    result.dragged = tip.hidden;  // the map has moved on
    const moved = {...touch, clientX: at.clientX + 90};
    canvas.dispatchEvent(new PointerEvent("pointerdown", moved));
    canvas.dispatchEvent(new PointerEvent("pointerup", moved));
    result.tapped = !tip.hidden && map.querySelector(".words").textContent === result.words;
    map.querySelector("button").click();
    result.back = painted() === before;
    return result;
  });
  const note = document.createElement("output");
  note.textContent = JSON.stringify(
    {seen, wide: document.documentElement.scrollWidth - innerWidth}
  );
  document.body.append(note);
}, 500));
</script></body>"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs of other settings, the first one's name hostile."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = folder / HOSTILE.replace("/", "_"), folder / "second"
    assert cli.main(["train", *OPTIONS, "--output", str(first)]) == 0
    assert cli.main(["train", *OPTIONS, "--epsilon", "0.1", "--output", str(second)]) == 0
    return first, second


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path]) -> Path:
    """Both side by side."""
    file = runs[0].parent / "both.html"
    assert cli.main(["report", *as_text(runs), "--output", str(file)]) == 0
    return file


def as_text(paths: tuple[Path, ...]) -> list[str]:
    return [str(path) for path in paths]


def test_train_and_report_write_the_same_page(runs: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "again.html"
    assert cli.main(["report", str(runs[1]), "--output", str(file)]) == 0

    def text(path: Path) -> str:  # the lead's seconds end with the page itself
        return re.sub(r"\d+ seconds", "", path.read_text())

    assert text(file) == text(runs[1] / "report.html")
    assert cli.main(["report", str(runs[1])]) == 0  # in the run's folder


def test_two_runs_stand_side_by_side(page: Path, runs: tuple[Path, Path]) -> None:
    text = page.read_text()
    side = text[text.index("Side by side") : text.index("<h2>Training")]
    assert re.findall(r'class="differs"><th>(\w+)', side) == ["epsilon"]
    assert "<td>0.03</td><td>0.1</td>" in side
    results = [json.loads((run / "evaluation.json").read_text())["swav"] for run in runs]
    for name, title in tables.FIGURES.items():
        row = re.search(rf"<th>{title}</th>(.*?)</tr>", side)[1]
        cells = re.findall(r"<td( class=\"best\")?>([\d.]+)", row)
        assert [float(x) for _, x in cells] == [pytest.approx(r[name], abs=0.06) for r in results]
        assert [bool(best) for best, _ in cells] == [
            r[name] == max(other[name] for other in results) for r in results
        ]
    drawn = re.findall(r"<svg.*?</svg>", text)
    assert len(drawn) >= 4
    for svg in drawn:
        assert svg.count("<polyline") == 2  # a line a run
        for run in runs:
            assert f"<title>{html.escape(run.name)}: " in svg
    assert text.count('class="map"') == text.count('class="gallery"') == 2
    assert len(json.loads(re.search(r'id="sheets">(.*?)</script>', text)[1])) == 1  # of one set


def test_no_name_from_disk_becomes_markup(page: Path, runs: tuple[Path, Path]) -> None:
    text = page.read_text()
    assert html.escape(runs[0].name) in text
    assert "alert(1)<" not in text
    # two maps, their pictures and the script itself
    assert text.count("<script") == text.count("</script>") == 4
    assert json.loads(map.to_script([HOSTILE])) == [HOSTILE]
    assert "<" not in map.to_script([HOSTILE])


def test_a_run_that_is_not_finished_is_shown_as_far_as_it_is(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs[1], tmp_path / "copy")
    (run / "evaluation.json").unlink()
    view = look(run)
    assert view.sight is not None
    assert "has come to epoch 2 of 2" in tables.lead(view)
    for name in (checkpoint.NAME, "metrics.jsonl", "machine.json"):
        (run / name).unlink()
    assert cli.main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "No pictures: no checkpoint" in text
    assert "No step was written down yet" in text
    assert "Not evaluated" in text
    assert 'class="map"' not in text


def test_runs_of_one_name_are_told_apart_by_their_folders(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        shutil.copy(runs[1] / "config.toml", tmp_path / parent / "run")
    file = tmp_path / "page.html"
    folders = [str(tmp_path / parent / "run") for parent in ("a", "b")]
    assert cli.main(["report", *folders, "--output", str(file)]) == 0
    text = file.read_text()
    assert '<h2 class="run">a/run</h2>' in text
    assert '<h2 class="run">b/run</h2>' in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wants the folders of runs"),
        (["nowhere"], "no folder nowhere"),
        (["."], "cannot read"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_page_that_cannot_be_written(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    file = tmp_path / "none" / "page.html"
    assert cli.main(["report", str(runs[1]), "--output", str(file)]) == 2
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    shutil.copy(runs[1] / "config.toml", tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text('{"swav": 1}')
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert "is no evaluation of a run" in capsys.readouterr().err


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [400, 1280])
def test_the_map_is_zoomed_moved_and_shows_images(page: Path, tmp_path: Path, width: int) -> None:
    visited = tmp_path / "visited.html"
    visited.write_text(page.read_text().replace("</body>", VISIT))
    # in a frame, for a window has a least width; the frame's findings are handed up
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe width={width} height=3000 src="visited.html"></iframe><script>'
        "setTimeout(() => document.body.append(document.querySelector('iframe')"
        ".contentDocument.querySelector('output').cloneNode(true)), 3000)</script>"
    )
    common = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,3000",
        f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=5000",
        "--allow-file-access-from-files",
    ]  # fmt: skip
    result = subprocess.run(
        [*common, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in result.stderr  # neither errors nor blocked loads
    told = json.loads(html.unescape(re.search("<output>(.*?)</output>", result.stdout)[1]))
    assert told["wide"] <= 0  # nothing hangs out of the page
    data_of = [
        json.loads(text)
        for text in re.findall(r'<script type="application/json">(.*?)</script>', page.read_text())
    ]
    assert len(told["seen"]) == len(data_of) == 2
    for seen, values in zip(told["seen"], data_of, strict=True):
        picture, words = seen.pop("picture"), seen.pop("words")
        assert all(seen.values()), seen
        assert words == values["classes"][values["labels"][5]]
        assert float(picture.split("%")[0]) == pytest.approx(500 / (values["columns"] - 1), abs=1)


# --- the parts ------------------------------------------------------------------------------------


def small_sight(settings: Config) -> Sight:
    """Digits whose features are their pixels, and a prototype for each class but the last."""
    dataset = data.load(settings)
    train, test = dataset.train, dataset.test
    means = torch.stack([train.images[train.labels == c].mean(0).flatten() for c in range(9)])

    def unit(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x.flatten(1) - means.mean(0), dim=1)

    return Sight(dataset, unit(train.images), unit(means), unit(test.images))


def test_the_gallery_counts_fill_and_purity() -> None:
    settings = load_preset("digits")
    sight = small_sight(settings)
    labels = sight.dataset.train.labels
    nearest = (sight.projected @ sight.prototypes.T).argmax(1)
    text = gallery.prototypes(settings, sight, 4)
    assert text.count('class="prototype"') == 4
    fill = torch.bincount(nearest)
    best = int(fill.argmax())
    share = (labels[nearest == best] == best).float().mean()
    assert f"{int(fill[best])} images, {100 * share:.0f} % are {best}" in text
    # the largest class of each prototype, over all images: counted by hand
    purity = sum(int(torch.bincount(labels[nearest == k]).max()) for k in range(9)) / len(labels)
    assert f"{100 * purity:.1f} % of the images carry" in text
    assert "9 of 9 prototypes" in text
    unlabelled = dataclasses.replace(sight.dataset, classes=("all",), train=data.Part(
        sight.dataset.train.images, torch.zeros_like(labels)))  # fmt: skip
    text = gallery.prototypes(settings, dataclasses.replace(sight, dataset=unlabelled), 4)
    assert "% are" not in text
    assert "carry" not in text


def test_the_crops_are_those_of_the_first_step() -> None:
    settings = load_preset("digits")
    sight = small_sight(settings)
    wanted = next(Loader(sight.dataset.train, settings).batches(0))
    text = gallery.crops(settings, sight)
    for kind in wanted:
        batch = settings.batch_size
        for image in range(gallery.CROPPED):
            for picture in images.to_pixels(kind[image::batch]):
                assert images.address(picture) in text
        assert images.address(images.to_pixels(kind[gallery.CROPPED : gallery.CROPPED + 1])[0]) \
            not in text  # fmt: skip


def test_pictures_survive_their_sheet_and_their_address() -> None:
    import base64

    import cv2

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(7)]
    whole, columns = images.sheet(pictures)
    assert columns == 3
    for number, picture in enumerate(pictures):
        line, column = divmod(number, columns)
        assert (whole[6 * line : 6 * line + 6, 6 * column : 6 * column + 6] == picture).all()
    flat = np.full((6, 6, 3), (200, 10, 30), np.uint8)  # PNG is the shorter here
    code = images.address(flat).partition("base64,")[2]
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(code), np.uint8), cv2.IMREAD_COLOR)
    assert (decoded[..., ::-1] == flat).all()
    assert images.address(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).startswith(
        "data:image/jpeg"
    )


def test_ticks_are_round() -> None:
    assert curves._ticks(0, 1) == [0, 0.5, 1]
    assert curves._ticks(0, 4.3) == [0, 2, 4]
    assert curves._ticks(0, 60) == [0, 20, 40, 60]
    assert curves._ticks(-0.1, 0.1) == [-0.1, -0.05, 0, 0.05, 0.1]
