"""Settings in files: presets that are shipped, and the settings of a run."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from swav_trainer import durable, sources
from swav_trainer.config import FIELDS, Config
from swav_trainer.errors import TrainerError, did_you_mean, printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = Path(__file__).parent / "presets"
FILE = "config.toml"  # in the folder of a run
DEFAULT_PRESET = "mnist5k"
BASE, ABOUT = "base", "about"  # keys of a preset beside the settings


def save(config: Config, path: Path) -> None:
    """Write every setting as TOML; `--preset` reads it back."""
    durable.write_text(path, to_text(config))


def to_text(config: Config) -> str:
    """Every setting as TOML."""
    return "".join(f"{f.name} = {to_toml(getattr(config, f.name))}\n" for f in FIELDS)


def load(path: Path) -> Config:
    """Read a TOML file that holds every setting, or some and the name of a preset as its `base`.

    Settings that are newer than the file are as runs were before them; a line on stderr says so.

    Raises:
        TrainerError: the file is missing or no TOML, a setting is unknown, missing or wrong.
    """
    values = _with_base(path)
    absent = [field for field in FIELDS if field.name not in values]
    missing = [field.name for field in absent if field.default is dataclasses.MISSING]
    if missing:
        raise TrainerError(f"{printable(path)} lacks the settings {', '.join(missing)}")
    if absent:
        newer = ", ".join(f"{field.name} = {to_toml(field.default)}" for field in absent)
        print(f"{printable(path)} is older than some settings, taken as {newer}", file=sys.stderr)
    return Config(**values)


def _with_base(path: Path) -> dict[str, Any]:
    """Return the settings of a file, over those of its base."""
    values = _read(path)
    values.pop(ABOUT, None)
    base = values.pop(BASE, None)
    names = [field.name for field in FIELDS]
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names)
            raise TrainerError(f"{printable(path)}: unknown setting {name!r}{hint}")
    return values if base is None else _with_base(_shipped(base)) | values


def about(name: str) -> dict[str, str]:
    """Return what a preset says of itself: source, and the figure to expect."""
    notes = _read(_file(name)).get(ABOUT, {})
    return {key: str(notes.get(key, "not said")) for key in ("source", "expected")}


def _read(path: Path) -> dict[str, Any]:
    shown = printable(path)
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise TrainerError(f"cannot read {shown}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainerError(f"{shown} is not a TOML file: {error}") from error


def _shipped(name: Any) -> Path:
    known = preset_names()
    if name not in known:
        raise TrainerError(
            f"unknown preset {name!r}: choose from {', '.join(known)} or a .toml file"
            f"{did_you_mean(str(name), known)}"
        )
    return PRESETS / f"{name}.toml"


def load_preset(name: str) -> Config:
    """Read a preset by its name, or from a TOML file of the user's."""
    return load(_file(name))


def _file(name: str) -> Path:
    return Path(name) if name.endswith(".toml") else _shipped(name)


def preset_names() -> list[str]:
    """Names of the presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_for(data: str | None) -> str:
    """Return the preset that fits the data: images in colour never get the net for digits."""
    if data is None:
        return DEFAULT_PRESET
    if data in sources.IN_MEMORY:
        return data
    return "folder" if data.partition(":")[0] in sources.FORMS else DEFAULT_PRESET


def resolve_data(data: str) -> str:
    """Return the data with absolute paths, so that a resumed run finds them from anywhere.

    Raises:
        TrainerError: they are of no known kind, or their place is missing.
    """
    kind, place = sources.parse(data)
    if kind in sources.IN_MEMORY:
        return data
    if not place:
        form = f"{kind}:{sources.FORMS[kind]}"
        raise TrainerError(f"{kind}: needs {sources.FORMS[kind]} behind it: --data {form}")
    if kind in ("folder", "webdataset"):
        place = _absolute(place)
    elif kind in ("hf", "torchvision"):
        name, values = sources.options(place)
        if kind == "hf" and os.path.exists(os.path.expanduser(name)):
            name = _absolute(name)
        if "root" in values:
            values["root"] = _absolute(values["root"])
        place = ",".join((name, *(f"{key}={value}" for key, value in values.items())))
    return f"{kind}:{place}"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def to_toml(value: str | int | float | bool | tuple[float, ...]) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, DEL aside, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return repr(value)
