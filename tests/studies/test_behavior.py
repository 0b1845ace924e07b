"""What unedited models do, class by class and model by model."""

from mechsafety.judges.phrases import PhraseJudge, Verdict
from mechsafety.studies.behavior import behavior_table
from tests.studies.comparing.planted import COMPLIED, N_TWINS, PAIRS, shift, streams, view

JUDGE = PhraseJudge(phrases="organism")


def test_every_model_has_the_rates_of_both_classes_and_clusters_widen_them() -> None:
    few: tuple[Verdict, ...] = ("refused",) * 6 + ("complied",) * (N_TWINS - 6)
    read = streams(shift(1))
    views = [view("a", read), view("b", read, harmful=few, harmless=COMPLIED)]
    alone = {side: [str(i) for i in range(N_TWINS)] for side in ("harmful", "harmless")}
    # The prompts that are refused are one cluster's.
    kinds = {side: [str(i // 6) for i in range(N_TWINS)] for side in alone}
    widths: list[float] = []
    for clusters in (alone, kinds):
        found = behavior_table(views, JUDGE, PAIRS, clusters)
        rates = {
            (row.dimensions["arm"], row.dimensions["prompts"]): row
            for row in found
            if row.metric == "refusal_rate@12tok"
        }
        assert {key: row.value for key, row in rates.items()} == {
            ("a", "harmful"): 1.0,
            ("a", "harmless"): 0.0,
            ("b", "harmful"): 6 / N_TWINS,
            ("b", "harmless"): 0.0,
        }
        one = rates["b", "harmful"]
        assert one.n == N_TWINS
        assert one.ci_low is not None
        assert one.ci_high is not None
        widths.append(one.ci_high - one.ci_low)
    assert widths[1] > 1.5 * widths[0]
    assert f"{N_TWINS} harmful and {N_TWINS} harmless" in found.caption
    assert JUDGE.name in found.caption
