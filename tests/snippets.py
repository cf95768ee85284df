"""Small programs with and without each defect that `swav lint` knows; `# here` marks its line."""

# --- a Sinkhorn in parts ------------------------------------------------------------------------

LOOP = """
    for _ in range(3):
        Q /= Q.sum(dim=1, keepdim=True)
        Q /= Q.sum(dim=0, keepdim=True)
    return Q.t()
"""
LOG_LOOP = """
    for _ in range(3):
        log_q = log_q - torch.logsumexp(log_q, dim=0)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()
"""


def sinkhorn(*lines: str, loop: str = LOOP, head: str = "def sinkhorn(out, eps=0.05):") -> str:
    """A function of those lines and the loop after them."""
    return "\n".join(["import torch", "", head, *(f"    {line}" for line in lines)]) + loop


def numpy_sinkhorn(start: str) -> str:
    """The same in NumPy, from the value that q has at first."""
    return (
        f"import numpy as np\n\ndef sinkhorn(s):\n    q = {start}\n    for _ in range(3):\n"
        "        q = q / q.sum(axis=0)\n        q = q / q.sum(axis=1, keepdims=True)\n"
        "    return q\n"
    )


# --- what each rule finds, and what it leaves ---------------------------------------------------

ROW_MAXIMUM = [
    sinkhorn(
        "out = out - out.max(dim=1, keepdim=True).values  # here",
        "Q = torch.exp(out / eps).t()",
    ),
    sinkhorn("Q = torch.exp((out - torch.max(out, 1, keepdim=True)[0]) / eps).T  # here"),
    sinkhorn("out = out / eps", "out -= out.amax(-1, keepdim=True)  # here", "Q = out.exp().t()"),
    sinkhorn(
        "Q = (out / eps).t()", "Q = Q - Q.max(dim=0, keepdim=True)[0]  # here", "Q = torch.exp(Q)"
    ),
    sinkhorn(
        "row_max, _ = torch.max(out, dim=1)",
        "Q = torch.exp((out - row_max[:, None]) / eps).t()  # here",
    ),
    sinkhorn(
        "log_q = out / eps", "top = log_q.max(1).values.unsqueeze(1)",
        "log_q = log_q.sub(top)  # here", loop=LOG_LOOP, head="def balance(out, eps):",
    ),
    numpy_sinkhorn("np.exp(s - s.max(axis=1, keepdims=True))  # here"),
    # a function within another is one finding
    "def make():\n" + "\n".join("    " + line for line in sinkhorn(
        "Q = torch.exp(out - out.amax(dim=1, keepdim=True))  # here").splitlines()),
]  # fmt: skip
NO_ROW_MAXIMUM = [
    sinkhorn("out = out - out.max()", "Q = torch.exp(out / eps).t()"),
    sinkhorn("Q = torch.exp((out - out.max(dim=0, keepdim=True).values) / eps).t()"),
    sinkhorn("Q = (out / eps).t()", "Q = torch.exp(Q - Q.max(dim=1, keepdim=True)[0])"),
    # a log-sum-exp by hand: the maximum comes back
    sinkhorn(
        "m = out.max(1, keepdim=True)[0]", "lse = m + (out - m).exp().sum(1, keepdim=True).log()",
        "Q = torch.exp(out / eps).t()",
    ),
    # in the softmax after the loop it is harmless
    sinkhorn("Q = torch.exp(out / eps).t()", loop=LOOP.replace("return Q.t()",
        "Q = Q.t()\n    return Q - Q.max(dim=1, keepdim=True)[0]")),
    # no Sinkhorn
    "def softmax(x):\n    e = (x - x.max(1, keepdim=True)[0]).exp()\n"
    "    return e / e.sum(1, keepdim=True)\n",
]  # fmt: skip

