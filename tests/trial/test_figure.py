"""What a figure is called in a trial's folder."""

from pathlib import Path

from lmim.trial.figure import Figure, meaning, names, read_figures, settings_of


def test_a_file_is_named_by_what_is_drawn() -> None:
    """Figures of other settings, data or trials under one name would be shown for each other."""
    (one, other) = read_figures(["tsne", {"tsne": {"clusters": 3}}])
    stems = [one.stem("a", "v1"), one.stem("b", "v1"), one.stem("a", "v2"), other.stem("a", "v1")]
    assert len({*stems}) == 4
    assert one.stem("a", "v1") == read_figures([{"tsne": {"clusters": 4}}])[0].stem("a", "v1"), "the default"
    file = one.file(Path("trials/a"), "v1")
    assert file.parent == Path("trials/a/figures")
    assert file.name.startswith(f"{one.stem('a', 'v1')}-")


def test_data_that_were_moved_are_the_same_data() -> None:
    """Else every figure is drawn again where the data lie elsewhere."""
    here, there = (
        Figure("tsne", {"data": "imagefolder", "path": path}, version="v9") for path in ("/here", "/there")
    )
    assert here.stem("a", "v1") == there.stem("a", "v2")


def test_every_figure_says_what_it_shows() -> None:
    """`ablations/KEYS.md` has a line for each, and for each of its settings."""
    for name in names():
        assert meaning(name)
        assert all(one.meaning for one in settings_of(name).values()), name
    assert {"segmentation", "tsne", "similarity", "heatmap", "attention", "reconstruction"} < {*names()}
    assert {"propagation", "neighbours"} < {*names()}
