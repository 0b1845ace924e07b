"""All that models share is drawn once, and geometry is asked for by activations alone."""

import pytest
import torch

from mechsafety.execution.packing import name_of, nodes, pack
from mechsafety.models.spec import ModelSpec
from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.conftest import BETWEEN, MODELS, planted
from tests.studies.comparing.planted import N_HELD_OUT, N_LAYERS, N_TWINS, frame_of
from tests.studies.similarity_runs import configured


def test_rows_are_harmful_ones_before_harmless_ones(world: Measured) -> None:
    rows = world.frame.job.rows["b"]
    read = world.frame.views["b"].pairs
    assert torch.equal(rows[:N_TWINS], read.first[:, :, 0])
    assert torch.equal(rows[N_TWINS:], read.second[:, :, 0])
    assert rows.shape == (2 * N_TWINS, N_LAYERS + 1, 7)
    shifts = rows[:N_TWINS].mean(0) - rows[N_TWINS:].mean(0)
    torch.testing.assert_close(shifts.double(), world.stacks["b"].whole.double(), atol=1e-5, rtol=0)
    assert float(world.directions()["b"][2].norm()) > 3


def test_models_are_of_the_width_depth_and_space_that_they_were_read_with(world: Measured) -> None:
    job = world.frame.job
    for name, one in world.frame.views.items():
        assert (job.width(name), job.n_blocks(name)) == (one.dims.d_model, one.dims.n_layers)
        assert len(job.neutral[name].held_out) == len(job.held_out_clusters) == N_HELD_OUT
    assert {pair for pair in world.places if job.one_space(pair)} == {
        ("a", "b"), ("b", "a"), ("far", "far_b"), ("far_b", "far"),
    }  # fmt: skip


CLAIM = "{id: x, claim: x., scope: checkpoint, margin: 1, cell: {test: angle, first: a, second: b"


@pytest.mark.parametrize(
    ("models", "overrides", "same"),
    [
        (MODELS, [f"findings=[{CLAIM}, layer: 2}}}}]", "transfer=null"], True),
        (MODELS, ["maps.shuffles=3", "runtime.workers=2"], True),
        (MODELS.replace("./a", "org/a").replace("training: lat", "training: at"), [], True),
        (MODELS, ["geometry.null_draws=41"], False),
        (MODELS, ["seed=1"], False),
        (MODELS.replace("base: a, ", ""), [], False),
    ],
    ids=["claims", "maps", "models' folders", "draws", "seed", "spaces"],
)
def test_what_geometry_does_not_rest_on_does_not_enter_its_job(
    world: Measured, models: str, overrides: list[str], same: bool
) -> None:
    """So that geometry need not be computed again, whatever is claimed of it."""
    given = pack(world.frame.job, "a job")
    other = pack(frame_of(configured(models, BETWEEN, *overrides), planted()).job, "a job")
    assert (given.sha256 == other.sha256) == same
    assert not list(nodes(given.tree, name_of(ModelSpec)))
