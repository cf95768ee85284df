"""Prove an installed swav_kernels, with nothing but torch and numpy: run it in that environment.

python tools/smoke.py [--cpu yes|no] [--why TEXT] [--triton-why TEXT]

`--cpu` says whether the compiled module must run; `--why` is a text that the reason against it must
hold, `--triton-why` one that the reason against Triton must hold.
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

import torch

import swav_kernels as sk
from swav_kernels import dispatch, native

HEAVY = {"triton", "torchvision", "matplotlib", "cv2", "sklearn", "numpy.f2py"}
TOLERANCE = 1e-5


def balanced(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Codes by the paper's formula, in float64."""
    codes = (scores.double() / epsilon).exp()
    for _ in range(iterations):
        codes = codes / codes.sum(0, keepdim=True)
        codes = codes / codes.sum(1, keepdim=True)
    return codes


def check_values(backend: str | None) -> None:
    """Loss, codes and gradient against the formula, on float32 inputs."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 33, 16, generator=generator)
    prototypes = torch.randn(37, 16, generator=generator)
    features, prototypes = (
        torch.nn.functional.normalize(x, dim=-1) for x in (features, prototypes)
    )
    want_z = features.double().requires_grad_()
    scores = want_z @ prototypes.double().T
    codes = [balanced(scores[a].detach(), 0.05, 3) for a in (0, 1)]
    pairs = [(a, v) for a in (0, 1) for v in range(3) if v != a]
    logs = (scores / 0.1).log_softmax(-1)
    want = torch.stack([-(codes[a] * logs[v]).sum(1).mean() for a, v in pairs]).mean()
    want.backward()

    z = features.clone().requires_grad_()
    loss = sk.swav_loss(z, prototypes, temperature=0.1, epsilon=0.05, iterations=3, backend=backend)
    loss.backward()
    got = sk.sinkhorn(features[0] @ prototypes.T, epsilon=0.05, iterations=3, backend=backend)
    close = {"rtol": 0, "atol": TOLERANCE}
    torch.testing.assert_close(loss.detach().double(), want.detach(), **close)
    torch.testing.assert_close(z.grad.double(), want_z.grad, **close)
    torch.testing.assert_close(got.double(), codes[0], **close)


def main() -> None:
    """Check what the options name; a line on success, an AssertionError otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", choices=("yes", "no"), default="yes")
    parser.add_argument("--why", default="")
    parser.add_argument("--triton-why", default="")
    arguments = parser.parse_args()

    package = Path(sk.__file__).parent
    assert not HEAVY & set(sys.modules), f"importing it imports {HEAVY & set(sys.modules)}"
    assert "site-packages" in package.parts, f"not the installed package but {package}"
    assert metadata.version("swav-kernels") == sk.__version__
    assert (package / "py.typed").is_file()
    assert (package / "_C.pyi").is_file()

    reason = dispatch.why_not("cpu")
    if arguments.cpu == "yes":
        assert reason is None, reason
        assert native.load().__version__ == sk.__version__
        check_values("cpu")
    else:
        assert reason is not None, "the compiled module runs, and should not"
        assert arguments.why in reason, reason
    triton_reason = dispatch.why_not("triton")
    assert arguments.triton_why in str(triton_reason), triton_reason
    check_values(None)
    check_values("reference")
    report = sk.doctor()
    assert report.ok, report
    assert reason is None or reason in report, report
    assert triton_reason is None or triton_reason in report, report
    print(f"swav_kernels {sk.__version__} in {package}: {', '.join(sk.available_backends())}")


if __name__ == "__main__":
    main()
