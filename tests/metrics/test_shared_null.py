"""Shared prompts make unrelated directions look alike, and the shared null says so.

Coverage of the nominal 95 % jackknife intervals (20 groups, replicates of 8 splits), 200 draws of
two models with a planted cosine c, 60 + 60 prompts: of the statistic's own mean, and of c.

    case                        c    raw          disjoint     disattenuated
    strong, pairs              .5    .955 .940    .965 .045    .955 .955
    weak, pairs                .5    .955 .925    .970 .000    .970 .965
    wide, power law, pairs     .5    .980 .970    .985 .115    .980 .980
    alike, lists               .9    .955 .855    .985 .000    .970 .955
    orthogonal, lists           0    .950 .445    .965 .965    .965 .970

Raw and disjoint intervals cover their own expectation, and disattenuated ones the planted cosine.
With 4 or 16 splits, or 10 groups, the first case differs by at most .03. Of the weak models 1 in
200 has no reliability and no interval.

Clusters of prompts whose noise both models share, shifts orthogonal, 300 draws of 16 pairs a
cluster in 80 channels: mean disattenuated cosine (0 is the truth), and coverage of 0.

    clusters    shift    divided by halves    whole in halves
    6           2        .436 .020            -.013 .960
    6           2.5      .331 .097            .000 .960
    6           4        .163 .460            .006 .970
    4           4                             .000 .960
    12          4                             -.002 .977
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mechsafety.core.errors import ActivationError, DegenerateDirectionError, SampleError
from mechsafety.metrics.deals import Plan, mean_differences, plan
from mechsafety.metrics.direction_stacks import DirectionStack, refitted
from mechsafety.metrics.massive_channels import without_channels
from mechsafety.metrics.shared_null import LayerCosines, Statistic, layer_cosines
from mechsafety.metrics.spectral_intervals import jackknife_groups

N_HARMFUL, N_HARMLESS, D = 31, 26, 40
N = N_HARMFUL + N_HARMLESS
N_DRAWS, N_SPLITS, N_FEW, N_GROUPS = 300, 60, 4, 6
STATISTICS: tuple[Statistic, ...] = ("raw", "disjoint", "disattenuated")


def gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def planned(
    n_harmful: int = N_HARMFUL, n_harmless: int = N_HARMLESS, paired: bool = False, seed: int = 4
) -> Plan:
    generator = torch.Generator().manual_seed(seed)
    groups = jackknife_groups(n_harmful, n_harmless, N_GROUPS, torch.Generator().manual_seed(9))
    return plan(n_harmful, n_harmless, paired, groups, N_DRAWS, N_SPLITS, N_FEW, generator)


def models(
    generator: torch.Generator, shifts: tuple[Tensor, Tensor], own: float
) -> tuple[Tensor, Tensor]:
    """Rows of two models on the same prompts, each with its shift and noise, far from zero."""
    common = gaussian(generator, N, D)
    found: list[Tensor] = []
    for shift in shifts:
        rows = common + own * gaussian(generator, N, D) + 70
        rows[:N_HARMFUL] += shift
        found.append(rows)
    return found[0], found[1]


def planted(generator: torch.Generator, cosine: float, size: float) -> tuple[Tensor, Tensor]:
    Q, _ = torch.linalg.qr(gaussian(generator, D, 2))
    return size * Q[:, 0], size * (cosine * Q[:, 0] + (1 - cosine**2) ** 0.5 * Q[:, 1])


def stack(rows: Tensor, deals: Plan) -> DirectionStack:
    """Of rows of one layer or of several."""
    return refitted(mean_differences, rows[:, None] if rows.ndim == 2 else rows, deals)


def measured(first: Tensor, second: Tensor, deals: Plan | None = None) -> LayerCosines:
    deals = deals or planned()
    return layer_cosines(stack(first, deals), stack(second, deals), deals)


def test_without_any_shift_two_models_agree_and_only_the_shared_null_explains_it(
    generator: torch.Generator,
) -> None:
    nothing = torch.zeros(D).double()
    found = measured(*models(generator, (nothing, nothing), own=0.3))
    low, high = found.null_range()
    assert float(found.raw) > 0.8  # random vectors would give 1 / √40
    assert 0.8 < float(low) < float(found.raw) < float(high)
    assert abs(float(found.excess)) < 0.1
    assert abs(float(found.disjoint)) < 0.25  # other prompts, no agreement
    # Labels permuted apart would have called it a finding.
    assert float(found.independent_null.abs().max()) < float(found.raw)
    assert float(found.independent_null.mean()) == pytest.approx(0, abs=0.05)


def test_the_cosine_that_was_planted_comes_back_disattenuated_where_raw_is_too_high(
    generator: torch.Generator,
) -> None:
    drawn = [
        measured(*models(generator, planted(generator, 0.5, 3.0), own=0.3), planned(seed=seed))
        for seed in range(8)
    ]

    def mean(name: str) -> float:
        return sum(float(getattr(each, name)) for each in drawn) / len(drawn)

    assert mean("raw") > 0.57
    assert mean("disjoint") < 0.45
    assert mean("disattenuated") == pytest.approx(0.5, abs=0.04)


def three_and_two_layers(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    layers = [
        models(generator, planted(generator, cosine, 2.0), own=0.5) for cosine in (0.5, 0.1, 0.9)
    ]
    return torch.stack([x for x, _ in layers], 1), torch.stack([y for _, y in layers[:2]], 1)


def test_every_cell_is_that_of_its_two_layers_alone(generator: torch.Generator) -> None:
    first, second = three_and_two_layers(generator)
    found = measured(first, second)
    assert found.raw.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            alone = measured(first[:, i], second[:, j])
            torch.testing.assert_close(found.null[:, i, j], alone.null[:, 0, 0])
            apart = alone.independent_null[:, 0, 0]
            torch.testing.assert_close(found.independent_null[:, i, j], apart)
            assert float(found.reliability_first[i]) == pytest.approx(
                float(alone.reliability_first)
            )
            assert float(found.reliability_second[j]) == pytest.approx(
                float(alone.reliability_second)
            )
            for name in STATISTICS:
                one, other = found.jackknifed(name, i, j), alone.jackknifed(name, 0, 0)
                assert one.value == pytest.approx(other.value)
                assert one.standard_error == pytest.approx(other.standard_error)


def shift_of(rows: Tensor) -> Tensor:
    return rows[:N_HARMFUL].mean(0) - rows[N_HARMFUL:].mean(0)


def test_every_number_is_that_of_the_rows_themselves(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    deals = planned()
    found = measured(first, second, deals)
    expected = cosine_similarity(shift_of(first), shift_of(second), dim=0)
    assert float(found.raw) == pytest.approx(float(expected))
    assert found.null.shape == (N_DRAWS, 1, 1)

    def dealt(weights: Tensor, others: Tensor, x: Tensor = first, y: Tensor = second) -> Tensor:
        return cosine_similarity(weights @ x, others @ y, dim=1)

    a, b = (half.weights for half in deals.halves)
    permuted = deals.permuted.weights
    torch.testing.assert_close(found.null_with_shift[:, 0, 0], dealt(permuted, permuted))
    x, y = (residuals(rows) for rows in (first, second))
    torch.testing.assert_close(found.null[:, 0, 0], dealt(permuted, permuted, x, y))
    across = (dealt(a, b).mean() + dealt(b, a).mean()) / 2
    assert float(found.disjoint) == pytest.approx(float(across))
    reliabilities = dealt(a, b, first, first).mean(), dealt(a, b, second, second).mean()
    assert float(found.reliability_first) == pytest.approx(float(reliabilities[0]))
    assert float(found.reliability_second) == pytest.approx(float(reliabilities[1]))
    noise = float(reliabilities[0] * reliabilities[1]) ** 0.5
    assert float(found.disattenuated) == pytest.approx(float(across) / noise)


def residuals(rows: Tensor) -> Tensor:
    """Each class about its own mean."""
    harmful, harmless = rows[:N_HARMFUL], rows[N_HARMFUL:]
    return torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)])


def test_a_shift_that_two_models_share_does_not_hide_in_its_own_null(
    generator: torch.Generator,
) -> None:
    # Nothing is alike in the two but the shift, which is as large as the noise.
    shift = planted(generator, 1.0, 20.0)[0]
    found = measured(*models(generator, (shift, shift), own=3.0))
    assert float(found.raw) > 0.8
    assert float(found.null.quantile(0.975)) < 0.5
    assert float(found.excess) > 0.7
    assert float(found.null_with_shift.quantile(0.975)) > float(found.null.quantile(0.975)) + 0.1


def numbers(found: LayerCosines) -> Tensor:
    parts = [found.raw, found.disjoint, found.disattenuated, found.null, found.null_with_shift]
    parts += [found.reliability_first, found.reliability_second, found.independent_null]
    parts += [*found.replicates.values(), *found.same_half]
    return torch.cat([part.flatten() for part in parts])


def test_rotation_shift_scale_and_other_names_of_the_classes_change_nothing(
    generator: torch.Generator,
) -> None:
    first, second = three_and_two_layers(generator)
    deals = planned()
    found = numbers(measured(first, second, deals))
    Q, _ = torch.linalg.qr(gaussian(generator, D, D))
    turned = numbers(measured(first @ Q + 9, 5 * second @ Q, deals))
    torch.testing.assert_close(turned, found)
    torch.testing.assert_close(numbers(measured(-first, -second, deals)), found)
    # Turned in one model alone, and carried back by the same turn.
    carried = stack(second @ Q, deals).through([Q.T, Q.T])
    torch.testing.assert_close(numbers(layer_cosines(stack(first, deals), carried, deals)), found)


def test_half_precision_rows_keep_the_digits_that_they_have(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    half, wide = first.half(), first.half().double()
    torch.testing.assert_close(
        numbers(measured(half, second)), numbers(measured(wide, second)), atol=1e-6, rtol=0
    )


def test_a_model_against_itself_is_at_its_ceiling(generator: torch.Generator) -> None:
    first, _ = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    found = measured(first, first)
    assert 0.3 < float(found.reliability_first) < 0.95
    assert float(found.raw) == pytest.approx(1)
    torch.testing.assert_close(found.null, torch.ones(N_DRAWS, 1, 1).double())
    assert float(found.disjoint) == pytest.approx(float(found.reliability_first))
    assert float(found.disattenuated) == pytest.approx(1)


def test_two_models_that_differ_by_noise_alone_are_one_when_disattenuated(
    generator: torch.Generator,
) -> None:
    shift = planted(generator, 1.0, 3.0)[0]
    drawn = [measured(*models(generator, (shift, shift), own=0.7)) for _ in range(8)]
    assert max(float(each.disjoint) for each in drawn) < 0.85
    assert sum(float(each.disattenuated) for each in drawn) / 8 == pytest.approx(1, abs=0.04)


def test_a_direction_with_the_other_sign_is_minus_one(generator: torch.Generator) -> None:
    first, _ = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    found = measured(first, -first)
    assert float(found.raw) == pytest.approx(-1)
    assert float(found.disattenuated) == pytest.approx(-1)


def test_unrelated_models_lie_inside_the_null(generator: torch.Generator) -> None:
    above = 0
    for seed in range(40):
        first, second = (gaussian(generator, N, D) + 70 for _ in range(2))
        found = measured(first, second, planned(seed=seed))
        low, high = found.null_range()
        above += not float(low) <= float(found.raw) <= float(high)
        assert float(found.null.std()) == pytest.approx(D**-0.5, rel=0.3)
    assert above <= 6  # 2 of 40 expected


def test_pairs_go_into_one_half_so_that_their_common_part_cancels(
    generator: torch.Generator,
) -> None:
    n = N_HARMLESS
    topic = 10 * gaussian(generator, n, D)
    shift = planted(generator, 1.0, 2.0)[0]
    harmful = topic + shift + 0.5 * gaussian(generator, n, D)
    rows = torch.cat([harmful, topic + 0.5 * gaussian(generator, n, D)])
    twins, lists = (measured(rows, rows, planned(n, n, paired)) for paired in (True, False))
    assert float(lists.reliability_first) < 0.5
    assert float(twins.reliability_first) > 0.7


def test_what_clusters_share_is_no_likeness_of_models_once_halves_hold_them_whole() -> None:
    found: dict[bool, Tensor] = {}
    for whole in (False, True):
        generator = torch.Generator().manual_seed(1)
        found[whole] = torch.stack([of_clusters(generator, whole) for _ in range(25)])
    divided, undivided = found[False], found[True]
    # Shifts are orthogonal; what the two have in common is the noise of 6 clusters.
    assert float(divided[:, :2].mean()) > 0.2
    assert float(divided[:, 2].mean()) > float(undivided[:, 2].mean()) + 0.1
    assert float(divided[:, 3:].mean()) < 0.3
    assert undivided[:, :2].mean(0).abs().max() < 0.1
    # Of 25 draws at the coverage above, fewer than 21 would be 1 time in 350.
    assert float(undivided[:, 3:].mean(0).min()) >= 0.84


def of_clusters(generator: torch.Generator, whole: bool) -> Tensor:
    """Disjoint and disattenuated cosine, reliability, and whether both intervals hold 0."""
    names = [i // 16 for i in range(96)]
    shared = 0.5 * gaussian(generator, 6, 80)[names]
    Q, _ = torch.linalg.qr(gaussian(generator, 80, 2))
    groups = jackknife_groups(96, 96, 20, generator, names)
    deals = plan(96, 96, True, groups, 2, 30, 8, generator, names if whole else None)
    stacks: list[DirectionStack] = []
    for shift in Q.T:
        rows = 0.5 * gaussian(generator, 192, 80)
        rows[:96] += 2.5 * shift + shared
        stacks.append(stack(rows, deals))
    found = layer_cosines(stacks[0], stacks[1], deals)
    intervals = [found.jackknifed(name, 0, 0).interval() for name in ("disjoint", "disattenuated")]
    numbers = [float(found.disjoint), float(found.disattenuated), float(found.reliability_first)]
    return torch.tensor([*numbers, *(float(low <= 0 <= high) for low, high in intervals)])


def test_without_a_reproducible_direction_nothing_is_disattenuated() -> None:
    # Mirror images: half A always has the mean that half B has not.
    rows = torch.zeros(8, D).double()
    mirrored = 10 * torch.eye(4).double()
    rows[:4, :4] = mirrored - mirrored.mean(0)
    rows[:4, 9] = 0.1
    rows[4:, 20] = torch.tensor([1e-9, 2e-9, 3e-9, 5e-9])
    groups = jackknife_groups(4, 4, 4, torch.Generator().manual_seed(1))
    deals = plan(4, 4, True, groups, 20, 10, 4, torch.Generator().manual_seed(1))
    clear = gaussian(torch.Generator().manual_seed(2), 8, D)
    clear[:4] += 3
    for first, second in ((rows, rows), (rows, clear), (clear, rows)):
        found = measured(first, second, deals)
        assert min(float(found.reliability_first), float(found.reliability_second)) < 0
        assert bool(found.disattenuated.isnan())
        assert not bool(found.has_interval("disattenuated"))
    with pytest.raises(DegenerateDirectionError, match=r"disattenuated cosine at indices \(0, 0\)"):
        found.jackknifed("disattenuated", 0, 0)


def test_a_layer_without_a_direction_is_nan_and_the_others_are_untouched(
    generator: torch.Generator,
) -> None:
    first, second = three_and_two_layers(generator)
    whole = measured(first, second)
    blank = first.clone()
    blank[:, 1] = 0.1  # a template token at layer 0: the same for every prompt
    found = measured(blank, second)
    for tensor in (found.raw, found.disjoint, found.disattenuated, found.null[0], found.excess):
        assert tensor[1].isnan().all()
        assert not tensor[[0, 2]].isnan().any()
    assert torch.equal(found.raw[[0, 2]], whole.raw[[0, 2]])
    assert torch.equal(found.null[:, [0, 2]], whole.null[:, [0, 2]])
    for name in STATISTICS:
        assert found.has_interval(name).tolist() == [[True, True], [False, False], [True, True]]
    with pytest.raises(DegenerateDirectionError, match=r"raw cosine at indices \(1, 0\)"):
        found.jackknifed("raw", 1, 0)
    match = found.best_match()
    assert match.value.isnan().tolist() == [False, True, False]
    assert match.null[:, 1].isnan().all()
    with pytest.raises(DegenerateDirectionError, match=r"index 1 of the first"):
        match.jackknifed(1)


def test_the_interval_leaves_the_same_rows_out_of_both(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    deals = planned()
    found = measured(first, second, deals).jackknifed("raw", 0, 0)
    kept = deals.left_out.weights != 0
    for group in range(deals.groups.n_groups):
        x, y = kept[group, :N_HARMFUL], kept[group, N_HARMFUL:]
        left = [
            rows[:N_HARMFUL][x].mean(0) - rows[N_HARMFUL:][y].mean(0) for rows in (first, second)
        ]
        expected = cosine_similarity(*left, dim=0)
        assert float(found.replicates[group]) == pytest.approx(float(expected))
    interval = found.interval()
    assert interval.low < found.value < interval.high
    torch.testing.assert_close(found.left_out, 1 - kept.double().mean(1))


def test_replicates_of_halves_perturb_the_same_few_splits(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    deals = planned()
    cell = measured(first, second, deals).jackknifed("disjoint", 0, 0)

    def disjoint(a: Tensor, b: Tensor) -> float:
        ways = [cosine_similarity(x @ first, y @ second, dim=1) for x, y in ((a, b), (b, a))]
        return float((ways[0].mean() + ways[1].mean()) / 2)

    a, b = (half.weights for half in deals.halves)
    assert cell.value == pytest.approx(disjoint(a, b))
    assert cell.base == pytest.approx(disjoint(a[:N_FEW], b[:N_FEW]))
    few_a, few_b = (half.weights for half in deals.few_halves_left_out)
    at = slice(2 * N_FEW, 3 * N_FEW)
    assert float(cell.replicates[2]) == pytest.approx(disjoint(few_a[at], few_b[at]))


def test_matched_cells_less_the_others_is_a_weighted_sum_with_its_own_null(
    generator: torch.Generator,
) -> None:
    first, second = three_and_two_layers(generator)
    found = measured(first, second)
    matched = torch.tensor([[True, False], [False, True], [False, False]])
    weights = found.matched_weights("raw", matched)
    contrast, null = found.contrast("raw", weights)
    assert contrast.value == pytest.approx(
        float(found.raw[matched].mean() - found.raw[~matched].mean())
    )
    torch.testing.assert_close(
        null, found.null[:, matched].mean(1) - found.null[:, ~matched].mean(1)
    )
    single = found.jackknifed("raw", 0, 1) - found.jackknifed("raw", 2, 0)
    weights = torch.zeros(3, 2)
    weights[0, 1], weights[2, 0] = 1, -1
    difference, _ = found.contrast("raw", weights)
    assert difference.value == pytest.approx(single.value)
    assert difference.standard_error == pytest.approx(single.standard_error)
    _, independent = found.contrast("disjoint", weights)
    expected = found.independent_null[:, 0, 1] - found.independent_null[:, 2, 0]
    torch.testing.assert_close(independent, expected)


def test_cells_without_an_interval_have_no_weight_and_may_not_be_matched(
    generator: torch.Generator,
) -> None:
    first, second = three_and_two_layers(generator)
    first[:, 1] = 0.1
    found = measured(first, second)
    matched = torch.tensor([[True, False], [False, False], [False, True]])
    weights = found.matched_weights("raw", matched)
    assert weights.tolist() == [[0.5, -0.5], [0, 0], [-0.5, 0.5]]
    assert found.contrast("raw", weights)[0].interval().low < 1
    matched[1, 1] = True
    with pytest.raises(DegenerateDirectionError, match=r"3 cells matched, 1 of them without"):
        found.matched_weights("raw", matched)
    with pytest.raises(
        DegenerateDirectionError, match=r"1 have no interval \(indices \[\(1, 0\)\]"
    ):
        found.contrast("raw", torch.tensor([[0.0, 1], [1, 0], [0, 0]]))
    with pytest.raises(DegenerateDirectionError, match=r"of 0 cells with a weight"):
        found.contrast("raw", torch.zeros(3, 2))


def test_what_cannot_be_compared_is_refused(generator: torch.Generator) -> None:
    first, second = models(generator, planted(generator, 0.5, 2.0), own=0.5)
    deals = planned()
    here = stack(first, deals)
    with pytest.raises(ActivationError, match=r"widths 40 and 39.*carry one over"):
        layer_cosines(here, stack(second[:, 1:], deals), deals)
    other = planned(seed=5)
    with pytest.raises(SampleError, match=r"other plans"):
        layer_cosines(here, stack(second, other), deals)
    with pytest.raises(SampleError, match=r"other plans"):
        layer_cosines(here, replace(here, fingerprint="other"), deals)


CASES = {
    # width, size of the shift, planted cosine, power law, pairs
    "strong": (80, 2.0, 0.5, False, True),
    "weak": (80, 1.0, 0.5, False, True),
    "wide": (300, 2.0, 0.5, True, True),
    "alike": (80, 2.0, 0.9, False, False),
    "orthogonal": (80, 4.0, 0.0, False, False),
}


def coverage(case: str, n_draws: int) -> dict[str, tuple[float, float]]:
    """Share of intervals that hold the mean of their statistic, and the planted cosine."""
    width, size, cosine, power_law, paired = CASES[case]
    generator = torch.Generator().manual_seed(1)
    scale = torch.ones(width).double()
    if power_law:
        scale = 3 * torch.arange(1, width + 1).double() ** -0.5
    drawn: dict[Statistic, list[tuple[float, float, float]]] = {name: [] for name in STATISTICS}
    for _ in range(n_draws):
        Q, _ = torch.linalg.qr(gaussian(generator, width, 2))
        turned = cosine * Q[:, 0] + (1 - cosine**2) ** 0.5 * Q[:, 1]
        common = gaussian(generator, 120, width) * scale
        if paired:
            common[:60] = 0.7 * common[:60] + 0.7 * common[60:]
        groups = jackknife_groups(60, 60, 20, generator)
        deals = plan(60, 60, paired, groups, 2, 50, 8, generator)
        stacks: list[DirectionStack] = []
        for shift in (Q[:, 0], turned):
            rows = common + 0.5 * gaussian(generator, 120, width) * scale
            rows[:60] += size * shift
            stacks.append(stack(rows, deals))
        found = layer_cosines(stacks[0], stacks[1], deals)
        for name in STATISTICS:
            if bool(found.has_interval(name)):
                cell = found.jackknifed(name, 0, 0)
                drawn[name].append((cell.value, *cell.interval()))
    covered: dict[str, tuple[float, float]] = {}
    for name, cells in drawn.items():
        mean = sum(value for value, _, _ in cells) / len(cells)
        of_mean, of_truth = (
            sum(low <= target <= high for _, low, high in cells) / len(cells)
            for target in (mean, cosine)
        )
        covered[name] = of_mean, of_truth
    return covered


def test_intervals_cover_the_planted_cosine_once_disattenuated() -> None:
    covered = coverage("strong", 80)
    assert covered["raw"][0] >= 0.9
    assert covered["disjoint"][0] >= 0.9
    assert covered["disjoint"][1] < 0.2
    assert min(covered["disattenuated"]) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_in_every_case(case: str) -> None:
    covered = coverage(case, 200)
    print(f"coverage {case}: {covered}")
    assert min(of_mean for of_mean, _ in covered.values()) >= 0.9
    assert covered["disattenuated"][1] >= 0.9


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_the_published_arms_agree_barely_more_than_their_prompts_make_them() -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "llama2_7b_lat_study"
    arms: dict[str, DirectionStack] = {}
    deals = planned(100, 100)
    for arm in ("baseline", "at", "lat"):
        tensors = load_file(folder / f"{arm}.safetensors")
        rows = torch.cat([tensors[f"{name}.layer12"] for name in ("harmful", "harmless")])
        arms[arm] = stack(without_channels(rows, (1415, 2533)), deals)
    found = layer_cosines(arms["baseline"], arms["at"], deals)
    printed = found.null_with_shift.flatten()
    assert float(found.raw) == pytest.approx(0.961, abs=0.001)
    assert float(printed.quantile(0.025)) == pytest.approx(0.855, abs=0.015)
    assert float(printed.quantile(0.975)) == pytest.approx(0.94, abs=0.01)
    assert float(found.raw) > float(printed.quantile(0.975))
    # The shift is in that null; without it the prompts explain a little less.
    low, high = (float(end) for end in found.null_range())
    assert low == pytest.approx(0.845, abs=0.015)
    assert high == pytest.approx(0.912, abs=0.01)
    far = layer_cosines(arms["baseline"], arms["lat"], deals)
    assert float(far.excess) > 2 * float(found.excess)
