"""What E2 says that networks cost, against what torch counts."""

from __future__ import annotations

import pytest

from loadgen.figures.figure import Step, load_figure
from services.models.catalogue import load_catalogue

pytestmark = pytest.mark.torch

STEPS = [step for step in load_figure("e2").steps if step.model.endswith("-seeded") and not step.needs]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.model)
def test_the_floating_point_operations_of_a_network_are_those_of_the_plan(step: Step) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from services.models import networks
    from services.models.seeded import ARCHITECTURES

    # Given the network, of which only shapes matter
    spec = load_catalogue()[step.model]
    network = networks.build(ARCHITECTURES[step.model], spec.recipe.size, seed=0, name=step.model)
    # When one image goes through it, attention not in the one fused operation that the counter does not know
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, spec.recipe.size, spec.recipe.size))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    # Then what torch counts, two for a multiply-add, is what the plan says, to the two digits that it has
    assert counter.get_total_flops() / 1e9 == pytest.approx(step.at["gflops"], rel=0.03)
