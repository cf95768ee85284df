"""Files of weights that lie, unfold or carry code: refused, before any of it is believed."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_bytes
from swav_trainer import checkpoint, shard_index, sharded_checkpoint, weights
from swav_trainer.errors import TrainerError
from test_trainer_sharding import two_checkpoints

WITNESS = "witness"  # a file that the code would write
COMMAND = f"touch {WITNESS}"


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class WithState:
    """Pickled as an object whose state is put in by a call."""

    def __reduce__(self) -> Any:
        return io.StringIO, (), Call(os.system, COMMAND)


class Named:
    """Pickled as a name that a persistent load would look up."""


class Persistent(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        return ("storage", Call(os.system, COMMAND)) if isinstance(thing, Named) else None


def persistent() -> bytes:
    file = io.BytesIO()
    Persistent(file).dump({"x": Named()})
    return file.getvalue()


def text(function: str) -> bytes:
    """A call by the oldest opcodes."""
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n(S'{COMMAND}'\ntR.".encode()


PICKLES = {
    **{f"call, protocol {p}": pickle.dumps(Call(os.system, COMMAND), p) for p in range(6)},
    "call by text": text("posix.system"),
    "call of another's name": text("os.system"),
    "instance": f"(S'{COMMAND}'\nios\nsystem\n.".encode(),
    "object": f"(cos\nsystem\nS'{COMMAND}'\no.".encode(),
    "new object": b"\x80\x02csubprocess\nPopen\n]"
    b"(X\x05\x00\x00\x00touchX\x07\x00\x00\x00witnesse\x85\x81.",
    "state": pickle.dumps(WithState()),
    "eval": pickle.dumps(Call(eval, f"__import__('os').system('{COMMAND}')")),
    "exec": pickle.dumps(Call(exec, f"import os; os.system('{COMMAND}')")),
    "open": pickle.dumps(Call(open, WITNESS, "w")),
    "attribute": pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
    "map": pickle.dumps({"x": Call(list, Call(map, os.system, [COMMAND]))}),
    "below tensors": pickle.dumps({"state_dict": [{"x": (Call(os.system, COMMAND),)}]}),
    "a key": pickle.dumps({Call(os.system, COMMAND): 1}),
    "persistent": persistent(),
    "pickle in a pickle": pickle.dumps(Call(pickle.loads, pickle.dumps(Call(os.system, COMMAND)))),
    "torch itself": pickle.dumps(Call(torch.load, io.BytesIO(pickle.dumps(os.system)))),
    "extension": b"\x80\x02\x82\x01.",
}  # fmt: skip


def bare(content: bytes) -> bytes:
    return content


def in_archive(content: bytes) -> bytes:
    """In the place of the pickle in a file of torch.save."""
    file = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, file)
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return file.getvalue()


@pytest.mark.parametrize("form", [bare, in_archive], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", PICKLES)
def test_no_code_runs(
    name: str, form: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(form(PICKLES[name]))
    with pytest.raises(TrainerError, match=r"x\.pth (is refused|is no file of torch\.save)"):
        weights.read(tmp_path / "x.pth")
    with pytest.raises(TrainerError, match=r"x\.pth is refused"):
        shard_index.read(tmp_path / "x.pth")
    assert not (tmp_path / WITNESS).exists()


def test_the_witness_would_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLES["call by text"])
    assert (tmp_path / WITNESS).exists()


HUGE = 10**12


def safetensors(header: Any, body: bytes = bytes(64), length: int | None = None) -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "header past the end": safetensors({}, length=2**20),
    "header of 2 ** 63 bytes": safetensors({}, length=2**63),
    "no header": b"\x08\0\0\0",
    "no JSON": safetensors(b"{'x'"),
    "deep JSON": safetensors(b'{"x":' * 100_000),
    "JSON of a list": safetensors([1, 2]),
    "numbers that are none": safetensors(b'{"x": {"dtype": "F32", "shape": [NaN]}}'),
    "tensors that overlap": safetensors({"x": entry([16], 0, 64), "y": entry([16], 0, 64)}),
    "tensors with a gap": safetensors({"x": entry([4], 0, 16), "y": entry([4], 48, 64)}),
    "bytes behind the last": safetensors({"x": entry([4], 0, 16)}),
    "10 ** 12 numbers": safetensors({"x": entry([HUGE], 0, 64)}),
    "10 ** 12 numbers at their offsets": safetensors({"x": entry([HUGE], 0, 4 * HUGE)}),
    "a shape that overflows": safetensors({"x": entry([2**33, 2**33], 0, 64)}),
    "a negative shape": safetensors({"x": entry([-16], 0, 64)}),
    "offsets that go back": safetensors({"x": entry([16], 64, 0)}),
    "an unknown type": safetensors({"x": entry([16], 0, 64, "F31")}),
    "another type's length": safetensors({"x": entry([16], 0, 64, "F64")}),
}


def refused_within(tmp_path: Path, file: str, read: str) -> subprocess.CompletedProcess[str]:
    """Read in a process that may not take more than 2 GB, and tell what it took."""
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from swav_trainer import checkpoint, shard_index, sharded_checkpoint, weights\n"
        "from swav_trainer.errors import TrainerError\n"
        "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = most()\n"
        "for file in sorted(Path(sys.argv[1]).glob(sys.argv[2])):\n"
        "    try:\n"
        f"        {read}\n"
        "    except TrainerError:\n"
        "        print(file.name, most() - before)\n"  # KiB
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), file],
        capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)),
    )  # fmt: skip


@pytest.mark.parametrize(
    "read", ["weights.read(file)", "checkpoint.load(file)"], ids=["weights", "checkpoint"]
)
def test_safetensors_that_lie_cost_no_memory(read: str, tmp_path: Path) -> None:
    for number, content in enumerate(LIES.values()):
        (tmp_path / f"{number:02}.safetensors").write_bytes(content)
    result = refused_within(tmp_path, "*.safetensors", read)
    told = [line.split() for line in result.stdout.splitlines()]
    assert len(told) == len(LIES), result.stdout + result.stderr
    assert max(int(kib) for _, kib in told) < 50_000


def lying_storages() -> dict[str, bytes]:
    """Files of torch.save, of both forms, whose tensors are told to be larger than they are."""
    real, huge = torch.zeros(77), 10**10
    zipped, old = io.BytesIO(), io.BytesIO()
    torch.save({"x": real}, zipped)
    torch.save({"x": real}, old, _use_new_zipfile_serialization=False)
    number, more = b"KM", b"\x8a\x05" + huge.to_bytes(5, "little")  # BININT1 77, LONG1 10 ** 10
    archive = io.BytesIO()
    with zipfile.ZipFile(zipped) as content, zipfile.ZipFile(archive, "w") as lies:
        for name in content.namelist():
            data = content.read(name)
            if name.endswith("data.pkl"):
                assert data.count(number) == 2  # of the storage and of the tensor
                data = data.replace(number, more)
            lies.writestr(name, data)
    assert old.getvalue().count(number) == 2
    return {"zip": archive.getvalue(), "old": old.getvalue().replace(number, more)}


def bomb() -> bytes:
    """A file of torch.save whose one tensor is 400 MB of packed zeros."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(in_archive(b""))) as old,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for name in old.namelist():
            data = pickle.dumps(bytes(400_000_000)) if name.endswith("data.pkl") else old.read(name)
            new.writestr(name, data)
    return file.getvalue()


