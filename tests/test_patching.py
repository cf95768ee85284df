"""`patch` and `unpatch` on installed packages: trees made here, with the names of the field."""

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from compare import unit_rows
from field import EPSILON, exponentials, scaled_scores, shares_in_turn
from gloo import run_ranks
from torch import Tensor

import swav_kernels as sk
from swav_kernels.compat import lightly

PACKAGES = ("lightly", "solo", "vissl", "mmpretrain", "dinov2", "dinov3", "pl_bolts")
# what a release of each looks like from outside; every function gives "theirs"
LIGHTLY = {
    "lightly/loss/__init__.py": "from lightly.loss.swav_loss import sinkhorn\n",
    "lightly/loss/swav_loss.py": """
def sinkhorn(out, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False):
    return "theirs"

def codes(out):
    return sinkhorn(out)
""",
    "lightly/loss/msn_loss.py": """
def sinkhorn(probabilities, iterations: int = 3, gather_distributed: bool = False):
    return "theirs"
""",
    "lightly/loss/capi_loss.py": """
def sinkhorn_knopp(logits, iterations=3, gather_distributed=False, epsilon=1e-8):
    return "theirs"
""",
    "lightly/late.py": "from lightly.loss import sinkhorn\n",
}
SOLO = {
    "solo/losses/__init__.py": "from solo.losses.swav import swav_loss_func\n",
    "solo/losses/swav.py": """
def swav_loss_func(preds, assignments, temperature: float = 0.1):
    return "theirs"
""",
    "solo/utils/sinkhorn_knopp.py": """
import torch

class SinkhornKnopp(torch.nn.Module):
    def __init__(self, num_iters=3, epsilon=0.05, world_size=1):
        super().__init__()
        self.num_iters, self.epsilon, self.world_size = num_iters, epsilon, world_size

    @torch.no_grad()
    def forward(self, Q):
        return "theirs"
""",
    "solo/methods/swav.py": """
from solo.losses.swav import swav_loss_func
from solo.utils.sinkhorn_knopp import SinkhornKnopp
""",
}
VISSL = {
    "vissl/losses/distibuted_sinkhornknopp.py": """
def distributed_sinkhornknopp(Q, num_iter, hard_assignment, world_size, use_double_prec, use_gpu):
    return "theirs"
""",
    "vissl/losses/swav_loss.py": """
from vissl.losses.distibuted_sinkhornknopp import distributed_sinkhornknopp
""",
}
MMPRETRAIN = {
    "mmpretrain/models/losses/swav_loss.py": """
def distributed_sinkhorn(out, sinkhorn_iterations: int, world_size: int, epsilon: float):
    return "theirs"
""",
}
DINOV2 = {
    "dinov2/loss/dino_clstoken_loss.py": """
class DINOLoss:
    def sinkhorn_knopp_teacher(self, teacher_output, teacher_temp, n_iterations=3):
        return "theirs"
""",
    "dinov2/loss/ibot_patch_loss.py": """
class iBOTPatchLoss:
    def sinkhorn_knopp_teacher(
        self, teacher_output, teacher_temp, n_masked_patches_tensor, n_iterations=3
    ):
        return "theirs"
""",
}
DINOV3 = {
    "dinov3/distributed/__init__.py": """
subgroup = None

def get_process_subgroup():
    return subgroup
""",
    "dinov3/loss/dino_clstoken_loss.py": DINOV2["dinov2/loss/dino_clstoken_loss.py"],
    "dinov3/loss/ibot_patch_loss.py": """
import torch

class SinkhornKnoppTeacher(torch.nn.Module):
    @torch.no_grad()
    def forward(self, teacher_output, teacher_temp, n_masked_patches_tensor, n_iterations=3):
        return "theirs"
""",
}
BOLTS = {
    "pl_bolts/models/self_supervised/swav/loss.py": """
class SWAVLoss:
    def sinkhorn(self, q, num_iters: int):
        return "theirs"

    def distributed_sinkhorn(self, q, num_iters: int):
        return "theirs"
""",
}
# of releases before 0.7: other names of arguments, before 0.6 another module and class
BOLTS_OLDER = {
    path: BOLTS["pl_bolts/models/self_supervised/swav/loss.py"]
    .replace("q, num_iters: int", "Q, nmb_iters")
    .replace("SWAVLoss", owner)
    for path, owner in (
        ("pl_bolts/models/self_supervised/swav/loss.py", "SWAVLoss"),
        ("pl_bolts/models/self_supervised/swav/swav_module.py", "SwAV"),
    )
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write module trees where they can be imported; all is undone after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files: dict[str, str], **changes: str) -> None:
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(changes.get(file.stem, text))
            for parent in list(file.relative_to(tmp_path).parents)[:-1]:
                (tmp_path / parent / "__init__.py").touch()
        importlib.invalidate_caches()

    yield write
    sk.unpatch()
    for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
        del sys.modules[name]


def module(name: str) -> Any:
    return importlib.import_module(name)


