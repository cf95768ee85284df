"""The nn.Modules: prototypes, the feature queue, the loss."""

import copy

import pytest
import torch
from compare import crops, unit_rows

import swav_kernels as sk


def test_prototypes_start_normalised_and_stay_so_on_request() -> None:
    module = sk.Prototypes(16, 37)
    assert isinstance(module.weight, torch.nn.Parameter)
    assert module.weight.shape == (37, 16)
    ones = torch.ones(37)
    torch.testing.assert_close(module.weight.detach().norm(dim=1), ones, rtol=0, atol=1e-6)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.mul_(torch.arange(1, 38).unsqueeze(1))
    weight = module.weight
    module.normalize_()
    assert module.weight is weight  # in place: an optimizer holds on to it
    assert module.weight.requires_grad
    torch.testing.assert_close(module.weight.detach(), before, rtol=0, atol=1e-6)


def test_prototypes_forward_is_prototype_scores() -> None:
    module = sk.Prototypes(dim=16, num_prototypes=37)
    features = unit_rows(2, 9, 16, dtype=torch.float32)
    scores = module(features)
    assert torch.equal(scores, sk.prototype_scores(features, module.weight))
    scores.sum().backward()
    assert module.weight.grad.shape == (37, 16)
    restored = sk.Prototypes(16, 37)
    restored.load_state_dict(module.state_dict())
    assert list(module.state_dict()) == ["weight"]
    assert torch.equal(restored.weight, module.weight)


def numbered_rows(start: int, count: int) -> torch.Tensor:
    """[2, count, 3] rows that hold their own number; negative for the second crop."""
    numbers = torch.arange(start, start + count).float()
    return torch.stack([numbers, -numbers]).unsqueeze(-1).expand(2, count, 3)


def held_numbers(queue: sk.FeatureQueue) -> list[int]:
    """The numbers of the rows in the queue, sorted, after checking that rows are intact."""
    rows = queue.rows()
    assert torch.equal(rows[0], -rows[1])
    assert torch.equal(rows, rows[..., :1].expand_as(rows))
    return sorted(int(number) for number in rows[0, :, 0])


@pytest.mark.parametrize("batches", [[1] * 9, [3, 3, 3], [5, 5, 5], [4, 5, 1, 2], [2, 4, 5, 3, 1]])
def test_queue_holds_the_latest_rows(batches: list[int]) -> None:
    queue = sk.FeatureQueue(5, 3)
    assert queue.rows() is None
    seen = 0
    for count in batches:
        queue.update(numbered_rows(seen, count))
        seen += count
        assert queue.rows().shape == (2, min(seen, 5), 3)
        assert held_numbers(queue) == list(range(max(0, seen - 5), seen))


def test_an_empty_update_changes_nothing() -> None:
    queue = sk.FeatureQueue(5, 3)
    queue.update(torch.empty(2, 0, 3))
    assert queue.rows() is None


def test_queue_holds_detached_copies() -> None:
    queue = sk.FeatureQueue(5, 3, num_crops=2)
    features = numbered_rows(1, 2).clone().requires_grad_()
    queue.update(features)
    assert not queue.rows().requires_grad
    with torch.no_grad():
        features.zero_()
    assert held_numbers(queue) == [1, 2]


def test_queue_refuses_what_does_not_fit() -> None:
    queue = sk.FeatureQueue(5, 3)
    with pytest.raises(ValueError, match=r"6 rows.*5"):
        queue.update(numbered_rows(0, 6))
    for shape in ((1, 2, 3), (3, 2, 3), (2, 2, 4), (2, 3)):
        with pytest.raises(ValueError, match=r"FeatureQueue.*features"):
            queue.update(torch.zeros(shape))
    assert queue.rows() is None
    for sizes in ((0, 3), (5, 0), (5, 3, 0), (-1, 3)):
        with pytest.raises(ValueError, match="FeatureQueue"):
            sk.FeatureQueue(*sizes)
    with pytest.raises(ValueError, match="Prototypes"):
        sk.Prototypes(0, 3)


@pytest.mark.parametrize("seen", [0, 3, 5, 7])
def test_queue_state_round_trip(seen: int, tmp_path) -> None:
    queue = sk.FeatureQueue(5, 3)
    for number in range(seen):
        queue.update(numbered_rows(number, 1))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    restored = sk.FeatureQueue(5, 3)
    restored.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for module in (queue, restored, copy.deepcopy(restored)):
        module.update(numbered_rows(seen, 2))
        assert held_numbers(module) == list(range(max(0, seen - 3), seen + 2))


def test_queue_rows_fit_the_loss() -> None:
    features, prototypes = crops(3, 9, 16, 37)
    queue = sk.FeatureQueue(12, 16)
    for _ in range(2):
        queue.update(features[:2])
    assert queue.rows().shape == (2, 12, 16)
    assert sk.swav_loss(features, prototypes, queue=queue.rows()).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_module_equals_the_op(backend: str, device: str, dtype: torch.dtype) -> None:
    features, prototypes = (x.to(device, dtype) for x in crops(3, 9, 16, 37))
    queue = unit_rows(2, 5, 16, dtype=dtype).to(device)
    keywords = {
        "epsilon": 0.03,
        "temperature": 0.2,
        "iterations": 2,
        "normalize": True,
        "assign": (1, 2),
    }
    module = sk.SwAVLoss(**keywords, backend=backend)
    for rows in (None, queue):
        wanted = sk.swav_loss(features, prototypes, queue=rows, backend=backend, **keywords)
        assert torch.equal(module(features, prototypes, rows), wanted)
        assert torch.equal(module(features, prototypes, queue=rows), wanted)
    loss, stats = sk.SwAVLoss(return_stats=True, backend=backend)(features, prototypes)
    assert torch.equal(loss, sk.swav_loss(features, prototypes, backend=backend))
    assert "usage_entropy" in stats


def test_loss_module_refuses_unknown_keywords() -> None:
    with pytest.raises(TypeError, match="epsilom"):
        sk.SwAVLoss(epsilom=0.05)