def test_weights_that_lie_or_unfold_cost_no_memory(tmp_path: Path) -> None:
    for name, content in {**lying_storages(), "bomb": bomb()}.items():
        (tmp_path / f"{name}.pth").write_bytes(content)
    assert (tmp_path / "bomb.pth").stat().st_size < 4_000_000
    result = refused_within(tmp_path, "*.pth", "weights.read(file)")
    told = dict(line.split() for line in result.stdout.splitlines())
    assert set(told) == {"zip.pth", "old.pth", "bomb.pth"}, result.stdout + result.stderr
    assert max(map(int, told.values())) < 50_000
    with pytest.raises(TrainerError, match=r"bomb\.pth is refused: its \d+ bytes unfold to 400"):
        weights.read(tmp_path / "bomb.pth")


# --- folders of shards ----------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[Any], None], follows: bool = True) -> None:
    """Change a folder's index, and let the manifest say that it was always so."""
    index = path / sharded_checkpoint.INDEX
    content = pickle.loads(index.read_bytes())
    change(content)
    index.write_bytes(pickle.dumps(content))
    if follows:
        manifest = path / sharded_checkpoint.MANIFEST
        sums = json.loads(manifest.read_text())
        sums[index.name] = sharded_checkpoint._sha256(index)
        manifest.write_text(json.dumps(sums))


def test_an_index_of_more_than_its_files_hold_is_refused(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)

    def enlarge(index: Any) -> None:
        index.state_dict_metadata["x"].size = torch.Size([HUGE])

    rewrite(path, enlarge)
    with pytest.raises(TrainerError, match=r"is refused: it tells of 8000000000004 bytes"):
        sharded_checkpoint.load(path, {})


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "..", ".metadata"])
def test_an_index_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    shutil.copy(path / "__0_0.distcp", tmp_path / "other")

    def lead(index: Any) -> None:
        for place in index.storage_data.values():
            place.relative_path = name

    rewrite(path, lead)
    with pytest.raises(TrainerError, match=r"is refused: it names .*, which is no file beside it"):
        sharded_checkpoint.load(path, {})


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / checkpoint.PREVIOUS_SHARDS)
    (tmp_path / "outside").write_bytes(b"")
    manifest = path / sharded_checkpoint.MANIFEST
    sums = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**sums, name: sharded_checkpoint._sha256(path / name)}))
    with pytest.raises(TrainerError, match=rf"not in files and list: .*{Path(name).name}"):
        sharded_checkpoint.load(path, {})


def test_a_file_that_no_manifest_knows_is_seen(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    (path / "__9_9.distcp").write_bytes(b"")
    _, state, problem = sharded_checkpoint.load(path, {})
    assert state == {"step": 1}
    assert "not in files and list: __9_9.distcp" in problem


def test_checkpoints_of_a_run_are_never_pickles(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.NAME
    path.write_bytes(PICKLES["call by text"] + bytes(100))
    with pytest.raises(TrainerError, match="is corrupt"):
        checkpoint.load(path)
    path.write_bytes(to_bytes({"x": torch.zeros(3)}, metadata={"state": "{}", "sha256": "0"}))
    with pytest.raises(TrainerError, match="its checksum is another one"):
        checkpoint.load(path)
