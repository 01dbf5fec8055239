"""Every test runs with the shapes in the package's signatures checked."""

from jaxtyping import install_import_hook

install_import_hook(
    ["lmim.axes", "lmim.encoder", "lmim.objectives", "lmim.evaluate", "lmim.data"], "beartype.beartype"
)
