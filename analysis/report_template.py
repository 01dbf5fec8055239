# ruff: noqa: E402
# mypy: disable-error-code="no-untyped-call"
# %% tags=["parameters"]
NAME, SCALE, URI = "loss", "demo", "sqlite:///../../mlflow.db"

# %%
import os
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Image, Markdown, display

from analysis import claims, report, results

sweep = results.read(NAME, SCALE, os.environ.get("MLFLOW_TRACKING_URI", URI))
table = pd.read_csv("table.csv")
display(Markdown(f"# {sweep.question}"))
display(Markdown(report.summary(sweep, table)))

# %% [markdown]
# ## Verdicts

# %%
display(HTML(report.verdict_html(claims.judge(sweep))))

# %% [markdown]
# ## Table

# %%
display(Markdown(Path("table.md").read_text(encoding="utf-8").split("\n\n", 1)[1]))

# %% [markdown]
# ## Comparison

# %%
display(Image("comparison.png", alt="Seeds, mean and interval of each arm"))

# %% [markdown]
# ## Training and collapse

# %%
display(Image("training.png", alt="Loss and collapse measures of each arm over the steps"))

# %% [markdown]
# ## Settings of all arms

# %%
display(HTML(report.settings_html(sweep)))

# %% [markdown]
# ## Excluded trials

# %%
display(HTML(report.excluded_html(sweep.excluded)))

# %% [markdown]
# ## Provenance

# %%
display(HTML(report.provenance_html(sweep)))
