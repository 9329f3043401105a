"""The model card of an export: what was done, what it costs, and how to make it again."""

from sqbench.comparison import Metric
from sqbench.config import label_of
from sqbench.exports.proof import Proof
from sqbench.records.again import again
from sqbench.records.fields import called, describe_format
from sqbench.records.record import Record
from sqbench.reporting.units import number


def card(record: Record, metric: Metric, proof: Proof | None, library: str) -> str:
    """README.md of an exported point, in Markdown. Its row shows one metric. `library` loads the folder."""
    identity = record.identity
    name = label_of(record.config["model"])
    change = record.delta.get(metric.name, {})
    interval = f"{change['value']:+.4g} [{change['low']:.4g}, {change['high']:.4g}]" if change else "--"
    before = number(record.baseline[metric.name], metric) if metric.name in record.baseline else "--"
    data = f"{record.config['data']['name']} ({change.get('n', '?')} examples)"
    lines = [
        "---",
        f"base_model: {name}",
        f"library_name: {library}",
        "tags: [quantized, sqbench]",
        "---",
        "",
        f"# {name}, {identity['scheme']['name']} by {called(identity)}",
        "",
        f"| metric | data | float | quantized | change, {100 * change.get('level', 0.95):.0f} % interval |",
        "| --- | --- | --: | --: | --: |",
        f"| {metric.name} | {data} | {before} | {number(record.metrics[metric.name], metric)} | {interval} |",
        "",
        "Made with sqbench:",
        "",
        f"    {again(record)}",
        "",
        f"- point: `{record.point_id}`",
        f"- weights of the float model: sha256 `{identity['model']['weights']}`",
        *(
            f"- {slot}: {describe_format(identity['scheme'][slot])}"
            for slot in ("weights", "activations")
            if identity["scheme"].get(slot)
        ),
        "",
        f"Checked by {proof}." if proof is not None else "No other program has checked this folder (verify=false).",
        "",
    ]
    return "\n".join(lines)