def cosines() -> Tensor:
    """Float32 scores [N, K]."""
    return (unit_rows(30, 16, seed=1) @ unit_rows(7, 16, seed=2).T).float()


def is_near(codes: Tensor, wanted: Tensor) -> bool:
    return bool((codes - wanted).abs().max() <= 1e-6)


def test_every_module_of_the_package_gets_the_function(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(LIGHTLY)
    loss = module("lightly.loss")
    assert loss.swav_loss.codes(cosines()) == "theirs"
    sk.patch("lightly")
    said = capsys.readouterr().out
    for name in (
        "lightly.loss.sinkhorn",
        "lightly.loss.swav_loss.sinkhorn",
        "lightly.loss.msn_loss.sinkhorn",
        "lightly.loss.capi_loss.sinkhorn_knopp",
    ):
        assert f"{name} is replaced" in said
    assert is_near(loss.swav_loss.codes(cosines()), shares_in_turn(cosines(), 3))
    assert loss.sinkhorn is lightly.sinkhorn
    assert module("lightly.loss.msn_loss").sinkhorn is lightly.msn_sinkhorn
    assert module("lightly.loss.capi_loss").sinkhorn_knopp is lightly.capi_sinkhorn_knopp
    late = module("lightly.late")  # imported while it is patched
    sk.unpatch("lightly")
    for holder in (loss, loss.swav_loss, late):
        assert holder.sinkhorn(cosines()) == "theirs"
    assert module("lightly.loss.msn_loss").sinkhorn(cosines()) == "theirs"


def test_solo_learn_in_a_with_block(install: Install) -> None:
    install(SOLO)
    methods = module("solo.methods.swav")
    before = methods.SinkhornKnopp(num_iters=1)
    views = [cosines(), cosines() + 1]
    with sk.patched("solo_learn"):
        assert is_near(before(cosines()), shares_in_turn(cosines(), 1))  # an instance made before
        assert isinstance(before, methods.SinkhornKnopp)
        codes = [methods.SinkhornKnopp()(view) for view in views]
        loss = methods.swav_loss_func(views, codes)
        assert loss == module("solo.losses").swav_loss_func(views, codes) > 0
    assert before(cosines()) == "theirs"
    assert methods.swav_loss_func(views, codes) == "theirs"


def test_vissl_mmpretrain_and_bolts(install: Install) -> None:
    for tree in (VISSL, MMPRETRAIN, BOLTS):
        install(tree)
    for code_base in ("vissl", "mmpretrain", "bolts"):
        sk.patch(code_base)
    scores, q = cosines(), exponentials(cosines())
    wanted = scaled_scores(scores, 3)
    vissl = module("vissl.losses.swav_loss")  # a release without the power law
    assert is_near(vissl.distributed_sinkhornknopp(q, 3, False, 1, False, False), wanted)
    mmpretrain = module("mmpretrain.models.losses.swav_loss")
    assert is_near(mmpretrain.distributed_sinkhorn(scores, 3, 1, EPSILON), wanted)
    loss = module("pl_bolts.models.self_supervised.swav.loss").SWAVLoss()
    assert is_near(loss.sinkhorn(q, 3), wanted)
    assert is_near(loss.distributed_sinkhorn(q, num_iters=3), wanted)
    sk.unpatch()
    assert vissl.distributed_sinkhornknopp(q, 3, False, 1, False, False) == "theirs"
    assert mmpretrain.distributed_sinkhorn(scores, 3, 1, EPSILON) == "theirs"
    assert loss.sinkhorn(q, 3) == loss.distributed_sinkhorn(q, 3) == "theirs"


@pytest.mark.parametrize("path", BOLTS_OLDER)
def test_older_releases_of_bolts_keep_the_names_of_their_arguments(
    path: str, install: Install
) -> None:
    install({path: BOLTS_OLDER[path]})
    holder = module(path.removesuffix(".py").replace("/", "."))
    loss = getattr(holder, "SWAVLoss", None) or holder.SwAV
    wanted = scaled_scores(cosines(), 2)
    with sk.patched("bolts"):
        for method in (loss().sinkhorn, loss().distributed_sinkhorn):
            assert is_near(method(Q=exponentials(cosines()), nmb_iters=2), wanted)
    assert loss().sinkhorn(exponentials(cosines()), 2) == "theirs"


def test_dinov2_methods(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(DINOV2)
    dino = module("dinov2.loss.dino_clstoken_loss").DINOLoss()
    ibot = module("dinov2.loss.ibot_patch_loss").iBOTPatchLoss()
    scores, count = cosines(), torch.tensor(30)
    wanted = shares_in_turn(scores, 2)
    with sk.patched("dinov2"):
        assert is_near(dino.sinkhorn_knopp_teacher(scores, EPSILON, n_iterations=2), wanted)
        assert is_near(ibot.sinkhorn_knopp_teacher(scores, EPSILON, count, 2), wanted)
    name = "dinov2.loss.ibot_patch_loss.iBOTPatchLoss.sinkhorn_knopp_teacher"
    assert f"{name} is replaced" in capsys.readouterr().out
    assert dino.sinkhorn_knopp_teacher(scores, EPSILON) == "theirs"
    assert ibot.sinkhorn_knopp_teacher(scores, EPSILON, count) == "theirs"


def dinov3_of_rank(rank: int) -> tuple[bool, bool, int]:
    halves = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    module("dinov3.distributed").subgroup = halves[rank // 2]
    scores = cosines()[:28].split(7)[rank]
    wanted = shares_in_turn(cosines()[:28].split(14)[rank // 2], 3).split(7)[rank % 2]
    count = torch.tensor(7)
    sk.patch("dinov3")
    teacher = module("dinov3.loss.ibot_patch_loss").SinkhornKnoppTeacher()
    codes = teacher(scores, EPSILON, n_masked_patches_tensor=count)
    loss = module("dinov3.loss.dino_clstoken_loss").DINOLoss()
    return (
        is_near(codes, wanted),
        is_near(loss.sinkhorn_knopp_teacher(scores, EPSILON), wanted),
        int(count),
    )


def test_dinov3_sums_over_its_process_subgroup(install: Install, tmp_path: Path) -> None:
    install(DINOV3)
    assert run_ranks(4, tmp_path, dinov3_of_rank) == [(True, True, 14)] * 4
    with sk.patched("dinov3"):  # and without torch.distributed
        teacher = module("dinov3.loss.ibot_patch_loss").SinkhornKnoppTeacher()
        codes = teacher(cosines(), EPSILON, torch.tensor(30))
        assert is_near(codes, shares_in_turn(cosines(), 3))


# --- refusals and repetition --------------------------------------------------------------------


@pytest.mark.parametrize("code_base", ["lightly", "vissl", "dinov3"])
def test_a_missing_package_is_refused(
    code_base: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, code_base, None)  # whether it is installed here or not
    with pytest.raises(ValueError, match=f"patch: {code_base} .*package '{code_base}' is not"):
        sk.patch(code_base)


@pytest.mark.parametrize("op", [sk.patch, sk.unpatch])
def test_unknown_names_are_refused(op: Callable[[str], None]) -> None:
    with pytest.raises(
        ValueError, match="code_base names the unknown code base 'capi'; choose from lightly, solo"
    ):
        op("capi")


@pytest.mark.parametrize(
    "signature",
    [
        "probabilities, iterations=3",
        "probabilities, iterations=5, gather_distributed=False",
        "probabilities, iterations=3, gather_distributed=False, *, group=None",
        "scores, iterations=3, gather_distributed=False",
    ],
)
def test_another_signature_is_refused_and_nothing_is_replaced(
    signature: str, install: Install
) -> None:
    install(LIGHTLY, msn_loss=f"def sinkhorn({signature}): return 'theirs'\n")
    with pytest.raises(ValueError, match=r"lightly\.loss\.msn_loss\.sinkhorn has the signature"):
        sk.patch("lightly")
    assert module("lightly.loss.swav_loss").sinkhorn(cosines()) == "theirs"
    sk.unpatch("lightly")  # it is not patched, and may be tried again
    with pytest.raises(ValueError, match="signature"):
        sk.patch("lightly")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("import no_such_library\n", "no_such_library"), ("raise RuntimeError('nms')\n", "nms")],
)
def test_a_package_that_does_not_import_is_refused_with_the_reason(
    text: str, reason: str, install: Install
) -> None:
    install(MMPRETRAIN, swav_loss=text)
    with pytest.raises(ValueError, match=f"importing mmpretrain.*{reason}"):
        sk.patch("mmpretrain")


def test_patching_twice_and_unpatching_what_is_not_patched(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install(LIGHTLY)
    loss = module("lightly.loss.swav_loss")
    sk.unpatch()
    sk.unpatch("lightly")
    sk.patch("lightly")
    capsys.readouterr()
    sk.patch("lightly")
    assert capsys.readouterr().out == "swav_kernels: lightly is patched already\n"
    with sk.patched("lightly"):  # the inner block leaves the outer patch
        pass
    assert loss.sinkhorn is lightly.sinkhorn
    sk.unpatch()
    assert loss.sinkhorn(cosines()) == "theirs"
    sk.unpatch()


def test_an_exception_in_the_block_unpatches(install: Install) -> None:
    install(LIGHTLY)
    loss = module("lightly.loss.swav_loss")

    def fail() -> None:
        with sk.patched("lightly"):
            assert loss.sinkhorn is lightly.sinkhorn
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert loss.sinkhorn(cosines()) == "theirs"


def test_drop_ins_are_imported_at_their_first_use() -> None:
    code = (
        "import sys, swav_kernels as sk\n"
        "assert not [name for name in sys.modules if 'compat' in name and 'swav' in name]\n"
        "sk.compat.lightly.sinkhorn, sk.patch, sk.unpatch, sk.patched\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(sk.__all__) <= set(dir(sk))
    with pytest.raises(AttributeError, match="nothing"):
        _ = sk.nothing
