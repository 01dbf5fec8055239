# mypy: disable-error-code="no-untyped-call"
# %%
import csv
import json
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import HTML, Image, Markdown, display

report = json.loads(Path("report.json").read_text(encoding="utf-8"))
with open("trials.csv", encoding="utf-8", newline="") as file:
    trials = list(csv.DictReader(file))


def grid(keys: str, rows: list[dict[str, Any]], none: str = "None.") -> str:
    """Rows as an HTML table; a verdict's cell gets the class of its colour."""

    def cell(key: str, value: Any) -> str:
        if isinstance(value, float):
            value = "< 0.001" if key == "p" and value < 0.001 else f"{value:.2g}"
        text = escape("" if value is None else str(value))
        return f'<td class="{text.replace(",", "")}">{text}</td>' if key == "verdict" else f"<td>{text}</td>"

    top = "".join(f"<th>{key.replace('_', ' ')}</th>" for key in keys.split())
    body = ["".join(cell(key, row[key]) for key in keys.split()) for row in rows]
    lines = "".join(f"<tr>{line}</tr>" for line in body)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>" if rows else f"<p>{none}</p>"


display(HTML(f"<h1>{escape(report['question'])}</h1><p>{escape(report['summary'])}</p>"))

# %% [markdown]
# ## Verdicts

# %%
several = any(one["after_holm"] for one in report["verdicts"])
heads = f"claim verdict {'after_holm ' * several}metric difference p evidence"
verdicts = grid(heads, report["verdicts"], "The sweep makes no claim.")
display(HTML(f"{verdicts}<p class=note>{escape(report['note'])}</p>"))

# %%
notes = "".join(f"<li>{escape(note)}</li>" for note in report["notes"])
display(HTML(f"<ul>{notes}</ul>" if notes else ""))

# %% [markdown]
# ## Table

# %%
parts = Path("table.md").read_text(encoding="utf-8").split("\n\n")
display(Markdown("\n\n".join(parts[1:3])))

# %% [markdown]
# ## Comparison

# %%
display(Image("comparison.png", alt="Seeds, mean and interval of each arm"))

# %%
if report["searches"]:
    head, *rows = [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in report["searches"]
    ]
    display(Markdown("## Search"))
    display(HTML(f"<table><thead>{head.replace('td>', 'th>')}</thead><tbody>{''.join(rows)}</tbody></table>"))
    display(HTML(f"<p class=note>{escape(report['searched'])}</p>"))
    display(Image("search.png", alt="Best value so far of each arm, and each suggestion over its keys"))

# %% [markdown]
# ## Training and collapse

# %%
display(Image("training.png", alt="Loss and collapse measures of each arm over the steps"))

# %%
for one in report.get("figures", []):
    display(HTML(f"<h2>{escape(one['name'].capitalize())}</h2>"))
    display(HTML(f"<p class=note>{escape(one['caption'])}</p>"))
    for page in one["pages"]:
        display(Image(f"{page}.png", alt=one["caption"]))
    notes = "".join(f"<li>{escape(note)}</li>" for note in one["notes"])
    display(HTML(f"<p class=note>Nothing is shown of:</p><ul>{notes}</ul>" if notes else ""))

# %% [markdown]
# ## Settings of all arms

# %%
settings = grid("key value", report["settings"])
display(HTML(f"<details><summary>{len(report['settings'])} keys</summary>{settings}</details>"))

# %% [markdown]
# ## Excluded trials

# %%
display(HTML(grid("trial arm seed reason", report["excluded"], "None: every planned trial counts.")))

# %% [markdown]
# ## Provenance

# %%
columns = ["commit", "replayed_on", "dataset_version", "python", "torch", "timm", "device", "host"]
alike = [key for key in columns if len({trial[key] for trial in trials}) == 1 and trials[0][key]]
same = ", ".join(f"{key.replace('_', ' ')} {trials[0][key]}" for key in alike)
other = [key for key in columns if key not in alike and any(trial[key] for trial in trials)]
display(HTML(f"<p>Of every trial: {escape(same)}.</p>" if same else ""))
display(HTML(grid(" ".join(["trial", "arm", "seed", "outcome", *other, "run"]), trials)))