OF_RANKS = "import torch.distributed as dist\n"
LOCAL = LOOP.replace("dim=1, keepdim=True)", "dim=1, keepdim=True)  # here")
REDUCED = """
    for _ in range(3):
        rows = torch.sum(Q, dim=1, keepdim=True)
        dist.all_reduce(rows)
        Q /= rows
        Q /= torch.sum(Q, dim=0, keepdim=True)
    return Q.t()
"""
SUMS_PER_RANK = [
    OF_RANKS + sinkhorn("Q = torch.exp(out / eps).t()", loop=LOCAL),
    "from torch import distributed\n"
    + sinkhorn("log_q = out / eps", loop=LOG_LOOP.replace("0)", "0)  # here")),
    # the first sum is reduced, those of the loop are not
    OF_RANKS + sinkhorn(
        "Q = torch.exp(out / eps).t()", "total = Q.sum()", "dist.all_reduce(total)", "Q /= total",
        loop=LOCAL),
    # reduced only where the data ask for it: ranks fall out of step
    OF_RANKS + sinkhorn("Q = torch.exp(out / eps).t()", loop="""
    for _ in range(3):
        u = torch.sum(Q, dim=1, keepdim=True)  # here
        if (u == 0).any():
            Q += 1e-12
            u = torch.sum(Q, dim=1, keepdim=True)
            dist.all_reduce(u)
        Q /= u
        Q /= torch.sum(Q, dim=0, keepdim=True)
    return Q.t()
"""),
    "from torch.nn.parallel import DistributedDataParallel\n"
    + sinkhorn("Q = torch.exp(out / eps).t()", loop=LOCAL)
    + "\ndef train(model):\n    return DistributedDataParallel(model)\n",
]  # fmt: skip
NO_SUMS_PER_RANK = [
    sinkhorn("Q = torch.exp(out / eps).t()"),  # one process
    OF_RANKS + sinkhorn("Q = torch.exp(out / eps).t()", loop=REDUCED),
    OF_RANKS + sinkhorn("Q = torch.exp(out / eps).t()", loop=REDUCED.replace(
        "dist.all_reduce(rows)", "if dist.is_initialized():\n            dist.all_reduce(rows)")),
    # a helper that reduces
    OF_RANKS + "def total(x, **kw):\n    x = x.sum(**kw)\n    dist.all_reduce(x)\n    return x\n"
    + sinkhorn("Q = torch.exp(out / eps).t()", loop=LOOP.replace("Q.sum(dim=1", "total(Q, dim=1")),
    # one function for one process beside one for many
    OF_RANKS + sinkhorn("Q = torch.exp(out / eps).t()")
    + sinkhorn("Q = torch.exp(out / eps).t()", loop=REDUCED, head="def distributed(out, eps):"),
    # the rows of all ranks are here
    OF_RANKS + sinkhorn("Q = torch.exp(concat_all_gather(out) / eps).t()"),
    # no Sinkhorn: sums along both axes divide nothing
    OF_RANKS + "def report(x):\n    for y in x:\n        print(y.exp().sum(0), y.sum(1) / 2)\n",
]  # fmt: skip

HALF_EXP = [
    sinkhorn("Q = torch.exp(out.half() / eps).t()  # here"),
    sinkhorn("out = out.to(torch.bfloat16)  # here", "Q = torch.exp(out / eps).t()"),
    sinkhorn("Q = torch.exp(out / eps).t().to(dtype=torch.float16)  # here"),
    sinkhorn("log_q = (out / eps).bfloat16()  # here", loop=LOG_LOOP),
    numpy_sinkhorn("np.exp(s).astype(np.float16)  # here"),
]
NO_HALF_EXP = [
    sinkhorn("Q = torch.exp(out.float() / eps).t()"),
    sinkhorn("Q = torch.exp(out / eps).t()", loop=LOOP.replace("Q.t()", "Q.t().half()")),
    sinkhorn("Q = torch.exp(out.half().float() / eps).t()"),
    "def features(x):\n    return x.half().exp()\n",
]

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(8, 4)
        self.prototypes = nn.Linear(4, 30, bias=False)

    def forward(self, x):
        z = self.backbone(x)
        return self.prototypes(z)

    def codes(self, x):
        return sinkhorn(self.forward(x))
