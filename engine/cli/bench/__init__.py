"""`padless bench`: measured beside its peers, on this machine. A file a command."""

from __future__ import annotations

import typer

from . import accelerate, accelerate_models, compare, generate, jobs, kernels, models, plot

__all__ = ["app"]

app = typer.Typer(help="Measure padless beside its peers on this machine.", rich_markup_mode=None)


@app.callback()
def bench() -> None:
    """Measure padless beside its peers on this machine."""


app.command("kernels")(kernels.kernels)
app.command("models")(models.models)
app.command("accelerate")(accelerate.accelerate)
app.command("generate")(generate.generate)
app.command("jobs")(jobs.jobs)
app.command("accelerate-models")(accelerate_models.accelerate_models)
app.command("compare")(compare.compare)
app.command("plot")(plot.plot)
