"""The objective's own classifier, as it was trained: nothing is fitted to its features."""

from lmim.evaluate.features import Frozen

METRICS = {"top1": {"label": "top-1", "unit": "%", "better": "higher"}}
NEEDS = ("logits",)


def top1(frozen: Frozen) -> dict[str, float]:
    """Accuracy in % of the highest logit on the judged images; only of objectives that classify."""
    assert frozen.judged.logits is not None
    correct = frozen.judged.logits.argmax(dim=1) == frozen.judged.labels
    return {"top1": 100 * int(correct.sum()) / len(correct)}