"""
FEATURES = MODEL.replace(
    "z = self.backbone(x)", "z = nn.functional.normalize(self.backbone(x), dim=1)"
)
BOTH = FEATURES.replace(
    "        return self.prototypes(z)",
    "        w = self.prototypes.weight.data.clone()\n"
    "        self.prototypes.weight.data.copy_(nn.functional.normalize(w, dim=1))\n"
    "        return self.prototypes(z)",
)
PROTOTYPES_ALONE = BOTH.replace("nn.functional.normalize(self.backbone(x), dim=1)", "x")
HERE_PROTOTYPES = ("bias=False)", "bias=False)  # here")
HERE_FEATURES = ("self.prototypes(z)", "self.prototypes(z)  # here")
NOT_NORMALISED = [
    MODEL.replace(*HERE_PROTOTYPES).replace(*HERE_FEATURES),
    FEATURES.replace(*HERE_PROTOTYPES),
    PROTOTYPES_ALONE.replace(*HERE_FEATURES),
    PROTOTYPES_ALONE.replace("z = x", "x = self.backbone(x)").replace(
        "self.prototypes(z)", "self.prototypes(x)  # here"
    ),
    # a batch norm and the normalisation of pixels are not that of features
    MODEL.replace("nn.Linear(8, 4)", "nn.Sequential(Normalize(0, 1), nn.BatchNorm1d(4))")
    .replace(*HERE_PROTOTYPES)
    .replace(*HERE_FEATURES),
]
NORMALISED = [
    BOTH,
    FEATURES.replace("nn.Linear(4, 30, bias=False)", "weight_norm(nn.Linear(4, 30, bias=False))"),
    FEATURES + "\ndef step(model):\n    normalize_prototypes(model)\n",
    FEATURES + "\ndef step(model):\n    w = model.prototypes.weight\n"
    "    w.data.div_(w.data.norm(dim=1, keepdim=True))\n",
    # prototypes of some other method
    MODEL.replace("sinkhorn", "distances"),
    # features that are given: their length is the caller's matter
    PROTOTYPES_ALONE.replace("z = x", "").replace("prototypes(z)", "prototypes(x)"),
    MODEL.replace("nn.Linear(4, 30, bias=False)", "swav_kernels.Prototypes(4, 30)"),
]

BIASED_PROTOTYPES = [
    "from torch import nn\nprototypes = nn.Linear(128, 3000)  # here\n",
    "import torch\n\nclass Head(torch.nn.Module):\n    def __init__(self):\n"
    "        self.prototypes = torch.nn.Linear(128, 3000, bias=True)  # here\n",
    "class Head:\n    def __init__(self, k):\n        for i in range(2):\n"
    "            self.add_module('prototypes' + str(i), nn.Linear(128, k))  # here\n",
    "class Head:\n    def __init__(self):\n"
    "        self.prototype_layer: nn.Module = weight_norm(nn.Linear(128, 30))  # here\n",
]
UNBIASED_PROTOTYPES = [
    "prototypes = nn.Linear(128, 3000, bias=False)\n",
    "prototypes = nn.Linear(128, 3000, False)\n",
    "prototypes = nn.Linear(128, 3000, bias=bias)\n",
    "prototypes = nn.Linear(128, 3000, **keywords)\n",
    "prototypes = nn.Sequential(nn.Linear(8, 8), nn.ReLU())\nhead = nn.Linear(8, 8)\n",
    "prototype_classifier = nn.Linear(8, 8)\n",
    "add_module('head', nn.Linear(8, 8))\n",
]

CASES = {
    "row-maximum": (ROW_MAXIMUM, NO_ROW_MAXIMUM),
    "sums-per-rank": (SUMS_PER_RANK, NO_SUMS_PER_RANK),
    "half-exp": (HALF_EXP, NO_HALF_EXP),
    "not-normalised": (NOT_NORMALISED, NORMALISED),
    "biased-prototypes": (BIASED_PROTOTYPES, UNBIASED_PROTOTYPES),
}
