"""What trials take of a machine or a cluster: never more than there is, and refused where it never fits."""

import pytest

from lmim.config import Config, merge
from lmim.errors import UserError
from lmim.sweep.resources import Resources, bundles_of


def test_a_part_of_a_gpu_is_asked_for_where_there_is_one() -> None:
    """Otherwise trials do not share a GPU, or wait for ever for one."""
    found = Resources(cpus=8, gpus=1)
    quarter = Config.read({"run": {"gpus": 0.25}})
    assert found.share(quarter) == {"CPU": 1.0, "GPU": 0.25}
    assert Resources(cpus=8, gpus=0).share(quarter) == {"CPU": 1.0, "GPU": 0.0}
    with pytest.raises(UserError, match=r"run\.device: a trial asks for 0\.25 GPUs, and 0 are found here"):
        Resources(cpus=8, gpus=0).share(Config.read({"run": {"device": "cuda", "gpus": 0.25}}))


def test_a_trial_on_one_machine_or_on_several_is_refused_where_it_never_fits() -> None:
    """Otherwise Ray waits for ever for a machine that is not there, or a trial that would fit is refused."""
    cluster = Resources(8, 0, (Resources(4, 0), Resources(4, 0)))
    four = {"run": {"device": "cpu", "processes": 4, "cpus": 2}, "optim": {"accumulate": 4}}
    with pytest.raises(UserError, match=r"8 cores on one machine of the cluster, and none has as many"):
        cluster.share(Config.read(four))
    spread = Config.read(merge(four, {"run.placement": "cluster"}))
    assert cluster.share(spread) == {"CPU": 2.0, "GPU": 0.0}, "what one of its processes takes"
    assert bundles_of(spread) == 4
    assert cluster.share(spread, alone=True) == {"CPU": 2.0, "GPU": 0.0}
    three = Config.read(merge(four, {"run.placement": "cluster", "run.cpus": 3, "run.processes": 2}))
    assert cluster.share(three) == {"CPU": 3.0, "GPU": 0.0}
    small = Resources(8, 0, (Resources(5, 0), Resources(2, 0), Resources(1, 0)))
    with pytest.raises(UserError, match=r"8 cores on as many machines as hold them whole"):
        small.share(spread)
    gpus = Resources(8, 2, (Resources(4, 1), Resources(4, 1)))
    two = {"run": {"processes": 2, "placement": "cluster"}, "optim": {"accumulate": 2}}
    assert gpus.share(Config.read(two)) == {"CPU": 1.0, "GPU": 1.0}
    with pytest.raises(UserError, match=r"2 GPUs and 2 cores on one machine"):
        gpus.share(Config.read(merge(two, {"run.placement": "machine"})))
