from typing import Any

from sqbench.reporting.cautions import cautions


def test_the_point_that_is_worst_off_speaks_for_all(make_record: Any) -> None:
    def short(held: int, count: int) -> dict[str, Any]:
        delta = {"value": 0.1, "low": 0.0, "high": 0.2, "level": 0.95, "n": count, "held": held}
        found: dict[str, Any] = make_record("rtn", delta={"perplexity": delta}, identity__data__windows=count)
        return found

    (said,) = cautions([short(91, 8), make_record("awq", status="failed"), short(89, 4), make_record("mse")])
    assert said.startswith("Over 4 examples, 95 % intervals held the true change in 89 of 100")
    assert cautions([make_record("rtn")]) == []
