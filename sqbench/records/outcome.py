"""The outcome of one point of a sweep."""

from dataclasses import dataclass, field

STATES = ("done", "skipped", "failed", "busy", "planned")


@dataclass(frozen=True)
class Outcome:
    """The end of one point, as a sweep reports it.

    Attributes:
        point_id: the id of its record.
        state: `done` now, `skipped` because it was done before, `failed`, `busy` in another process, or only `planned`.
        overrides: the Hydra overrides that run this point alone.
        seconds: the time it took in this sweep.
        error: the reason why it failed, None if it did not.
        summary: the point and its result in one line.
    """

    point_id: str
    state: str
    overrides: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state={self.state}: must be one of {', '.join(STATES)}")
