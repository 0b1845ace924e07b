"""Shared prompts make unrelated directions look alike, and the shared null says so."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.massive_channels import without_channels
from mechsafety.metrics.shared_null import SharedCosine, jackknifed_cosine, shared_cosines
from mechsafety.metrics.spectral_intervals import jackknife_groups

N_HARMFUL, N_HARMLESS, D = 31, 26, 40
N_DRAWS, N_SPLITS = 300, 60
Classes = tuple[Tensor, Tensor]


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def models(
    generator: torch.Generator, shifts: tuple[Tensor, Tensor], own: float
) -> tuple[Classes, Classes]:
    """Two models that see the same prompts, each with its own shift and noise, far from zero."""
    common = gaussian(generator, N_HARMFUL + N_HARMLESS, D)
    found: list[Classes] = []
    for shift in shifts:
        rows = common + own * gaussian(generator, len(common), D) + 70
        found.append((rows[:N_HARMFUL] + shift, rows[N_HARMFUL:]))
    return found[0], found[1]


def planted(generator: torch.Generator, cosine: float, size: float) -> tuple[Tensor, Tensor]:
    Q, _ = torch.linalg.qr(gaussian(generator, D, 2))
    return size * Q[:, 0], size * (cosine * Q[:, 0] + (1 - cosine**2) ** 0.5 * Q[:, 1])


def measured(first: Classes, second: Classes, paired: bool = False, seed: int = 4) -> SharedCosine:
    generator = torch.Generator().manual_seed(seed)
    return shared_cosines(*first, *second, paired, N_DRAWS, N_SPLITS, generator)


def shift_of(harmful: Tensor, harmless: Tensor) -> Tensor:
    return harmful.mean(0) - harmless.mean(0)


def test_without_any_shift_two_models_agree_and_only_the_shared_null_explains_it(
    generator: torch.Generator,
) -> None:
    nothing = torch.zeros(D).double()
    found = measured(*models(generator, (nothing, nothing), own=0.3))
    assert found.raw > 0.8  # random vectors would give 1 / √40
    low, high = found.null_range()
    assert 0.8 < low < found.raw < high
    assert abs(found.excess) < 0.1
    assert abs(found.disjoint) < 0.25  # other prompts, no agreement


def test_the_cosine_that_was_planted_comes_back_disattenuated_where_raw_is_too_high(
    generator: torch.Generator,
) -> None:
    drawn = [
        measured(*models(generator, planted(generator, 0.5, 3.0), own=0.3), seed=seed)
        for seed in range(8)
    ]

    def mean(name: str) -> float:
        return sum(getattr(each, name) for each in drawn) / len(drawn)

    assert mean("raw") > 0.57
    assert mean("disjoint") < 0.45
    assert mean("disattenuated") == pytest.approx(0.5, abs=0.04)


def test_every_number_is_that_of_the_rows_themselves(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    found = measured(first, second)
    expected = cosine_similarity(shift_of(*first), shift_of(*second), dim=0)
    assert found.raw == pytest.approx(float(expected))
    assert found.null.shape == (N_DRAWS,)
    rows = torch.cat(first), torch.cat(second)
    order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(4))
    weights = torch.tensor([1 / N_HARMFUL] * N_HARMFUL + [-1 / N_HARMLESS] * N_HARMLESS).double()
    weights = weights[order]
    dealt = cosine_similarity(weights @ rows[0], weights @ rows[1], dim=0)
    assert float(found.null[0]) == pytest.approx(float(dealt))
    Q, _ = torch.linalg.qr(gaussian(generator, D, D))
    turned = measured((first[0] @ Q + 9, first[1] @ Q + 9), (5 * second[0] @ Q, 5 * second[1] @ Q))
    torch.testing.assert_close(turned.null, found.null)
    for name in ("raw", "disjoint", "disattenuated", "reliability_first", "reliability_second"):
        assert getattr(turned, name) == pytest.approx(getattr(found, name))


def test_a_model_against_itself_is_at_its_ceiling(generator: torch.Generator) -> None:
    first, _ = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    found = measured(first, first)
    assert 0.3 < found.reliability_first < 0.95
    assert found.raw == pytest.approx(1)
    torch.testing.assert_close(found.null, torch.ones(N_DRAWS).double())
    assert found.disjoint == pytest.approx(found.reliability_first)
    assert found.disattenuated == pytest.approx(1)


def test_a_direction_with_the_other_sign_is_minus_one(generator: torch.Generator) -> None:
    (harmful, harmless), _ = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    found = measured((harmful, harmless), (-harmful, -harmless))
    assert found.raw == pytest.approx(-1)
    assert found.disattenuated == pytest.approx(-1)


def test_pairs_go_into_one_half_so_that_their_common_part_cancels(
    generator: torch.Generator,
) -> None:
    topic = 10 * gaussian(generator, N_HARMLESS, D)
    shift = planted(generator, 1.0, 2.0)[0]
    harmful = topic + shift + 0.5 * gaussian(generator, N_HARMLESS, D)
    harmless = topic + 0.5 * gaussian(generator, N_HARMLESS, D)
    twins, lists = (measured((harmful, harmless), (harmful, harmless), p) for p in (True, False))
    assert lists.reliability_first < 0.5
    assert twins.reliability_first > 0.7


def test_without_a_reproducible_direction_nothing_is_disattenuated() -> None:
    # Mirror images: half A always has the mean that half B has not.
    rows = torch.zeros(4, D).double()
    rows[:, :4] = 10 * torch.eye(4).double()
    mirrored = rows - rows.mean(0)
    mirrored[:, 9] = 0.1
    found = measured((mirrored, 0 * mirrored), (mirrored, 0 * mirrored))
    assert found.reliability_first < 0
    assert found.disattenuated is None


def test_the_interval_leaves_the_same_rows_out_of_both(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    groups = jackknife_groups(N_HARMFUL, N_HARMLESS, 6, generator)
    found = jackknifed_cosine(*first, *second, groups)
    assert found.value == pytest.approx(measured(first, second).raw)
    for group in range(groups.n_groups):
        x, y = groups.harmful != group, groups.harmless != group
        left = [shift_of(harmful[x], harmless[y]) for harmful, harmless in (first, second)]
        expected = cosine_similarity(*left, dim=0)
        assert float(found.replicates[group]) == pytest.approx(float(expected))
    interval = found.interval()
    assert interval.low < found.value < interval.high
    with pytest.raises(ActivationError, match=r"groups of 31 \+ 26 rows for 30 \+ 26"):
        jackknifed_cosine(first[0][1:], first[1], second[0][1:], second[1], groups)


def test_what_cannot_be_compared_is_refused(generator: torch.Generator) -> None:
    (x, y), (z, w) = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    with pytest.raises(ActivationError, match=r"31 \+ 26 prompts.*30 \+ 26 in the second"):
        measured((x, y), (z[1:], w))
    with pytest.raises(ActivationError, match=r"widths 40 and 39.*carry one over"):
        measured((x, y), (z[:, 1:], w[:, 1:]))
    with pytest.raises(ActivationError, match=r"31 harmful and 26 harmless prompts as pairs"):
        measured((x, y), (z, w), paired=True)
    with pytest.raises(ActivationError, match=r"NaN or infinity"):
        measured((x / 0, y), (z, w))
    with pytest.raises(DegenerateDirectionError, match=r"the same mean"):
        measured((torch.ones_like(x), torch.ones_like(y)), (z, w))
    with pytest.raises(SampleError, match=r"0 draws"):
        shared_cosines(x, y, z, w, False, 0, 5, generator)


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_the_published_arms_agree_barely_more_than_their_prompts_make_them() -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "llama2_7b_lat_study"
    arms: dict[str, Classes] = {}
    for arm in ("baseline", "at", "lat"):
        tensors = load_file(folder / f"{arm}.safetensors")
        harmful, harmless = (
            without_channels(tensors[f"{name}.layer12"], (1415, 2533))
            for name in ("harmful", "harmless")
        )
        arms[arm] = harmful, harmless
    found = measured(arms["baseline"], arms["at"])
    assert found.raw == pytest.approx(0.961, abs=0.001)
    assert found.null_range() == (pytest.approx(0.855, abs=0.015), pytest.approx(0.94, abs=0.01))
    assert found.raw > found.null_range()[1]
    assert measured(arms["baseline"], arms["lat"]).excess > 2 * found.excess
